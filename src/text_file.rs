//! Text files that people write: read whole, UTF-8, one byte order mark at the beginning allowed.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest file that is read. The files that people write for this program are a thousand times smaller.
const LARGEST: u64 = 64 << 20;

/// How long a pipe may stay silent before its writer is given up.
const PIPE_TIMEOUT: Duration = Duration::from_secs(10);

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads `path` as text.
///
/// # Errors
/// A sentence without the path: the file cannot be read, is a directory, is too large, or is not UTF-8.
pub fn read(path: &Path) -> Result<String, String> {
    decode(read_bytes(path)?)
}

/// The text that `bytes` are in UTF-8, without a byte order mark at its beginning.
///
/// # Errors
/// A sentence that names the encoding, if it can be recognized. It never quotes the bytes, which may be secret.
pub fn decode(bytes: Vec<u8>) -> Result<String, String> {
    // ASCII text in UTF-16 has a zero byte beside each letter; UTF-8 text never has a zero byte.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.iter().take(64).any(|b| *b == 0) {
        return Err("the file is not UTF-8 text; it looks like UTF-16: save it as UTF-8".to_owned());
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

fn read_bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Opening a named pipe without a writer would otherwise wait for ever.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(|e| reason(&e))?;
    if file.metadata().map_err(|e| reason(&e))?.is_dir() {
        return Err("this is a directory; expected a file".to_owned());
    }
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    let mut last_read = Instant::now();
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => {
                bytes.extend(buffer.iter().take(n));
                last_read = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && last_read.elapsed() < PIPE_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return Err(format!("nothing was written to this pipe for {} s", PIPE_TIMEOUT.as_secs()));
            }
            Err(e) => return Err(reason(&e)),
        }
        if bytes.len() as u64 > LARGEST {
            return Err(format!("the file is larger than {} MiB", LARGEST >> 20));
        }
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "the file does not exist".to_owned(),
        ErrorKind::PermissionDenied => "this user has no permission to read the file".to_owned(),
        ErrorKind::NotADirectory => "a part of this path is a file, not a directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_order_mark_is_left_out_and_other_encodings_are_named() {
        assert_eq!(decode(b"\xef\xbb\xbfa\n".to_vec()).unwrap(), "a\n");
        assert_eq!(decode(b"\xef\xbb\xbf\xef\xbb\xbfa".to_vec()).unwrap(), "\u{feff}a");
        assert_eq!(decode("grün".into()).unwrap(), "grün");
        for utf16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"a\0b\0", b"\0a\0b"] {
            assert!(decode(utf16.to_vec()).unwrap_err().contains("UTF-16"), "{utf16:?}");
        }
        let error = decode(b"a\nsk-\xff".to_vec()).unwrap_err();
        assert!(error.contains("line 2") && error.contains("UTF-8") && !error.contains("sk-"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().contains("directory"));
        assert!(read(&dir.path().join("none")).unwrap_err().contains("does not exist"));
        let file = dir.path().join("file");
        std::fs::write(&file, "a").unwrap();
        assert_eq!(read(&file).unwrap(), "a");
        assert!(read(&file.join("b")).unwrap_err().contains("not a directory"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_without_a_writer_does_not_block_and_a_device_without_an_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(read(&pipe).unwrap(), "");
        assert!(read(Path::new("/dev/zero")).unwrap_err().contains("larger"));
    }
}
