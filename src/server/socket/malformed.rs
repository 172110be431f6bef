//! Gives hyper's own responses to unreadable request heads, which have no body, a body in the format of the API.

use crate::server::error::ApiError;

/// Returns a response that replaces `bytes`, if `bytes` are hyper's own refusal of a request. `head` holds what was
/// read of the request, if one read brought all of it.
pub fn replace_hyper_refusal(bytes: &[u8], head: Option<&[u8]>) -> Option<Vec<u8>> {
    if !bytes.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let mut lines = str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?.split("\r\n");
    let status = lines.next()?.get(9..12)?;
    let (mut date, mut bare) = ("", false);
    for line in lines {
        match line {
            "content-length: 0" => bare = true,
            "connection: close" => {}
            _ if line.starts_with("date: ") => date = line,
            // This is a response of the server itself.
            _ => return None,
        }
    }
    if !bare {
        return None;
    }
    let (status, body) = ApiError::malformed_head(status, head.is_some_and(has_too_large_content_length)).into_parts();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n{date}{}\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
        if date.is_empty() { "" } else { "\r\n" },
    );
    Some([head.as_bytes(), &body].concat())
}

/// Returns whether hyper refused the head because of its Content-Length.
fn has_too_large_content_length(head: &[u8]) -> bool {
    let lines =
        head.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()?.trim_end().split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    // hyper reserves the two largest numbers for other purposes.
    lengths.any(|(_, length)| length.trim().parse::<u64>().is_ok_and(|length| length >= u64::MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_refusals_get_a_body() {
        let own = |status: &str| {
            format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\ndate: Sat, 01 Jan 2000 00:00:00 GMT\r\n\r\n")
        };
        let head = b"POST / HTTP/1.1\r\nhost: x\r\nContent-Length: 18446744073709551615\r\n\r\n".as_slice();
        for (status, head, expected) in [
            ("400 Bad Request", None, "400 Bad Request"),
            ("414 URI Too Long", None, "414 URI Too Long"),
            ("431 Request Header Fields Too Large", None, "431 Request Header Fields Too Large"),
            ("431 Request Header Fields Too Large", Some(head), "400 Bad Request"),
        ] {
            let answer = String::from_utf8(replace_hyper_refusal(own(status).as_bytes(), head).unwrap()).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {expected}\r\n")) && head.contains("\r\ndate: Sat"), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["code"], "bad_http");
        }
        for other in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
        ] {
            assert_eq!(replace_hyper_refusal(other.as_bytes(), None), None, "{other}");
        }
    }
}
