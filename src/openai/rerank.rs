//! The types of POST /v1/rerank, in the shape that Cohere, Jina and vLLM share, and the request of text-embeddings-inference.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::request::{MODEL, ParsedRequest, ReadObject, Scalar, Value, once, read_model, read_object, refuse, whole};
use super::{ListObject, Usage};
use layer0::retrieval::Method;

/// The body of POST /v1/rerank. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({
    "model": "text-embedding-3-small",
    "query": "How do plants make food?",
    "documents": ["The market fell on Monday.", "Photosynthese erzeugt Zucker aus Licht."],
    "top_n": 2,
    "return_documents": true
}))]
pub struct CreateRerankRequest {
    /// The text that documents are compared with.
    pub query: String,
    /// The documents: strings, or objects with the field `text`.
    #[schema(value_type = Vec<RerankDocument>, min_items = 1)]
    pub documents: Documents,
    /// The id or alias of a model. If it is missing, the default model answers.
    pub model: Option<String>,
    /// How many results to return, the most relevant first. Missing or 0: all. `top_k` is accepted as well.
    pub top_n: Option<usize>,
    /// Whether results repeat the text of their document.
    #[schema(value_type = Option<bool>, default = false)]
    pub return_documents: bool,
    /// Whether results have the part of their document that matches the query best, so that it can be highlighted.
    #[schema(value_type = Option<bool>, default = false)]
    pub return_spans: bool,
    /// Whether results have the tokens of their document, each with its share of what the tokens add to the score. Of
    /// a longer document, the first 4,096.
    #[schema(value_type = Option<bool>, default = false)]
    pub return_tokens: bool,
    /// Accepted for the sake of Cohere's clients and ignored: documents of any length are scored as a whole.
    #[schema(value_type = Option<serde_json::Value>)]
    pub max_tokens_per_doc: IgnoredAny,
    /// How documents are scored.
    #[schema(value_type = Option<RerankMethod>, default = "combined")]
    pub method: Method,
    /// Whether the documents were sent as `texts`, as text-embeddings-inference has it: the response is in its shape, too.
    #[schema(ignore)]
    pub is_tei: bool,
}

/// A string, or an object with the text of the document.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum RerankDocument {
    /// The text.
    Text(String),
    /// An object, of which `text` is read.
    Object {
        /// The text.
        text: String,
    },
}

/// `combined` is 0.5 soft + 0.3 lexical + 0.2 cosine. `soft` compares tokens, of which similar ones count as well; `lexical` is BM25 over
/// words; `cosine` compares the vectors of `/v1/embeddings`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RerankMethod {
    /// The weighted sum of the others.
    Combined,
    /// Tokens, similar ones included.
    Soft,
    /// Words.
    Lexical,
    /// Vectors.
    Cosine,
}

/// The documents of a request. No more are kept than were asked for, and all are counted.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Documents {
    /// The texts.
    pub texts: Vec<String>,
    /// How many documents the request has.
    pub count: usize,
}

/// The response to POST /v1/rerank.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "rerank-5f0c2a9d7b3e4816",
    "object": "list",
    "model": "text-embedding-3-small",
    "results": [{"index": 1, "relevance_score": 0.2193, "document": {"text": "Photosynthese erzeugt Zucker aus Licht."}}],
    "usage": {"prompt_tokens": 25, "total_tokens": 25},
    "meta": {"billed_units": {"search_units": 1}}
}))]
pub struct CreateRerankResponse {
    /// An identifier of this response.
    pub id: String,
    #[schema(inline)]
    pub object: ListObject,
    /// The model as the request named it.
    pub model: String,
    /// The most relevant document first; documents of equal relevance in the order of the request.
    pub results: Vec<RerankResult>,
    pub usage: Usage,
    pub meta: RerankMeta,
}

/// One document and its relevance.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RerankResult {
    /// The position of the document in the request.
    pub index: usize,
    /// From 0 to 1. A relevant document typically has 0.3 to 0.55, an unrelated one less than 0.05.
    pub relevance_score: f32,
    /// Only if the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<ReturnedDocument>,
    /// Only if the request asked for it, and some part of the document matches the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Only if the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<TokenShare>>,
}

