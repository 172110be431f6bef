//! The wire types, named as in OpenAI's API description. serde only: no limits of a model, no status codes.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Number;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::embedder::Input;

/// A request's inputs, whatever it asks for them.
pub trait CountInputs {
    fn count_inputs(&self) -> usize;
}

impl CountInputs for CreateEmbeddingRequest {
    fn count_inputs(&self) -> usize {
        self.input.0.len()
    }
}

impl CountInputs for CreateTokensRequest {
    fn count_inputs(&self) -> usize {
        self.input.0.len()
    }
}

impl CountInputs for CreateSimilarityRequest {
    fn count_inputs(&self) -> usize {
        self.input.0.len() + self.queries.as_ref().map_or(0, |queries| queries.0.len())
    }
}

/// The body of POST /v1/embeddings. Unknown fields are ignored.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[schema(example = json!({"input": "hello", "model": "text-embedding-3-small"}))]
pub struct CreateEmbeddingRequest {
    pub input: Inputs,
    /// The id or alias of a model. If it is missing, the default model answers.
    #[serde(default, deserialize_with = "model")]
    pub model: Option<String>,
    /// `base64` gives the same numbers as little-endian f32, in base64's standard alphabet with padding.
    #[serde(default, deserialize_with = "encoding_format")]
    #[schema(value_type = Option<EncodingFormat>, default = "float")]
    pub encoding_format: EncodingFormat,
    /// How many numbers each vector has. The vector is cut to its first numbers and scaled to length 1 again.
    #[serde(default, deserialize_with = "dimensions")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
    /// Ignored.
    #[serde(default)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub user: IgnoredAny,
}

/// The body of POST /v1/tokenize.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[schema(example = json!({"input": "hello", "model": "text-embedding-3-small"}))]
pub struct CreateTokensRequest {
    pub input: Inputs,
    /// The id or alias of a model. If it is missing, the default model answers.
    #[serde(default, deserialize_with = "model")]
    pub model: Option<String>,
}

/// The body of POST /v1/similarity.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[schema(example = json!({
    "input": ["The cat sleeps.", "A pet is resting.", "The bank raises interest rates."],
    "queries": ["a sleeping animal"],
    "model": "text-embedding-3-small"
}))]
pub struct CreateSimilarityRequest {
    pub input: Inputs,
    /// Texts to compare with the inputs. If they are missing, the inputs are compared with each other.
    #[serde(default, deserialize_with = "queries")]
    pub queries: Option<Inputs>,
    /// The id or alias of a model. If it is missing, the default model answers.
    #[serde(default, deserialize_with = "model")]
    pub model: Option<String>,
    /// How many numbers of each vector are compared.
    #[serde(default, deserialize_with = "dimensions")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
}

/// A string, a list of strings, a list of token ids, or a list of lists of token ids; here always a list.
#[derive(Debug, PartialEq)]
pub struct Inputs(pub Vec<Input>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian f32, standard alphabet, padded.
    Base64,
}

/// Values of `object`, each the only one where it stands.
macro_rules! object {
    ($name:ident, $value:ident) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $value,
        }
    };
}
object!(ListObject, List);
object!(ModelObject, Model);
object!(EmbeddingObject, Embedding);
object!(TokensObject, Tokens);
object!(SimilarityObject, Similarity);

/// The answer of POST /v1/embeddings.
// `server/write.rs` writes it, and the next two, without making one of these.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [-0.134277940, -0.42490086, -0.40635535, 0.79768670]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub struct CreateEmbeddingResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Embedding>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Embedding {
    #[schema(inline)]
    pub object: EmbeddingObject,
    /// The position of the input in the request.
    pub index: usize,
    #[schema(inline)]
    pub embedding: Vector,
}

/// A list of numbers or a base64 string, as `encoding_format` asks.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// How many tokens the vectors are the mean of.
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// The answer of POST /v1/tokenize.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "tokens", "index": 0, "ids": [21969, 28], "pieces": [" hell", "o"], "count": 2}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub struct CreateTokensResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Tokens>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    #[schema(inline)]
    pub object: TokensObject,
    /// The position of the input in the request.
    pub index: usize,
    /// Ids of the model's own vocabulary. They include special tokens if the model's mean includes them.
    pub ids: Vec<u32>,
    /// The text of each token; a byte that is not a character by itself is written as `<0xEC>`.
    pub pieces: Vec<String>,
    pub count: usize,
}

