//! Files and batches, as OpenAI's API has them, in a directory that outlives the process.
//!
//! A client uploads a file of requests, and a batch answers them in the background. This module stores files and the states of batches, and
//! reads and writes their lines. `server/batches.rs` does the work on batches, and `server/routes/files.rs` and `server/routes/batches.rs`
//! are the endpoints.
//!
//! # The directory
//!
//! ```text
//! lock                         held while a process uses the directory
//! files/file-ID.jsonl          the content of a file
//! files/file-ID.json           the record of the file; a content without a record is not complete
//! batches/batch_ID.json        the record of a batch, with its progress
//! ```
//!
//! A record is written beside its place, synchronized and renamed, so it is whole or missing. The answers of a batch are appended to the
//! contents of its output files. A [checkpoint](BatchStore::update) synchronizes the contents first, and then writes their sizes and
//! the position in the input file into the record of the batch. After an interruption the contents are cut to the sizes in the record, and the work
//! continues at the position. So each request is answered exactly once.
//!
//! For example, a batch has the lines a, b, c and d. The record says that 2 lines are done and the output has 900 bytes. The answer to c is
//! written, which makes 1350 bytes, and the process is killed. The next process cuts the output to 900 bytes and answers c again, then d.

mod directory;
mod error;
mod lines;
mod output;
mod record;
mod store;
mod upload;
mod validation;

pub use error::{StorageError, StorageErrorKind};
pub use lines::{InputLine, LineReader};
pub use output::BatchOutput;
pub use record::{BatchRecord, FileRecord, NewBatch, Owner, Progress, now};
pub use store::{BatchStore, Page, StorageLimits};
pub use upload::{Upload, too_large};
pub use validation::{CheckedLine, Validation};
