//! The types of OpenAI's files and batches: /v1/files and /v1/batches.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::ListObject;
use super::request::{ParsedRequest, ReadObject, Scalar, Value, once, read_object, read_whole, refuse};

object!(FileObjectKind, File);
object!(BatchObjectKind, Batch);

/// The time from now after which a file is deleted, in seconds. OpenAI's API has the same limits.
pub const LIFETIME: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// The only completion window of OpenAI's API.
pub const COMPLETION_WINDOW: &str = "24h";

/// The form of POST /v1/files. Unknown fields are ignored.
pub struct CreateFileRequest;

impl PartialSchema for CreateFileRequest {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let file = text()
            .content_media_type("application/octet-stream")
            .description(Some("The content of the file: a request on each line."));
        let purpose = text().enum_values(Some([FilePurpose::Batch.name()]));
        ObjectBuilder::new()
            .property("file", file)
            .required("file")
            .property("purpose", purpose)
            .required("purpose")
            .property("expires_after", ExpiresAfterFields::schema())
            // The names are headers of the form, which cannot have arbitrary characters.
            .property_names(Some(text().pattern(Some("^[A-Za-z0-9_\\[\\]-]{1,64}$")).build()))
            .description(Some("Unknown fields are ignored."))
            .into()
    }
}

impl ToSchema for CreateFileRequest {}

/// The purpose of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FilePurpose {
    /// An input file, which a client has uploaded.
    Batch,
    /// A file with answers, which the server has written.
    BatchOutput,
}

impl FilePurpose {
    /// Returns the name of the purpose in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

/// A file: the response of POST /v1/files and GET /v1/files/{file_id}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "file-01939f0c5a2b4c6d8e0f1a2b3c4d5e6f", "object": "file", "bytes": 120, "created_at": 1795830711, "expires_at": 1798422711,
    "filename": "requests.jsonl", "purpose": "batch", "status": "processed"
}))]
pub struct OpenAiFile {
    pub id: String,
    #[schema(inline)]
    pub object: FileObjectKind,
    /// The size of the file.
    pub bytes: u64,
    /// When the file was made, in Unix seconds.
    pub created_at: u64,
    /// When the file will be deleted, in Unix seconds.
    #[schema(required = true)]
    pub expires_at: Option<u64>,
    pub filename: String,
    #[schema(inline)]
    pub purpose: FilePurpose,
    /// Always `processed`.
    pub status: &'static str,
}

/// The response of GET /v1/files.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ListFilesResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<OpenAiFile>,
    #[schema(required = true)]
    pub first_id: Option<String>,
    #[schema(required = true)]
    pub last_id: Option<String>,
    /// Whether there are more files after the last one of this list.
    pub has_more: bool,
}

/// The response of DELETE /v1/files/{file_id}.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeleteFileResponse {
    pub id: String,
    #[schema(inline)]
    pub object: FileObjectKind,
    pub deleted: bool,
}

/// The order of a list of files by the time at which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListOrder {
    Asc,
    #[default]
    Desc,
}

/// The query of GET /v1/files.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct ListFilesQuery {
    /// Lists only files with this purpose.
    pub purpose: Option<String>,
    /// The largest number of files in the list.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u64>,
    /// The order of the files by the time at which they were made; `desc` if it is missing.
    #[param(inline)]
    pub order: Option<ListOrder>,
    /// The ID of the last file of the list before this one.
    pub after: Option<String>,
}

/// The query of GET /v1/batches.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct ListBatchesQuery {
    /// The ID of the last batch of the list before this one.
    pub after: Option<String>,
    /// The largest number of batches in the list; 20 if it is missing.
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<u64>,
}

/// The body of POST /v1/batches. Unknown fields are ignored.
#[derive(Debug, PartialEq, Eq, ToSchema)]
#[schema(example = json!({
    "input_file_id": "file-01939f0c5a2b4c6d8e0f1a2b3c4d5e6f", "endpoint": "/v1/embeddings", "completion_window": "24h"
}))]
pub struct CreateBatchRequest {
    /// The ID of an uploaded file with the purpose `batch`.
    pub input_file_id: String,
    /// Must be `/v1/embeddings`.
    #[schema(pattern = "^/v1/embeddings$")]
    pub endpoint: String,
    /// Must be `24h`.
    #[schema(pattern = "^24h$")]
    pub completion_window: String,
    /// At most 16 pairs of strings, which are kept with the batch.
    pub metadata: Option<BTreeMap<String, String>>,
    /// When the files with the answers are deleted; after `server.file_expires_after` if it is missing.
    #[schema(value_type = Option<ExpiresAfterFields>, inline)]
    pub output_expires_after: Option<u64>,
}

/// The time after which a file is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = ExpiresAfter)]
pub struct ExpiresAfterFields {
    /// Must be `created_at`.
    #[schema(pattern = "^created_at$")]
    pub anchor: String,
    #[schema(minimum = 3600, maximum = 2_592_000)]
    pub seconds: u64,
}