/// A token of a document, and what it adds to the document's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenShare {
    /// The text that the token stands for. A byte that is not a whole character is written as `<0xEC>`.
    pub text: String,
    /// The token's share of what all tokens of the document add to its score. The shares of a document add up to 1, or to 0 if no token
    /// matches.
    pub share: f32,
}

/// A part of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Span {
    /// The index of its first character. Characters are Unicode code points, as in Python.
    pub start: usize,
    /// The index after its last character.
    pub end: usize,
}

/// A document as the request sent it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReturnedDocument {
    pub text: String,
}

/// What Cohere's clients read of costs: always one search unit.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RerankMeta {
    pub billed_units: BilledUnits,
}

/// See [`RerankMeta`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BilledUnits {
    pub search_units: u32,
}

/// One result in the shape of text-embeddings-inference.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct TeiRank {
    pub index: usize,
    pub score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
}

impl ParsedRequest for CreateRerankRequest {
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        read_object(body, Body { max_documents: max_inputs })
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::once((DOCUMENTS, self.documents.count))
    }
}

const QUERY: &str = "query";
const DOCUMENTS: &str = "documents";
const TEXTS: &str = "texts";
const TOP_N: &str = "top_n";
const TOP_K: &str = "top_k";
const RETURN_DOCUMENTS: &str = "return_documents";
const RETURN_TEXT: &str = "return_text";
const RETURN_SPANS: &str = "return_spans";
const RETURN_TOKENS: &str = "return_tokens";
const METHOD: &str = "method";

/// The fields that an error may name.
pub(super) const FIELDS: [&str; 10] =
    [QUERY, DOCUMENTS, TEXTS, TOP_N, TOP_K, RETURN_DOCUMENTS, RETURN_TEXT, RETURN_SPANS, RETURN_TOKENS, METHOD];

/// The whole body.
struct Body {
    max_documents: usize,
}

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"query": "hello", "documents": ["hello world"]}"#;
    type Fields = CreateRerankRequest;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<CreateRerankRequest, A::Error> {
        let mut query = None;
        let mut documents = None;
        let mut is_tei = false;
        let mut request = CreateRerankRequest {
            query: String::new(),
            documents: Documents::default(),
            model: None,
            top_n: None,
            return_documents: false,
            return_spans: false,
            return_tokens: false,
            max_tokens_per_doc: IgnoredAny,
            method: Method::default(),
            is_tei: false,
        };
        let list = |field| DocumentList { field, max: self.max_documents };
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(name) = FIELDS.into_iter().chain([MODEL]).find(|known| *known == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            once(&mut seen, name)?;
            match name {
                QUERY => {
                    const WRONG: &str = "'query' must be a string";
                    let Value::Text(text) = map.next_value_seed(Scalar(WRONG))? else {
                        return Err(Error::custom(WRONG));
                    };
                    query = Some(text);
                }
                DOCUMENTS => documents = map.next_value_seed(list(DOCUMENTS))?.or(documents),
                TEXTS => {
                    let texts = map.next_value_seed(list(TEXTS))?;
                    is_tei |= texts.is_some();
                    documents = texts.or(documents);
                }
                MODEL => request.model = read_model(&mut map)?,
                TOP_N | TOP_K => {
                    let wrong = format!("'{name}' must be a whole number of at least 0");
                    let number = match map.next_value_seed(Scalar(&wrong))? {
                        Value::Null => None,
                        // Every number from 2^53 on is whole, and larger than any count of documents.
                        Value::Number(number) if number.as_f64() >= Some(9_007_199_254_740_992.0) => Some(usize::MAX),
                        Value::Number(number) => {
                            let number = number.as_u64().or_else(|| whole(number.as_f64()?));
                            Some(number.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| Error::custom(wrong))?)
                        }
                        _ => return Err(Error::custom(wrong)),
                    };
                    request.top_n = number.filter(|&n| n > 0);
                }
                RETURN_DOCUMENTS | RETURN_TEXT | RETURN_SPANS | RETURN_TOKENS => {
                    let wrong = format!("'{name}' must be true or false");
                    let wanted = match map.next_value_seed(Scalar(&wrong))? {
                        Value::Null => false,
                        Value::Bool(wanted) => wanted,
                        _ => return Err(Error::custom(wrong)),
                    };
                    match name {
                        RETURN_SPANS => request.return_spans = wanted,
                        RETURN_TOKENS => request.return_tokens = wanted,
                        _ => request.return_documents = wanted,
                    }
                }
                _ => {
                    let names = Method::ALL.map(|method| format!("\"{}\"", method.name()));
                    let wrong = format!("'{METHOD}' must be one of {}", names.join(", "));
                    match map.next_value_seed(Scalar(&wrong))? {
                        Value::Null => {}
                        Value::Text(text) => {
                            let method = Method::ALL.into_iter().find(|method| method.name() == text);
                            request.method = method.ok_or_else(|| Error::custom(wrong))?;
                        }
                        _ => return Err(Error::custom(wrong)),
                    }
                }
            }
        }
        let missing = |field: &str, what: &str| Error::custom(format!("'{field}' is missing: it must be {what}"));
        request.query = query.ok_or_else(|| missing(QUERY, "a string"))?;
        request.documents = documents.ok_or_else(|| missing(DOCUMENTS, DOCUMENTS_SHAPE))?;
        request.is_tei = is_tei;
        Ok(request)
    }
}

