//! Receives a file as multipart/form-data and writes it to disk while it arrives.
//!
//! Only what has arrived and is not written yet takes memory and counts as weight of the request: at most [`BURST`] bytes at a time, because
//! the next bytes are read from the connection only after these are written.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Body as _;
use multer::{Field, Multipart};
use tokio::io::AsyncWriteExt;

use super::body::{CHECK_INTERVAL, ProgressWindow};
use super::coding;
use super::context::RequestContext;
use crate::batches::{Upload, too_large};
use crate::openai::{ExpiresAfterFields, FilePurpose, LIFETIME};
use crate::server::error::ApiError;
use crate::server::state::admission::RequestWeight;
use crate::server::state::clients::{BudgetedRequest, WINDOW};

/// How many bytes are read from the connection before they are written.
const BURST: u64 = 64 << 10;

/// The most bytes of a form that are not the content of a field: headers, boundaries, and what precedes the first of them.
const MAX_FRAMING: u64 = 256 << 10;

/// The most bytes of the body beside the file.
const MAX_BESIDE_FILE: u64 = 1 << 20;

/// The longest value of a field other than the file, in bytes.
const MAX_VALUE: usize = 1 << 10;

/// The longest name of a file that is kept, in characters.
const MAX_FILENAME: usize = 255;

/// The longest name of a field, in bytes.
const MAX_NAME: usize = 64;

/// The most fields of a form.
const MAX_FIELDS: usize = 64;

/// A file that has arrived and is on disk.
pub struct ReceivedFile {
    pub upload: Upload,
    pub filename: String,
    /// After how many seconds the file is to be deleted, if the client says so.
    pub lifetime: Option<u64>,
}

/// Receives the file of a form whose other fields are `purpose`, `expires_after[anchor]` and `expires_after[seconds]`, or `expires_after` in
/// JSON.
///
/// # Errors
/// If the body is not such a form, is too large, arrives too slowly, or cannot be stored.
pub async fn receive(
    context: &RequestContext,
    request: Request,
    mut upload: Upload,
    max_file_bytes: u64,
) -> Result<ReceivedFile, ApiError> {
    let headers = request.headers();
    let content_type = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    let boundary = multer::parse_boundary(content_type).map_err(|_| ApiError::not_multipart(content_type))?;
    coding::check_transfer(headers)?;
    if !coding::content_codings(headers)?.is_empty() {
        return Err(ApiError::compressed_form());
    }
    let body = request.into_body();
    let max = max_file_bytes.saturating_add(MAX_BESIDE_FILE);
    if body.size_hint().exact().is_some_and(|size| size > max) {
        return Err(too_large(max_file_bytes).into());
    }
    let weight = context.weight.as_ref();
    if let Some(weight) = weight {
        weight.announce(BURST)?;
        weight.wait.begin(0);
    }
    let arrived = Arc::new(Arrived::default());
    let (chunks, seen) = (Chunks::new(body, weight, &arrived), Arc::clone(&arrived));
    let mut form = FormReader { multipart: Multipart::new(chunks, boundary), weight: weight.cloned(), arrived };
    let mut window = ProgressWindow::new(weight.map_or(WINDOW, |weight| weight.window()));
    let received = {
        let mut reading = std::pin::pin!(form.read(&mut upload));
        loop {
            if let Ok(received) = tokio::time::timeout(CHECK_INTERVAL.min(window.length()), &mut reading).await {
                break received?;
            }
            window.check(seen.all.load(Ordering::Relaxed), weight)?;
        }
    };
    if let Some(weight) = weight {
        weight.body_arrived();
    }
    let Fields { filename, purpose, anchor, seconds, whole } = received;
    check_purpose(purpose.as_deref())?;
    let filename = filename.ok_or_else(|| {
        ApiError::invalid_field("'file' is missing: send the file in a field of this name", Some("file"))
    })?;
    Ok(ReceivedFile { upload, filename, lifetime: lifetime(anchor, seconds, whole.as_deref())? })
}

fn check_purpose(purpose: Option<&str>) -> Result<(), ApiError> {
    const WRONG: &str = "'purpose' must be \"batch\": this server stores only the input files of batches";
    if purpose == Some(FilePurpose::Batch.name()) {
        Ok(())
    } else {
        Err(ApiError::invalid_field(WRONG, Some("purpose")))
    }
}

