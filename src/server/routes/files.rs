//! The files of batches, as in OpenAI's API: POST and GET /v1/files, GET and DELETE /v1/files/{file_id}, and GET
//! /v1/files/{file_id}/content.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Response};
use bytes::BytesMut;
use futures_util::stream;
use tokio::io::AsyncReadExt;

use crate::batches::{BatchStore, FileRecord, Page, StorageError, StorageLimits};
use crate::openai::{
    CreateFileRequest, DeleteFileResponse, ErrorResponse, FileObjectKind, ListFilesQuery, ListFilesResponse,
    ListObject, ListOrder, OpenAiFile,
};
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::model_id::ModelId;
use crate::server::request::query::Query;
use crate::server::request::upload;

/// The size of the pieces in which a content is sent, in bytes.
const PIECE: usize = 64 << 10;

/// The largest limit of a list of files, which is also the default.
const MAX_LISTED: u64 = 10_000;

/// Returns the files and batches of the server.
///
/// # Errors
/// If the server has none.
pub fn store(context: &RequestContext) -> Result<&Arc<BatchStore>, ApiError> {
    context.state.process.batches.as_ref().ok_or_else(ApiError::batches_are_off)
}

/// Returns the limits of the configuration on what is stored.
pub fn limits(context: &RequestContext) -> StorageLimits {
    context.state.config.server.storage_limits()
}

/// Runs `work`, which may wait for the disk, on a thread that serves no connections.
///
/// # Errors
/// If `work` fails.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, ApiError> {
    // The task fails only if it panics, which the runtime has caught.
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::internal())??)
}

/// Checks the limit of a list.
///
/// # Errors
/// If the limit is 0 or more than `max`.
pub fn page_limit(limit: Option<u64>, default: u64, max: u64) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(default);
    let valid = Some(limit).filter(|limit| (1..=max).contains(limit)).and_then(|limit| usize::try_from(limit).ok());
    valid.ok_or_else(|| {
        ApiError::invalid_field(&format!("'limit' must be a whole number from 1 to {max}"), Some("limit"))
    })
}

/// Upload a file
///
/// Stores the input file of a batch. The form may have the fields `expires_after[anchor]`, which is `created_at`, and
/// `expires_after[seconds]`, from 3600 to 2592000.
#[utoipa::path(
    post,
    path = "/v1/files",
    tag = "batches",
    operation_id = "createFile",
    request_body(content = CreateFileRequest, content_type = "multipart/form-data"),
    responses((status = OK, description = "The file", body = OpenAiFile), ApiError)
)]
pub async fn create(context: RequestContext, request: Request) -> Result<Json<OpenAiFile>, ApiError> {
    let (store, limits) = (Arc::clone(store(&context)?), limits(&context));
    let upload = blocking(move || store.begin_upload(limits)).await?;
    let received = upload::receive(&context, request, upload, limits.max_file_bytes).await?;
    let lifetime = received.lifetime.unwrap_or_else(|| context.state.config.server.file_lifetime());
    let owner = context.owner();
    let file = blocking(move || received.upload.complete(owner, received.filename, lifetime)).await?;
    Ok(Json(file.describe()))
}

/// List the files
///
/// With an API key, only the files of this key are listed.
#[utoipa::path(
    get,
    path = "/v1/files",
    tag = "batches",
    operation_id = "listFiles",
    params(ListFilesQuery),
    responses(
        (status = OK, description = "The files, the newest first unless `order` says otherwise", body = ListFilesResponse),
        (status = BAD_REQUEST, description = "The query is not valid", body = ErrorResponse<'_>),
        (status = NOT_FOUND, description = "Files and batches are switched off", body = ErrorResponse<'_>),
    )
)]
pub async fn list(
    context: RequestContext,
    Query(query): Query<ListFilesQuery>,
) -> Result<Json<ListFilesResponse>, ApiError> {
    let store = store(&context)?;
    let limit = page_limit(query.limit, MAX_LISTED, MAX_LISTED)?;
    let page = Page { limit, after: query.after, ascending: query.order == Some(ListOrder::Asc) };
    let (files, has_more) = store.files(&context.owner(), query.purpose.as_deref(), &page);
    let [first_id, last_id] = [files.first(), files.last()].map(|file| file.map(|file| file.id.clone()));
    let data = files.iter().map(FileRecord::describe).collect();
    Ok(Json(ListFilesResponse { object: ListObject::List, data, first_id, last_id, has_more }))
}

/// Get one file
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    tag = "batches",
    operation_id = "retrieveFile",
    params(("file_id" = String, Path, description = "The ID of a file")),
    responses(
        (status = OK, description = "The file", body = OpenAiFile),
        (status = NOT_FOUND, description = "There is no such file, or it belongs to another API key", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "The path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn retrieve(context: RequestContext, ModelId(id): ModelId) -> Result<Json<OpenAiFile>, ApiError> {
    Ok(Json(store(&context)?.file(&context.owner(), &id)?.describe()))
}

/// Delete a file
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    tag = "batches",
    operation_id = "deleteFile",
    params(("file_id" = String, Path, description = "The ID of a file")),
    responses(
        (status = OK, description = "The file is deleted", body = DeleteFileResponse),
        (status = NOT_FOUND, description = "There is no such file, or it belongs to another API key", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "A batch still reads the file, or the path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn delete(context: RequestContext, ModelId(id): ModelId) -> Result<Json<DeleteFileResponse>, ApiError> {
    let (store, owner) = (Arc::clone(store(&context)?), context.owner());
    let deleted = id.clone();
    blocking(move || store.delete_file(&owner, &deleted)).await?;
    Ok(Json(DeleteFileResponse { id, object: FileObjectKind::File, deleted: true }))
}

/// Get the content of a file
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    tag = "batches",
    operation_id = "downloadFile",
    params(("file_id" = String, Path, description = "The ID of a file")),
    responses(
        (status = OK, description = "The content of the file", content((Vec<u8> = "application/octet-stream"))),
        (status = NOT_FOUND, description = "There is no such file, or it belongs to another API key", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "The path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn content(context: RequestContext, ModelId(id): ModelId) -> Result<Response<Body>, ApiError> {
    let store = Arc::clone(store(&context)?);
    let file = store.file(&context.owner(), &id)?;
    let bytes = file.bytes;
    let content = blocking(move || store.open_content(&file)).await?;
    let content = tokio::fs::File::from_std(content).take(bytes);
    let pieces = stream::try_unfold(content, async |mut content| {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = content.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (piece.freeze(), content)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}