const DOCUMENTS_SHAPE: &str = "an array of strings, or of objects with the field 'text'";

/// An array of documents, or null.
struct DocumentList {
    field: &'static str,
    /// Documents that are kept.
    max: usize,
}

impl DocumentList {
    fn wrong<E: Error>(&self, found: &str) -> E {
        E::custom(format!("'{}' is {found}, and must be {DOCUMENTS_SHAPE}", self.field))
    }
}

impl<'de> DeserializeSeed<'de> for DocumentList {
    type Value = Option<Documents>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Documents>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DocumentList {
    type Value = Option<Documents>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DOCUMENTS_SHAPE)
    }

    fn visit_unit<E>(self) -> Result<Option<Documents>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Documents>, A::Error> {
        let mut documents = Documents::default();
        while documents.count < self.max {
            match seq.next_element_seed(Document { field: self.field, index: documents.count })? {
                Some(text) => documents.texts.push(text),
                None if documents.count == 0 => {
                    return Err(Error::custom(format!(
                        "'{}' is an empty array; send at least one document",
                        self.field
                    )));
                }
                None => return Ok(Some(documents)),
            }
            documents.count += 1;
        }
        // A request over the limit is refused later, with the number of its documents.
        while seq.next_element::<IgnoredAny>()?.is_some() {
            documents.count += 1;
        }
        Ok(Some(documents))
    }

    refuse!(boolean number string object);
}

/// One document: its text.
struct Document {
    field: &'static str,
    index: usize,
}

impl Document {
    fn wrong<E: Error>(&self, found: &str) -> E {
        E::custom(format!("{}[{}] is {found}, and '{}' must be {DOCUMENTS_SHAPE}", self.field, self.index, self.field))
    }
}