fn lifetime(
    mut anchor: Option<String>,
    mut seconds: Option<String>,
    whole: Option<&str>,
) -> Result<Option<u64>, ApiError> {
    const WRONG: &str =
        "'expires_after' must have the anchor \"created_at\" and a whole number of seconds from 3600 to 2592000";
    let wrong = || ApiError::invalid_field(WRONG, Some("expires_after"));
    if let Some(whole) = whole {
        let fields: ExpiresAfterFields = serde_json::from_str(whole).map_err(|_| wrong())?;
        (anchor, seconds) = (Some(fields.anchor), Some(fields.seconds.to_string()));
    }
    match (anchor.as_deref(), seconds.as_deref().map(str::parse)) {
        (None, None) => Ok(None),
        (Some("created_at"), Some(Ok(seconds))) if LIFETIME.contains(&seconds) => Ok(Some(seconds)),
        _ => Err(wrong()),
    }
}

/// The fields of a form, without the content of the file.
#[derive(Default)]
struct Fields {
    filename: Option<String>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    /// `expires_after` in JSON.
    whole: Option<String>,
}

struct FormReader {
    multipart: Multipart<'static>,
    weight: Option<Arc<RequestWeight>>,
    arrived: Arc<Arrived>,
}

impl FormReader {
    async fn read(&mut self, upload: &mut Upload) -> Result<Fields, ApiError> {
        let mut fields = Fields::default();
        for _ in 0..=MAX_FIELDS {
            let Some(mut field) = self.multipart.next_field().await.map_err(malformed)? else { return Ok(fields) };
            let (weight, arrived) = (self.weight.as_deref(), &*self.arrived);
            let name = field.name().unwrap_or_default().to_owned();
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-[]".contains(&byte);
            if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(is_plain) {
                return Err(ApiError::malformed_form(
                    "the name of a field must have 1 to 64 letters, digits, _, -, [ or ]",
                ));
            }
            let value = match name.as_str() {
                "file" => {
                    let filename = field.file_name().unwrap_or("file").chars().take(MAX_FILENAME).collect();
                    if fields.filename.replace(filename).is_some() {
                        return Err(ApiError::invalid_field("'file' is given more than once", Some("file")));
                    }
                    write_file(&mut field, upload, weight, arrived).await?;
                    continue;
                }
                "purpose" => Some(&mut fields.purpose),
                "expires_after" => Some(&mut fields.whole),
                "expires_after[anchor]" => Some(&mut fields.anchor),
                "expires_after[seconds]" => Some(&mut fields.seconds),
                _ => None,
            };
            let text = read_value(&mut field, weight, arrived).await?;
            if let Some(value) = value {
                *value = Some(text);
            }
        }
        Err(ApiError::malformed_form(&format!("it has more than {MAX_FIELDS} fields")))
    }
}

/// Writes the content of the file to disk.
async fn write_file(
    field: &mut Field<'static>,
    upload: &mut Upload,
    weight: Option<&RequestWeight>,
    arrived: &Arrived,
) -> Result<(), ApiError> {
    let failed = |error: std::io::Error| {
        tracing::error!(%error, "an upload cannot be written to the directory of batches");
        ApiError::internal()
    };
    let mut content = tokio::fs::File::from_std(upload.take_content().ok_or_else(ApiError::internal)?);
    while let Some(chunk) = field.chunk().await.map_err(malformed)? {
        upload.reserve(chunk.len() as u64)?;
        content.write_all(&chunk).await.map_err(failed)?;
        content.flush().await.map_err(failed)?;
        arrived.taken(chunk.len() as u64, weight);
    }
    content.sync_all().await.map_err(failed)
}

/// Returns the value of a field other than the file, cut to its longest length.
async fn read_value(
    field: &mut Field<'static>,
    weight: Option<&RequestWeight>,
    arrived: &Arrived,
) -> Result<String, ApiError> {
    let mut value = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(malformed)? {
        let room = (MAX_VALUE + 1).saturating_sub(value.len()).min(chunk.len());
        value.extend_from_slice(chunk.get(..room).unwrap_or_default());
        arrived.taken(chunk.len() as u64, weight);
        if arrived.beside_file.fetch_add(chunk.len() as u64, Ordering::Relaxed) > MAX_BESIDE_FILE {
            return Err(ApiError::malformed_form("its fields beside the file are too long"));
        }
    }
    Ok(String::from_utf8_lossy(&value).into_owned())
}

