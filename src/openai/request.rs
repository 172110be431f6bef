//! Parses request bodies. Error messages use the words of the API and not those of the parser, and inputs over the
//! limit are counted without being kept.

/// Writes the methods of a visitor for types that it does not accept. The error is that of `self.wrong(..)`.
macro_rules! refuse {
    (@null) => {
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Err(self.wrong("null"))
        }
    };
    (@boolean) => {
        fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Err(self.wrong("true or false"))
        }
    };
    (@number) => {
        fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Err(self.wrong("a number"))
        }

        fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Err(self.wrong("a number"))
        }

        fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Err(self.wrong("a number"))
        }
    };
    (@string) => {
        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(self.wrong("a string"))
        }
    };
    (@array) => {
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(self.wrong("an array"))
        }
    };
    (@object) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(self.wrong("an object"))
        }
    };
    ($($kind:ident)*) => { $(refuse!(@$kind);)* };
}
pub(super) use refuse;

mod list;

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::{
    CreateEmbeddingRequest, CreateSimilarityRequest, CreateSparseEmbeddingRequest, CreateTokensRequest, EncodingFormat,
    InputType, Inputs,
};
use super::{batch, cohere, ollama, rerank, sparse, tei};
use layer0::OutputDtype;
use layer0::retrieval::sparse::MAX_NEIGHBORS;
use layer0_files::json::{self, NonFinite};
pub(in crate::openai) use list::List;

/// Why a request body is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is not JSON.
    #[error("{0}")]
    NotJson(String),
    /// The body is JSON, but does not have the form of the request.
    #[error("{message}")]
    Field { message: String, field: Option<&'static str> },
}

/// A request type that can be parsed from a body.
pub trait ParsedRequest: Sized + Send + 'static {
    /// Whether the body may be declared as something other than JSON. curl declares a form unless it is told otherwise.
    const ANY_CONTENT_TYPE: bool = false;

    /// Reads the request from a body. Of each list of inputs the first `max_inputs` are kept, and all are counted.
    ///
    /// # Errors
    /// If the body is not a JSON object with the fields of the request.
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self>;

    /// Returns the fields that hold lists of inputs, each with the number of its inputs.
    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)>;
}

/// A request whose main field is `input`.
trait RequestWithInput: Sized {
    /// The names of the request's fields. Other fields are ignored.
    const FIELDS: &'static [&'static str];

    /// Creates the request from the values of its fields.
    fn from_fields(fields: Fields, input: Inputs) -> Self;

    /// Returns the fields that hold inputs.
    fn inputs(&self) -> impl Iterator<Item = (&'static str, &Inputs)>;
}

impl<T: RequestWithInput + Send + 'static> ParsedRequest for T {
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        let mut fields = read_object(body, Body { known: T::FIELDS, max_inputs })?;
        match fields.input.take() {
            Some(input) => Ok(T::from_fields(fields, input)),
            None => Err(Error::custom(missing(&fields.unknown, T::FIELDS))),
        }
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.inputs().map(|(field, inputs)| (field, inputs.count))
    }
}

const INPUT: &str = "input";
const QUERIES: &str = "queries";
pub(super) const MODEL: &str = "model";
const ENCODING_FORMAT: &str = "encoding_format";
pub(super) const DIMENSIONS: &str = "dimensions";
const OUTPUT_DTYPE: &str = "output_dtype";
const SENTENCES: &str = "inputs";
const INPUT_TYPE: &str = "input_type";
const EXPAND: &str = "expand";

impl RequestWithInput for CreateEmbeddingRequest {
    const FIELDS: &'static [&'static str] = &[INPUT, MODEL, ENCODING_FORMAT, DIMENSIONS, OUTPUT_DTYPE];

    fn from_fields(fields: Fields, input: Inputs) -> Self {
        let Fields { model, encoding_format, dimensions, output_dtype, .. } = fields;
        let output_dtype = output_dtype.unwrap_or_default();
        Self { input, model, encoding_format, output_dtype, dimensions, user: IgnoredAny }
    }

    fn inputs(&self) -> impl Iterator<Item = (&'static str, &Inputs)> {
        std::iter::once((INPUT, &self.input))
    }
}