/// The status of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// The lines of the input file are being checked.
    Validating,
    /// The input file is not valid, or the batch could not be continued.
    Failed,
    InProgress,
    /// All requests are answered, and the files with the answers are being completed.
    Finalizing,
    Completed,
    /// The batch was not finished within its completion window.
    Expired,
    Cancelling,
    Cancelled,
}

impl BatchStatus {
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Returns the name of the status in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether the server does not work on the batch any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// Why a batch has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchError {
    pub code: String,
    pub message: String,
    /// The field of the line that is wrong.
    #[schema(required = true)]
    pub param: Option<String>,
    /// The number of the line in the input file, from 1 on.
    #[schema(required = true)]
    pub line: Option<u64>,
}

/// The reasons why a batch has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchErrors {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<BatchError>,
}

/// The numbers of requests of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct BatchRequestCounts {
    pub total: u64,
    /// Requests that were answered with embeddings.
    pub completed: u64,
    /// Requests that were answered with an error.
    pub failed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchUsage {
    /// The number of tokens over which the vectors are the mean.
    pub input_tokens: u64,
    pub input_tokens_details: InputTokensDetails,
    /// Always 0, because embeddings have no output tokens.
    pub output_tokens: u64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Always 0.
    pub cached_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Always 0.
    pub reasoning_tokens: u64,
}

impl BatchUsage {
    pub fn new(tokens: u64) -> Self {
        Self {
            input_tokens: tokens,
            input_tokens_details: InputTokensDetails { cached_tokens: 0 },
            output_tokens: 0,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: tokens,
        }
    }
}

/// A batch. All times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Batch {
    pub id: String,
    #[schema(inline)]
    pub object: BatchObjectKind,
    pub endpoint: &'static str,
    /// The model of all requests. It is known when the input file has been checked.
    #[schema(required = true)]
    pub model: Option<String>,
    #[schema(required = true)]
    pub errors: Option<BatchErrors>,
    pub input_file_id: String,
    pub completion_window: &'static str,
    #[schema(inline)]
    pub status: BatchStatus,
    /// The ID of the file with the answers to the requests that succeeded, if there are any.
    #[schema(required = true)]
    pub output_file_id: Option<String>,
    /// The ID of the file with the answers to the requests that failed, if there are any.
    #[schema(required = true)]
    pub error_file_id: Option<String>,
    pub created_at: u64,
    #[schema(required = true)]
    pub in_progress_at: Option<u64>,
    pub expires_at: u64,
    #[schema(required = true)]
    pub finalizing_at: Option<u64>,
    #[schema(required = true)]
    pub completed_at: Option<u64>,
    #[schema(required = true)]
    pub failed_at: Option<u64>,
    #[schema(required = true)]
    pub expired_at: Option<u64>,
    #[schema(required = true)]
    pub cancelling_at: Option<u64>,
    #[schema(required = true)]
    pub cancelled_at: Option<u64>,
    pub request_counts: BatchRequestCounts,
    pub usage: BatchUsage,
    #[schema(required = true)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// The response of GET /v1/batches.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ListBatchesResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Batch>,
    #[schema(required = true)]
    pub first_id: Option<String>,
    #[schema(required = true)]
    pub last_id: Option<String>,
    /// Whether there are more batches after the last one of this list.
    pub has_more: bool,
}

const INPUT_FILE_ID: &str = "input_file_id";
const ENDPOINT: &str = "endpoint";
const WINDOW: &str = "completion_window";
const METADATA: &str = "metadata";
const EXPIRES: &str = "output_expires_after";

/// The fields that an error may name.
pub(super) const FIELDS: [&str; 5] = [INPUT_FILE_ID, ENDPOINT, WINDOW, METADATA, EXPIRES];

impl ParsedRequest for CreateBatchRequest {
    fn read(body: &[u8], _: usize) -> serde_json::Result<Self> {
        read_object(body, Body)
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::empty()
    }
}

struct Body;

impl ReadObject for Body {
    const EXAMPLE: &'static str =
        r#"{"input_file_id": "file-...", "endpoint": "/v1/embeddings", "completion_window": "24h"}"#;
    type Fields = CreateBatchRequest;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<CreateBatchRequest, A::Error> {
        const FILE: &str = "'input_file_id' must be the ID of a file that was uploaded with the purpose \"batch\"";
        const PATH: &str = "'endpoint' must be \"/v1/embeddings\", the only endpoint of this server that takes batches";
        const TIME: &str = "'completion_window' must be \"24h\"";
        let (mut file, mut endpoint, mut window) = (None, None, None);
        let (mut metadata, mut output_expires_after) = (None, None);
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(name) = FIELDS.into_iter().find(|known| *known == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            once(&mut seen, name)?;
            match name {
                INPUT_FILE_ID => file = Some(text(&mut map, FILE)?),
                ENDPOINT => endpoint = Some(text(&mut map, PATH)?),
                WINDOW => window = Some(text(&mut map, TIME)?),
                METADATA => metadata = map.next_value_seed(Metadata)?,
                _ => output_expires_after = map.next_value_seed(ExpiresAfter)?,
            }
        }
        let required = |value: Option<String>, wrong: &'static str| value.ok_or_else(|| A::Error::custom(wrong));
        let endpoint = Some(required(endpoint, PATH)?).filter(|endpoint| endpoint == super::batch_line::URL);
        let window = Some(required(window, TIME)?).filter(|window| window == COMPLETION_WINDOW);
        Ok(CreateBatchRequest {
            input_file_id: required(file, FILE)?,
            endpoint: required(endpoint, PATH)?,
            completion_window: required(window, TIME)?,
            metadata,
            output_expires_after,
        })
    }
}

