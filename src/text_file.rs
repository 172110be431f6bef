//! Reads text files that people write: whole files in UTF-8, with or without a byte order mark.

use std::io::ErrorKind;
use std::path::Path;

use layer0_files as files;

/// The size limit of a file in bytes. Files that people write for this program are a thousand times smaller.
const LARGEST: u64 = 64 << 20;

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Why a file is not readable text: a sentence without the path. It never quotes the content, which may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TextFileError(pub String);

impl From<String> for TextFileError {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for TextFileError {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}

/// Reads the file at `path` as text.
///
/// # Errors
/// A sentence without the path, if the file cannot be read, is a directory, is too large, or is not UTF-8.
pub fn read(path: &Path) -> Result<String, TextFileError> {
    decode(read_bytes(path)?)
}

/// Decodes `bytes` as UTF-8, without a byte order mark at the beginning.
///
/// # Errors
/// A sentence that names the encoding, if it can be recognized. It never quotes the bytes, which may be secret.
pub fn decode(bytes: Vec<u8>) -> Result<String, TextFileError> {
    // ASCII text in UTF-16 has a zero byte next to each letter. Text in UTF-8 never has a zero byte.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.iter().take(64).any(|b| *b == 0) {
        return Err("the file is not UTF-8 text; it looks like UTF-16: save it as UTF-8".into());
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        format!("line {line} is not UTF-8 text: save the file as UTF-8")
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, TextFileError> {
    let bytes = files::read(path).map_err(|e| reason(&e))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("the file is larger than {} MiB", LARGEST >> 20).into());
    }
    Ok(bytes)
}

fn reason(error: &std::io::Error) -> TextFileError {
    match error.kind() {
        ErrorKind::NotFound => "the file does not exist".into(),
        ErrorKind::PermissionDenied => "this user has no permission to read the file".into(),
        ErrorKind::NotADirectory => "a part of the path is a file and not a directory".into(),
        _ => error.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_skipped_and_other_encodings_are_named() {
        assert_eq!(decode(b"\xef\xbb\xbfa\n".to_vec()).unwrap(), "a\n");
        assert_eq!(decode(b"\xef\xbb\xbf\xef\xbb\xbfa".to_vec()).unwrap(), "\u{feff}a");
        assert_eq!(decode("grün".into()).unwrap(), "grün");
        for utf16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"a\0b\0", b"\0a\0b"] {
            assert!(decode(utf16.to_vec()).unwrap_err().to_string().contains("UTF-16"), "{utf16:?}");
        }
        let error = decode(b"a\nsk-\xff".to_vec()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("UTF-8") && !error.contains("sk-"), "{error}");
    }

    #[test]
    fn a_path_that_is_not_a_file_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("directory"));
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("does not exist"));
        let file = dir.path().join("file");
        std::fs::write(&file, "a").unwrap();
        assert_eq!(read(&file).unwrap(), "a");
        assert!(read(&file.join("b")).unwrap_err().to_string().contains("not a directory"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_a_device_is_not_read_as_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("regular file"), "{}: {error}", path.display());
        }
    }
}