impl RequestWithInput for CreateTokensRequest {
    const FIELDS: &'static [&'static str] = &[INPUT, MODEL];

    fn from_fields(Fields { model, .. }: Fields, input: Inputs) -> Self {
        Self { input, model }
    }

    fn inputs(&self) -> impl Iterator<Item = (&'static str, &Inputs)> {
        std::iter::once((INPUT, &self.input))
    }
}

impl RequestWithInput for CreateSimilarityRequest {
    const FIELDS: &'static [&'static str] = &[INPUT, QUERIES, MODEL, DIMENSIONS, SENTENCES];

    fn from_fields(Fields { queries, model, dimensions, sentences, .. }: Fields, input: Inputs) -> Self {
        Self { input, queries, model, dimensions, is_tei: sentences }
    }

    fn inputs(&self) -> impl Iterator<Item = (&'static str, &Inputs)> {
        std::iter::once((INPUT, &self.input)).chain(self.queries.as_ref().map(|queries| (QUERIES, queries)))
    }
}

impl RequestWithInput for CreateSparseEmbeddingRequest {
    const FIELDS: &'static [&'static str] = &[INPUT, MODEL, INPUT_TYPE, EXPAND];

    fn from_fields(Fields { model, input_type, expand, .. }: Fields, input: Inputs) -> Self {
        Self { input, model, input_type: input_type.unwrap_or_default(), expand }
    }

    fn inputs(&self) -> impl Iterator<Item = (&'static str, &Inputs)> {
        std::iter::once((INPUT, &self.input))
    }
}

/// The values of the fields of a body. A field with the value `null` counts as missing.
#[derive(Default)]
pub struct Fields {
    input: Option<Inputs>,
    queries: Option<Inputs>,
    model: Option<String>,
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<u64>,
    output_dtype: Option<OutputDtype>,
    /// Whether `input` and `queries` were sent as `inputs`, in the form of text-embeddings-inference.
    sentences: bool,
    input_type: Option<InputType>,
    expand: Option<u64>,
    /// The names of fields that no request has.
    unknown: Vec<String>,
}

/// Parses a body. Of each list of inputs the first `max_inputs` are kept, and all are counted.
///
/// # Errors
/// If the body is not a JSON object with the fields of the request.
pub fn parse<T: ParsedRequest>(body: &[u8], max_inputs: usize) -> Result<T, BodyError> {
    let body = json::without_mark(body);
    let error = match T::read(body, max_inputs) {
        Ok(request) => return Ok(request),
        Err(error) => error,
    };
    // JavaScript can cut a string between the two halves of a surrogate pair, and serde_json accepts only whole
    // pairs.
    match json::strict(body, NonFinite::Refused) {
        Cow::Owned(mended) => T::read(&mended, max_inputs).map_err(|error| explain(&mended, &error)),
        Cow::Borrowed(_) => Err(explain(body, &error)),
    }
}

/// Reads a body that is one JSON object.
pub(super) fn read_object<T: ReadObject>(body: &[u8], fields: T) -> serde_json::Result<T::Fields> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = json.deserialize_any(ObjectBody(fields))?;
    json.end()?;
    Ok(fields)
}

/// Converts the parser's error into one in the words of the API.
fn explain(body: &[u8], error: &serde_json::Error) -> BodyError {
    let text = error.to_string();
    if error.is_data() {
        let position = format!(" at line {} column {}", error.line(), error.column());
        let message = text.strip_suffix(&position).unwrap_or(&text).to_owned();
        let mut fields = [INPUT, QUERIES, MODEL, ENCODING_FORMAT, DIMENSIONS, OUTPUT_DTYPE, INPUT_TYPE, EXPAND]
            .into_iter()
            .chain(batch::FIELDS)
            .chain(rerank::FIELDS)
            .chain(sparse::FIELDS)
            .chain(cohere::FIELDS)
            .chain(ollama::FIELDS)
            .chain(tei::FIELDS);
        let named = message.split('\'').nth(1);
        return BodyError::Field { field: fields.find(|field| named == Some(field)), message };
    }
    let before = body.split(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(|line| line.len() + 1);
    let place = before.sum::<usize>() + error.column();
    BodyError::NotJson(if body.iter().all(u8::is_ascii_whitespace) {
        "it is empty".to_owned()
    } else if let Err(error) = std::str::from_utf8(body) {
        format!("it is not UTF-8 (the first invalid byte is number {})", error.valid_up_to() + 1)
    } else if error.is_eof() {
        format!("it ends before it is complete, after {} bytes", body.len())
    } else {
        format!("it is not valid JSON at byte {place}")
    })
}

const SHAPES: &str = "a string, an array of strings, an array of token IDs or an array of arrays of token IDs";

/// Names of fields in other APIs, or misnamed fields, that clients send instead of `input`.
const INSTEAD_OF_INPUT: [&str; 10] =
    ["text", "texts", "prompt", "content", "contents", "sentence", "sentences", "document", "documents", "data"];

fn missing(unknown: &[String], known: &[&str]) -> String {
    let mut message = format!("'{INPUT}' is missing: it must be {SHAPES}");
    for name in unknown {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        let is_meant = |field: &&&str| {
            let field = field.replace('_', "");
            strsim::osa_distance(&plain, &field) <= field.len() / 4
                || (field == INPUT && INSTEAD_OF_INPUT.contains(&plain.as_str()))
        };
        if let Some(meant) = known.iter().find(is_meant) {
            message.push_str(&format!("; you sent {name:?}, did you mean '{meant}'?"));
        }
    }
    message
}

/// Deserializes the whole body.
struct Body {
    known: &'static [&'static str],
    max_inputs: usize,
}