/// The bytes of a body that have arrived.
#[derive(Default)]
struct Arrived {
    all: AtomicUsize,
    /// The bytes that were not taken as the content of a field. They are in memory, or were headers and boundaries.
    untaken: AtomicU64,
    /// The bytes that were taken as the content of a field other than the file.
    beside_file: AtomicU64,
}

impl Arrived {
    /// Records that the content of a field was taken from the form and needs no memory any more.
    fn taken(&self, bytes: u64, weight: Option<&RequestWeight>) {
        let _ = self
            .untaken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |untaken| Some(untaken.saturating_sub(bytes)));
        if let Some(weight) = weight {
            weight.release(bytes);
        }
    }
}

/// The chunks of a body, in bursts: the parser takes whatever has arrived, so the stream pauses after each burst.
struct Chunks {
    body: Body,
    weight: Option<Arc<RequestWeight>>,
    arrived: Arc<Arrived>,
    burst: u64,
}

impl Chunks {
    fn new(body: Body, weight: Option<&Arc<RequestWeight>>, arrived: &Arc<Arrived>) -> Self {
        Self { body, weight: weight.cloned(), arrived: Arc::clone(arrived), burst: 0 }
    }

    fn add(&self, chunk: &Bytes) -> Result<(), ApiError> {
        let bytes = chunk.len() as u64;
        self.arrived.all.fetch_add(chunk.len(), Ordering::Relaxed);
        let untaken = self.arrived.untaken.fetch_add(bytes, Ordering::Relaxed);
        if untaken > MAX_FRAMING {
            return Err(ApiError::malformed_form("its headers and boundaries are too long"));
        }
        self.weight.as_ref().map_or(Ok(()), |weight| weight.arrived(bytes))
    }
}

impl Stream for Chunks {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.burst >= BURST {
            self.burst = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(StreamError(ApiError::body_cut_short())))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    self.burst = 0;
                    return Poll::Pending;
                }
            };
            let Ok(chunk) = frame.into_data() else { continue };
            self.burst += chunk.len() as u64;
            return Poll::Ready(Some(self.add(&chunk).map(|()| chunk).map_err(StreamError)));
        }
    }
}

/// An error of the stream that passes through the parser.
#[derive(Debug, thiserror::Error)]
#[error("the form did not arrive")]
struct StreamError(ApiError);

/// Converts an error of the parser. An error of the stream is returned as it was.
fn malformed(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<StreamError>() {
            Ok(error) => error.0,
            Err(_) => ApiError::body_cut_short(),
        },
        multer::Error::IncompleteStream
        | multer::Error::IncompleteHeaders
        | multer::Error::IncompleteFieldData { .. } => ApiError::malformed_form("it ends before its last boundary"),
        error => ApiError::malformed_form(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_needs_its_anchor_and_is_within_the_limits_of_openai() {
        let of = |anchor: Option<&str>, seconds: Option<&str>, whole| {
            lifetime(anchor.map(str::to_owned), seconds.map(str::to_owned), whole)
        };
        assert_eq!(of(None, None, None), Ok(None));
        assert_eq!(of(Some("created_at"), Some("3600"), None), Ok(Some(3600)));
        assert_eq!(of(None, None, Some(r#"{"anchor": "created_at", "seconds": 3600}"#)), Ok(Some(3600)));
        for (anchor, seconds, whole) in [
            (Some("created_at"), Some("3599"), None),
            (Some("created_at"), Some("2592001"), None),
            (Some("created_at"), Some("-1"), None),
            (Some("created_at"), None, None),
            (Some("now"), Some("3600"), None),
            (None, Some("3600"), None),
            (None, None, Some("{}")),
            (None, None, Some(r#"{"anchor": "created_at", "seconds": 1}"#)),
        ] {
            assert!(of(anchor, seconds, whole).is_err(), "{anchor:?} {seconds:?} {whole:?}");
        }
        assert!(check_purpose(Some("batch")).is_ok());
        assert!(check_purpose(Some("vision")).is_err() && check_purpose(None).is_err());
    }
}