fn text<'de, A: MapAccess<'de>>(map: &mut A, wrong: &'static str) -> Result<String, A::Error> {
    match map.next_value_seed(Scalar(wrong))? {
        Value::Text(text) => Ok(text),
        _ => Err(Error::custom(wrong)),
    }
}

/// Reads `metadata`, or null.
struct Metadata;

impl Metadata {
    const PAIRS: usize = 16;
    const KEY: usize = 64;
    const VALUE: usize = 512;
    const WRONG: &str = "'metadata' must be an object of at most 16 strings of at most 512 characters, with names of at most 64 characters";
}

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = Option<BTreeMap<String, String>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Metadata {
    fn wrong<E: Error>(&self, _: &str) -> E {
        E::custom(Self::WRONG)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::WRONG)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = text(&mut map, Self::WRONG)?;
            let is_short = name.chars().count() <= Self::KEY && value.chars().count() <= Self::VALUE;
            if !is_short || pairs.len() == Self::PAIRS || pairs.insert(name, value).is_some() {
                return Err(Error::custom(Self::WRONG));
            }
        }
        Ok(Some(pairs))
    }

    refuse!(boolean number string array);
}

/// Reads `output_expires_after` as a number of seconds, or null.
struct ExpiresAfter;

impl ExpiresAfter {
    const WRONG: &str =
        "'output_expires_after' must be {\"anchor\": \"created_at\", \"seconds\": N} with N from 3600 to 2592000";

    fn wrong<E: Error>(&self, _: &str) -> E {
        E::custom(Self::WRONG)
    }
}

impl<'de> DeserializeSeed<'de> for ExpiresAfter {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ExpiresAfter {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::WRONG)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut seconds, mut anchored) = (None, false);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "anchor" => anchored = text(&mut map, Self::WRONG)? == "created_at",
                "seconds" => seconds = read_whole(&mut map, Self::WRONG)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match seconds.filter(|seconds| anchored && LIFETIME.contains(seconds)) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(Error::custom(Self::WRONG)),
        }
    }

    refuse!(boolean number string array);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::{BodyError, parse};

    #[test]
    fn the_fields_of_a_batch_are_checked() {
        let body = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut body = json!({"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"});
            change(&mut body);
            parse::<CreateBatchRequest>(body.to_string().as_bytes(), 1)
        };
        let full = body(&|body| {
            body["metadata"] = json!({"a": "b"});
            body["output_expires_after"] = json!({"anchor": "created_at", "seconds": 3600});
            body["unknown"] = json!([1]);
        });
        let full = full.unwrap();
        assert_eq!((full.input_file_id.as_str(), full.output_expires_after), ("file-1", Some(3600)));
        assert_eq!(full.metadata.unwrap().into_iter().collect::<Vec<_>>(), [("a".to_owned(), "b".to_owned())]);
        assert_eq!(body(&|body| body["metadata"] = json!(null)).unwrap().metadata, None);
        let many: BTreeMap<String, String> = (0..17).map(|n| (n.to_string(), String::new())).collect();
        for (field, value) in [
            ("input_file_id", json!(null)),
            ("input_file_id", json!(["a"])),
            ("endpoint", json!("/v1/chat/completions")),
            ("completion_window", json!("1h")),
            ("metadata", json!(many)),
            ("metadata", json!({"a": 1})),
            ("metadata", json!({"a": "b".repeat(513)})),
            ("metadata", json!("a")),
            ("output_expires_after", json!({"anchor": "created_at", "seconds": 3599})),
            ("output_expires_after", json!({"seconds": 3600})),
            ("output_expires_after", json!(3600)),
        ] {
            let refused = body(&|body| body[field] = value.clone()).unwrap_err();
            assert!(
                matches!(refused, BodyError::Field { field: Some(found), .. } if found == field),
                "{value}: {refused}"
            );
        }
        for field in ["input_file_id", "endpoint", "completion_window"] {
            let refused = body(&|body| drop(body.as_object_mut().unwrap().remove(field))).unwrap_err();
            assert!(matches!(refused, BodyError::Field { field: Some(found), .. } if found == field), "{refused}");
        }
    }
}