/// How many names of unknown fields are kept, and how many characters of each.
const UNKNOWN: usize = 8;
const UNKNOWN_LENGTH: usize = 32;

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"input": "hello"}"#;
    type Fields = Fields;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut seen = Vec::new();
        while let Some(name) = map.next_key_seed(Name(self.known))? {
            let name = match name {
                Ok(name) => name,
                Err(unknown) => {
                    map.next_value::<IgnoredAny>()?;
                    if fields.unknown.len() < UNKNOWN {
                        fields.unknown.push(unknown);
                    }
                    continue;
                }
            };
            once(&mut seen, name)?;
            match name {
                INPUT => fields.input = map.next_value_seed(List { field: INPUT, max: self.max_inputs })?,
                QUERIES => fields.queries = map.next_value_seed(List { field: QUERIES, max: self.max_inputs })?,
                MODEL => fields.model = read_model(&mut map)?,
                ENCODING_FORMAT => {
                    const WRONG: &str = "'encoding_format' must be \"float\", \"base64\" or \"bytes\"";
                    fields.encoding_format = match map.next_value_seed(Scalar(WRONG))? {
                        Value::Null => None,
                        Value::Text(format) if format == "float" => Some(EncodingFormat::Float),
                        Value::Text(format) if format == "base64" => Some(EncodingFormat::Base64),
                        Value::Text(format) if format == "bytes" => Some(EncodingFormat::Bytes),
                        _ => return Err(Error::custom(WRONG)),
                    };
                }
                OUTPUT_DTYPE => {
                    const WRONG: &str =
                        "'output_dtype' must be \"float\", \"int8\", \"uint8\", \"binary\" or \"ubinary\"";
                    fields.output_dtype = match map.next_value_seed(Scalar(WRONG))? {
                        Value::Null => None,
                        Value::Text(name) => Some(OutputDtype::named(&name).ok_or_else(|| Error::custom(WRONG))?),
                        _ => return Err(Error::custom(WRONG)),
                    };
                }
                SENTENCES => {
                    if let Some(inputs) = tei::read_sentences(&mut map, self.max_inputs)? {
                        fields.input = Some(inputs.sentences);
                        fields.queries = Some(inputs.source_sentence);
                        fields.sentences = true;
                    }
                }
                INPUT_TYPE => {
                    const WRONG: &str = "'input_type' must be \"query\" or \"document\"";
                    fields.input_type = match map.next_value_seed(Scalar(WRONG))? {
                        Value::Null => None,
                        Value::Text(name) => Some(InputType::named(&name).ok_or_else(|| Error::custom(WRONG))?),
                        _ => return Err(Error::custom(WRONG)),
                    };
                }
                EXPAND => {
                    const WRONG: &str = "'expand' must be a whole number from 0 to 64";
                    fields.expand = read_whole(&mut map, WRONG)?;
                    if fields.expand.is_some_and(|expand| expand > MAX_NEIGHBORS as u64) {
                        return Err(Error::custom(WRONG));
                    }
                }
                _ => {
                    const WRONG: &str = "'dimensions' must be a whole number of at least 1";
                    fields.dimensions = read_whole(&mut map, WRONG)?;
                }
            }
        }
        Ok(fields)
    }
}