impl<'de> DeserializeSeed<'de> for Document {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DOCUMENTS_SHAPE)
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut text = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "text" {
                let wrong = format!(
                    "{}[{}].text is not a string, and '{}' must be {DOCUMENTS_SHAPE}",
                    self.field, self.index, self.field
                );
                let Value::Text(found) = map.next_value_seed(Scalar(&wrong))? else { return Err(Error::custom(wrong)) };
                text = Some(found);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        text.ok_or_else(|| self.wrong("an object without the field text"))
    }

    refuse!(null boolean number array);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{BodyError, parse};

    fn request(json: &str) -> Result<CreateRerankRequest, BodyError> {
        parse(json.as_bytes(), 3)
    }

    #[test]
    fn the_shapes_of_cohere_jina_and_tei_are_one_request() {
        let cohere = request(
            r#"{"model":"m","query":"q","documents":["a",{"text":"b","id":1}],"top_n":1,"max_tokens_per_doc":9}"#,
        );
        let cohere = cohere.unwrap();
        assert_eq!((cohere.documents.texts, cohere.documents.count), (vec!["a".to_owned(), "b".to_owned()], 2));
        assert_eq!(
            (cohere.top_n, cohere.method, cohere.return_documents, cohere.is_tei),
            (Some(1), Method::Combined, false, false)
        );
        let tei =
            request(r#"{"query":"q","texts":["a"],"raw_scores":false,"return_text":true,"truncate":true}"#).unwrap();
        assert!(tei.is_tei && tei.return_documents);
        let many = request(r#"{"query":"q","documents":["a"],"top_n":1e30}"#).unwrap();
        assert!(many.top_n.unwrap() > 1 << 30);
        let other = request(r#"{"query":"","documents":["a"],"top_k":0,"method":"soft","model":null}"#).unwrap();
        assert_eq!((other.top_n, other.method, other.model), (None, Method::Soft, None));
        assert_eq!(request(r#"{"query":"q","documents":["a","b","c","d"]}"#).unwrap().documents.count, 4);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_place() {
        for (json, start, field) in [
            ("{}", "'query' is missing", QUERY),
            (r#"{"query":"q"}"#, "'documents' is missing", DOCUMENTS),
            (r#"{"query":1,"documents":["a"]}"#, "'query' must be", QUERY),
            (r#"{"query":"q","documents":[]}"#, "'documents' is an empty array", DOCUMENTS),
            (r#"{"query":"q","documents":"a"}"#, "'documents' is a string", DOCUMENTS),
            (r#"{"query":"q","documents":["a",7]}"#, "documents[1] is a number", DOCUMENTS),
            (
                r#"{"query":"q","documents":[{"title":"a"}]}"#,
                "documents[0] is an object without the field text",
                DOCUMENTS,
            ),
            (r#"{"query":"q","documents":["a"],"top_n":-1}"#, "'top_n' must be", TOP_N),
            (r#"{"query":"q","documents":["a"],"method":"bm25"}"#, "'method' must be one of \"combined\"", METHOD),
            (r#"{"query":{"text":"q"},"documents":["a"]}"#, "'query' must be", QUERY),
            (r#"{"query":"q","query":"r","documents":["a"]}"#, "'query' is given more than once", QUERY),
            (r#"{"query":"q","documents":["a"],"documents":["b"]}"#, "'documents' is given more than once", DOCUMENTS),
            (r#"{"query":"q","documents":["a"],"top_n":1,"top_n":1}"#, "'top_n' is given more than once", TOP_N),
            (r#"{"query":"q","documents":["a"],"top_n":[0]}"#, "'top_n' must be", TOP_N),
            (r#"{"query":"q","documents":["a"],"top_n":1.5}"#, "'top_n' must be", TOP_N),
            (r#"{"query":"q","documents":["a"],"method":["soft"]}"#, "'method' must be one of", METHOD),
            (
                r#"{"query":"q","documents":["a"],"return_documents":{}}"#,
                "'return_documents' must be",
                RETURN_DOCUMENTS,
            ),
            (r#"{"query":"q","documents":[{"text":[]}]}"#, "documents[0].text is not a string", DOCUMENTS),
            (r#"{"query":"q","documents":["a"],"return_documents":1}"#, "'return_documents' must be", RETURN_DOCUMENTS),
            (r#"{"query":"q","documents":["a"],"return_spans":1}"#, "'return_spans' must be", RETURN_SPANS),
        ] {
            let Err(BodyError::Field { message, field: found }) = request(json) else { panic!("{json}") };
            assert!(message.starts_with(start), "{json}: {message}");
            assert_eq!(found, Some(field), "{json}: {message}");
        }
        let Err(BodyError::Field { message, .. }) = request("[]") else { panic!() };
        assert!(message.contains("\"documents\""), "{message}");
    }
}