/// The answer of POST /v1/similarity.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "similarity", "index": 0, "similarity": [0.71952015, 0.45512652, -0.0101754200]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 22, "total_tokens": 22}
}))]
pub struct CreateSimilarityResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Similarity>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

/// One row of the matrix.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Similarity {
    #[schema(inline)]
    pub object: SimilarityObject,
    /// The position of the row's query in `queries` (in `input` if there are no queries).
    pub index: usize,
    /// The cosine similarity with each input.
    pub similarity: Vec<f32>,
}

/// An entry of GET /v1/models, and GET /v1/models/{id}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server"
}))]
pub struct Model {
    pub id: String,
    #[schema(inline)]
    pub object: ModelObject,
    /// Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
}

impl Model {
    pub fn new(id: impl Into<String>, created: u64) -> Self {
        Self { id: id.into(), object: ModelObject::Model, created, owned_by: "embedding-server" }
    }
}

/// GET /v1/models.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server"}]
}))]
pub struct ListModelsResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Model>,
}

/// Every error on every path.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"error": {
    "message": "What happened, and what to do about it.", "type": "invalid_request_error", "param": "input", "code": null
}}))]
pub struct ErrorResponse<'a> {
    pub error: ErrorBody<'a>,
}

#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    pub message: &'a str,
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The field of the request that is wrong.
    #[schema(required = true)]
    pub param: Option<&'a str>,
    #[schema(required = true)]
    pub code: Option<&'a str>,
}

impl PartialSchema for Inputs {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let id = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
        let ids = || ArrayBuilder::new().items(id());
        let one_of = OneOfBuilder::new()
            .item(text().description(Some("A text.")))
            .item(ArrayBuilder::new().items(text()).min_items(Some(1)).description(Some("Texts.")))
            .item(ids().min_items(Some(1)).description(Some("One input as token ids.")))
            .item(ArrayBuilder::new().items(ids()).min_items(Some(1)).description(Some("Inputs as token ids.")));
        one_of.description(Some("Token ids are cl100k_base's, unless the model's `token_input` says otherwise.")).into()
    }
}

impl ToSchema for Inputs {}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'input' to be a string, an array of strings, an array of token ids or an array of those")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text.to_owned())]))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs, A::Error> {
        let mut inputs = Vec::new();
        match seq.next_element()? {
            None => return Err(Error::custom("'input' is an empty array; send at least one input")),
            Some(Element::TokenId(first)) => {
                let mut ids = vec![first];
                while let Some(TokenId(id)) = seq.next_element()? {
                    ids.push(id);
                }
                inputs.push(Input::TokenIds(ids));
            }
            Some(Element::Input(first)) => {
                inputs.push(first);
                while let Some(element) = seq.next_element()? {
                    match element {
                        // Mixed ones too: LangChain puts "" between arrays of ids for documents that are empty.
                        Element::Input(input) => inputs.push(input),
                        Element::TokenId(id) => {
                            return Err(Error::invalid_type(
                                Unexpected::Unsigned(id.into()),
                                &"'input' to hold texts or arrays of token ids, as its first element does",
                            ));
                        }
                    }
                }
            }
        }
        Ok(Inputs(inputs))
    }
}