/// Reads the fields of a body.
pub(super) trait ReadObject {
    /// A body, for the error if there is no object.
    const EXAMPLE: &'static str;
    type Fields;

    fn read<'de, A: MapAccess<'de>>(self, map: A) -> Result<Self::Fields, A::Error>;
}

/// Deserializes a body, which must be an object.
struct ObjectBody<T>(T);

impl<T: ReadObject> ObjectBody<T> {
    fn wrong<E: Error>(self, found: &str) -> E {
        E::custom(format!("the body must be a JSON object such as {}, but it is {found}", T::EXAMPLE))
    }
}

impl<'de, T: ReadObject> Visitor<'de> for ObjectBody<T> {
    type Value = T::Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T::Fields, A::Error> {
        self.0.read(map)
    }

    refuse!(null boolean number string array);
}

/// Reads a whole number of at least 0, or null. For any other value, the error is `wrong`.
pub(super) fn read_whole<'de, A: MapAccess<'de>>(map: &mut A, wrong: &str) -> Result<Option<u64>, A::Error> {
    match map.next_value_seed(Scalar(wrong))? {
        Value::Null => Ok(None),
        Value::Number(number) => {
            let number = number.as_u64().or_else(|| whole(number.as_f64()?));
            Ok(Some(number.ok_or_else(|| Error::custom(wrong))?))
        }
        _ => Err(Error::custom(wrong)),
    }
}

/// Adds the name of a field to those that the body has had.
///
/// # Errors
/// If the body has had the field before. JSON leaves open which of the two values counts.
pub(super) fn once<E: Error>(seen: &mut Vec<&'static str>, name: &'static str) -> Result<(), E> {
    if seen.contains(&name) {
        return Err(E::custom(format!("'{name}' is given more than once")));
    }
    seen.push(name);
    Ok(())
}

/// Reads the value of the field `model`. An empty name means the default model.
pub(super) fn read_model<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<String>, A::Error> {
    const WRONG: &str = "'model' must be a string";
    match map.next_value_seed(Scalar(WRONG))? {
        Value::Null => Ok(None),
        Value::Text(model) => Ok(Some(model).filter(|model| !model.is_empty())),
        _ => Err(Error::custom(WRONG)),
    }
}

/// Deserializes the name of a field: a known one, or the text of an unknown one.
struct Name(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Result<&'static str, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Result<&'static str, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let known = self.0.iter().find(|known| **known == name).copied();
        Ok(known.ok_or_else(|| name.chars().take(UNKNOWN_LENGTH).collect()))
    }
}

/// Deserializes a value that is neither an array nor an object. For these, the error has this message.
pub(super) struct Scalar<'a>(pub &'a str);

pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
}

impl<'de> DeserializeSeed<'de> for Scalar<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom(self.0))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(Error::custom(self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(Error::custom(self.0))
    }
}

/// Returns `number` as an integer if it is one: `5.0` is an integer too, as in JSON Schema and JavaScript.
pub(super) fn whole(number: f64) -> Option<u64> {
    // Up to this number, every integer has an exact f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    ((0.0..=EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0::embedder::Input;

    fn request(json: &str) -> Result<CreateEmbeddingRequest, BodyError> {
        parse(json.as_bytes(), 2048)
    }

    fn inputs(json: &str) -> Vec<Input> {
        request(&format!(r#"{{"input":{json}}}"#)).unwrap().input.list
    }

    fn text(s: &str) -> Input {
        Input::Text(s.to_owned())
    }

    /// Returns the error message, which must name `field` and contain none of the parser's words.
    fn refused(json: &str, field: &'static str) -> String {
        let Err(BodyError::Field { message, field: found }) = request(json) else { panic!("{json}") };
        assert_eq!(found, Some(field), "{json}: {message}");
        for word in ["expected", "invalid", "line", "column", "u32", "u64", "i64", "sequence", "unit", "`"] {
            assert!(!message.contains(word), "{json}: {message}");
        }
        message
    }

    #[test]
    fn all_four_shapes_of_input_are_parsed() {
        assert_eq!(inputs(r#""hello""#), [text("hello")]);
        assert_eq!(inputs(r#"["a","é\n"]"#), [text("a"), text("é\n")]);
        assert_eq!(inputs("[1,2,4294967295]"), [Input::TokenIds(vec![1, 2, u32::MAX])]);
        assert_eq!(inputs("[[1],[],[2,3]]"), [vec![1], vec![], vec![2, 3]].map(Input::TokenIds));
        assert_eq!(inputs("[1.0,2e1]"), [Input::TokenIds(vec![1, 20])]);
        // LangChain puts an empty text between arrays of token IDs.
        assert_eq!(inputs(r#"[[1],""]"#), [Input::TokenIds(vec![1]), text("")]);
        assert_eq!(inputs(r#"["",[4294967295.0]]"#), [text(""), Input::TokenIds(vec![u32::MAX])]);
    }

    #[test]
    fn an_invalid_input_is_named_with_its_position() {
        for (json, place) in [
            ("[]", "'input' is an empty array"),
            ("1", "'input' is a number"),
            ("-1", "'input' is a number"),
            ("1.5", "'input' is a number"),
            ("true", "'input' is true"),
            ("{}", "'input' is an object"),
            ("null", "'input' is missing"),
            ("[1.5]", "input[0] is 1.5,"),
            ("[1,-1]", "input[1] is -1,"),
            ("[4294967296]", "input[0] is 4294967296,"),
            ("[1,4294967296.0]", "input[1] is 4294967296,"),
            (r#"[[1,"a"]]"#, "input[0][1] is a string"),
            ("[[1],[2,-1]]", "input[1][1] is -1"),
            ("[[0.5]]", "input[0][0] is 0.5"),
            (r#"["a",null]"#, "input[1] is null"),
            ("[[null]]", "input[0][0] is null"),
            ("[false]", "input[0] is false"),
            (r#"["a",1]"#, "input[1] is the number 1"),
            (r#"[1,"a"]"#, "input[1] is a string"),
            ("[1,[2]]", "input[1] is an array"),
            ("[[[1]]]", "input[0][0] is an array"),
            ("[[true]]", "input[0][0] is true"),
            ("[[{}]]", "input[0][0] is an object"),
            (r#"["a",{}]"#, "input[1] is an object"),
            ("[1e300]", "input[0] is 1"),
        ] {
            let message = refused(&format!(r#"{{"input":{json}}}"#), "input");
            assert!(message.starts_with(place), "{json}: {message}");
        }
    }

    #[test]
    fn a_missing_input_is_reported_with_the_misnamed_field() {
        assert!(!refused(r#"{"model":"m"}"#, "input").contains("did you mean"));
        for sent in ["inputs", "Input", "text", "texts", "prompt", "imput", "inptu", "documents"] {
            let message = refused(&format!(r#"{{"{sent}":"a"}}"#), "input");
            assert!(message.contains(&format!("you sent {sent:?}, did you mean 'input'?")), "{message}");
        }
        let message = refused(r#"{"encodingFormat":"float","dimension":3,"somewhat":1}"#, "input");
        assert!(message.contains("\"encodingFormat\", did you mean 'encoding_format'?"), "{message}");
        assert!(message.contains("\"dimension\", did you mean 'dimensions'?") && !message.contains("somewhat"));
        let long = "inputs".repeat(100_000);
        assert!(refused(&format!(r#"{{"{long}":"a"}}"#), "input").len() < 300);
    }

    #[test]
    fn other_fields_are_optional_and_nullable() {
        let full = r#"{"input":"a","model":"m","encoding_format":"base64","dimensions":8.0,"user":7,"other":[{}]}"#;
        let full = request(full).unwrap();
        assert_eq!(full.model.as_deref(), Some("m"));
        assert_eq!((full.encoding_format, full.dimensions), (Some(EncodingFormat::Base64), Some(8)));
        let short = request(r#"{"input":"a"}"#);
        let nulls = r#"{"input":"a","model":null,"encoding_format":null,"dimensions":null,"user":null}"#;
        assert_eq!(request(nulls), short);
        assert_eq!(request(r#"{"input":"a","model":"","user":7}"#), short);
        assert_eq!(short.unwrap().encoding_format, None);
        let similarity = r#"{"input":"a","queries":null,"model":"","dimensions":null}"#;
        let similarity: CreateSimilarityRequest = parse(similarity.as_bytes(), 9).unwrap();
        assert_eq!((similarity.queries, similarity.model, similarity.dimensions), (None, None, None));
        for (json, field) in [
            (r#"{"input":"a","dimensions":"3"}"#, DIMENSIONS),
            (r#"{"input":"a","dimensions":-3}"#, DIMENSIONS),
            (r#"{"input":"a","dimensions":1.5}"#, DIMENSIONS),
            (r#"{"input":"a","dimensions":[3]}"#, DIMENSIONS),
            (r#"{"input":"a","encoding_format":"int8"}"#, ENCODING_FORMAT),
            (r#"{"input":"a","encoding_format":true}"#, ENCODING_FORMAT),
            (r#"{"input":"a","model":3}"#, MODEL),
            (r#"{"input":"a","model":{"id":"m"}}"#, MODEL),
            (r#"{"input":"a","model":"m","model":"n"}"#, MODEL),
        ] {
            refused(json, field);
        }
        let similarity: Result<CreateSimilarityRequest, _> = parse(br#"{"input":"a","queries":["b",null]}"#, 9);
        let Err(BodyError::Field { message, field: Some(QUERIES) }) = similarity else { panic!("{similarity:?}") };
        assert!(message.starts_with("queries[1] is null"), "{message}");
    }

    #[test]
    fn invalid_json_is_reported_without_the_parsers_words() {
        let told = |body: &[u8]| match parse::<CreateTokensRequest>(body, 9) {
            Err(BodyError::NotJson(problem)) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(b" \n"), "it is empty");
        assert_eq!(told(br#"{"input":"a"#), "it ends before it is complete, after 11 bytes");
        assert_eq!(told(b"{\"input\":\n\"a\",}"), "it is not valid JSON at byte 15");
        assert_eq!(told(b"{\"input\":\"a\"} x"), "it is not valid JSON at byte 15");
        assert_eq!(told(b"{\"input\":\"a\xff\"}"), "it is not UTF-8 (the first invalid byte is number 12)");
        for body in ["null", "true", "1", "-1", "0.5", "\"a\"", "[\"a\"]"] {
            let Err(BodyError::Field { message, field: None }) = request(body) else { panic!("{body}") };
            assert!(message.starts_with("the body must be a JSON object"), "{message}");
        }
    }

    #[test]
    fn unpaired_surrogates_are_replaced_in_every_string() {
        for (sent, expected) in [
            (r"bad \ud83d", "bad \u{fffd}"),
            (r"\ud83d\ude00", "😀"),
            (r"\uDE00\ud83d\ude00\uD83D", "\u{fffd}😀\u{fffd}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud83d\n\ude00", "\u{fffd}\n\u{fffd}"),
            (r"\\ud83d \ud83dx", "\\ud83d \u{fffd}x"),
            (r"\ud83d\u0041", "\u{fffd}A"),
            (r"\udbff", "\u{fffd}"),
            (r"\ud7ff\ue000\udfff", "\u{d7ff}\u{e000}\u{fffd}"),
        ] {
            assert_eq!(inputs(&format!(r#"["ok","{sent}"]"#)), [text("ok"), text(expected)], "{sent}");
            let model = request(&format!(r#"{{"x\ud800":"\udc00","input":"a","model":"{sent}"}}"#)).unwrap().model;
            assert_eq!(model.as_deref(), Some(expected));
        }
        for wrong in [r#"{"input":"\ud8"#, r#"{"input":"\ud83g"}"#, r#"{"input":"\ud83d"#, "\\"] {
            assert!(matches!(request(wrong), Err(BodyError::NotJson(_))), "{wrong}");
        }
    }

    #[test]
    fn one_byte_order_mark_is_skipped() {
        assert_eq!(request("\u{feff}{\"input\":\"\u{feff}a\"}").unwrap().input.list, [text("\u{feff}a")]);
        assert!(request("\u{feff}\u{feff}{\"input\":\"a\"}").is_err());
    }

    #[test]
    fn inputs_over_the_limit_are_counted_and_not_kept() {
        for item in ["\"\"", "[]", "\"a\"", "[1]"] {
            let list = vec![item; 1000].join(",");
            let body = format!(r#"{{"input":[{list}],"queries":[{list},{list}]}}"#);
            let request: CreateSimilarityRequest = parse(body.as_bytes(), 10).unwrap();
            assert_eq!(request.lists().collect::<Vec<_>>(), [(INPUT, 1000), (QUERIES, 2000)]);
            assert_eq!((request.input.list.len(), request.queries.unwrap().list.len()), (10, 10));
        }
    }
}