/// One element of an `input` array.
enum Element {
    Input(Input),
    TokenId(u32),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'input' to hold strings, token ids (whole numbers from 0) or arrays of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Input(Input::Text(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Input(Input::Text(text)))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        u32::try_from(id).map(Element::TokenId).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_f64<E: Error>(self, id: f64) -> Result<Element, E> {
        match whole(id) {
            Some(id) => self.visit_u64(id),
            None => Err(E::invalid_type(Unexpected::Float(id), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(TokenId(id)) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Element::Input(Input::TokenIds(ids)))
    }
}

struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = TokenId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("'input' to hold token ids, whole numbers from 0")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<TokenId, E> {
                u32::try_from(id).map(TokenId).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
            }

            fn visit_f64<E: Error>(self, id: f64) -> Result<TokenId, E> {
                match whole(id) {
                    Some(id) => self.visit_u64(id),
                    None => Err(E::invalid_type(Unexpected::Float(id), &self)),
                }
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// [`Inputs`] whose errors name another field.
fn queries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Inputs>, D::Error> {
    Option::deserialize(deserializer)
        .map_err(|e: D::Error| Error::custom(e.to_string().replace("'input'", "'queries'")))
}

fn model<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map_err(|_| Error::custom("'model' must be a string"))
}

fn encoding_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EncodingFormat, D::Error> {
    let wrong = || Error::custom("'encoding_format' must be \"float\" or \"base64\"");
    match Option::<String>::deserialize(deserializer).map_err(|_| wrong())?.as_deref() {
        None | Some("float") => Ok(EncodingFormat::Float),
        Some("base64") => Ok(EncodingFormat::Base64),
        Some(_) => Err(wrong()),
    }
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let wrong = || Error::custom("'dimensions' must be a whole number of at least 1");
    let Some(number) = Option::<Number>::deserialize(deserializer).map_err(|_| wrong())? else { return Ok(None) };
    number.as_u64().or_else(|| whole(number.as_f64()?)).map(Some).ok_or_else(wrong)
}

/// `5.0` is an integer too, in JSON Schema's sense and in JavaScript's.
fn whole(number: f64) -> Option<u64> {
    // Up to here every whole number is its own f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    ((0.0..=EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: &str) -> Result<Vec<Input>, String> {
        serde_json::from_str::<Inputs>(json).map(|i| i.0).map_err(|e| e.to_string())
    }

    fn text(s: &str) -> Input {
        Input::Text(s.to_owned())
    }

    #[test]
    fn the_four_shapes_of_input() {
        assert_eq!(inputs(r#""hello""#), Ok(vec![text("hello")]));
        assert_eq!(inputs(r#"["a","é\n"]"#), Ok(vec![text("a"), text("é\n")]));
        assert_eq!(inputs("[1,2,4294967295]"), Ok(vec![Input::TokenIds(vec![1, 2, u32::MAX])]));
        assert_eq!(
            inputs("[[1],[],[2,3]]"),
            Ok(vec![vec![1], vec![], vec![2, 3]].into_iter().map(Input::TokenIds).collect())
        );
    }

    #[test]
    fn an_empty_text_may_stand_among_token_ids() {
        assert_eq!(inputs(r#"[[1],""]"#), Ok(vec![Input::TokenIds(vec![1]), text("")]));
        assert_eq!(inputs(r#"["",[1]]"#), Ok(vec![text(""), Input::TokenIds(vec![1])]));
    }

    #[test]
    fn everything_else_is_an_error_that_names_input() {
        for json in [
            "[]",
            "1",
            "null",
            "true",
            "{}",
            "[1.5]",
            "[-1]",
            "[4294967296]",
            "[[1,\"a\"]]",
            "[[-1]]",
            "[null]",
            "[\"a\",1]",
            "[1,\"a\"]",
            "[1,[2]]",
            "[[[1]]]",
            "[{}]",
        ] {
            let error = inputs(json).expect_err(json);
            assert!(error.contains("'input'"), "{json}: {error}");
        }
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        assert_eq!(inputs("[1.0,2e1]"), Ok(vec![Input::TokenIds(vec![1, 20])]));
        assert_eq!(inputs("[[4294967295.0]]"), Ok(vec![Input::TokenIds(vec![u32::MAX])]));
        for json in ["[-1.0]", "[4294967296.0]", "[[0.5]]", "[1e300]", "[[1e300]]"] {
            assert!(inputs(json).is_err(), "{json}");
        }
        let request: CreateEmbeddingRequest = serde_json::from_str(r#"{"input":"a","dimensions":8.0}"#).unwrap();
        assert_eq!(request.dimensions, Some(8));
    }

    #[test]
    fn other_fields_are_optional_and_nullable() {
        let full = r#"{"input":"a","model":"m","encoding_format":"base64","dimensions":3,"user":7,"other":[{}]}"#;
        let request: CreateEmbeddingRequest = serde_json::from_str(full).unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert_eq!((request.encoding_format, request.dimensions), (EncodingFormat::Base64, Some(3)));
        let nulls = r#"{"input":"a","model":null,"encoding_format":null,"dimensions":null,"user":null}"#;
        let short: CreateEmbeddingRequest = serde_json::from_str(r#"{"input":"a"}"#).unwrap();
        assert_eq!(serde_json::from_str::<CreateEmbeddingRequest>(nulls).unwrap(), short);
        for (json, field) in [
            (r#"{"input":"a","dimensions":"3"}"#, "'dimensions'"),
            (r#"{"input":"a","dimensions":-3}"#, "'dimensions'"),
            (r#"{"input":"a","dimensions":1.5}"#, "'dimensions'"),
            (r#"{"input":"a","encoding_format":"int8"}"#, "'encoding_format'"),
            (r#"{"input":"a","model":3}"#, "'model'"),
        ] {
            let error = serde_json::from_str::<CreateEmbeddingRequest>(json).unwrap_err().to_string();
            assert!(error.contains(field), "{json}: {error}");
        }
    }
}
