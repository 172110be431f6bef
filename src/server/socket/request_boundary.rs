//! Finds out whether a connection is exactly between two requests, for [`super::transport`], which does not parse HTTP.
//!
//! HTTP/1 has no frames, so the bytes of a body can look like the head of a request. A byte that arrives belongs to a new
//! request only if HTTP has consumed every byte before it. That is so if the bytes delivered to HTTP since the last
//! boundary are one head and the whole body that the head announces. If a head is not of the common form, or bytes of two
//! requests were delivered together, the boundaries of the connection are unknown from then on.
//!
//! # Example
//!
//! `POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n` has 47 bytes. It is delivered together with `he`, and HTTP
//! reports a body of 5 bytes. After `llo` is delivered as well, 52 = 47 + 5 bytes are delivered, and the connection is
//! between two requests.

/// The most bytes that HTTP reads first to tell HTTP/2 from HTTP/1: the length of HTTP/2's connection preface.
pub const PREFACE: usize = 24;

/// Whether a connection is between two requests.
#[derive(Debug)]
pub struct RequestBoundary {
    /// Whether the last boundary is known.
    known: bool,
    /// The number of bytes that were delivered to HTTP since the last boundary.
    delivered: u64,
    /// The length of the head, once all of it was delivered.
    head: Option<u64>,
}

impl RequestBoundary {
    /// Returns the boundary of a new connection.
    pub fn new() -> Self {
        Self { known: true, delivered: 0, head: None }
    }

    /// Records that `bytes` were delivered to HTTP. Returns whether they complete the head of a request.
    pub fn deliver(&mut self, bytes: &[u8]) -> bool {
        if !self.known {
            return false;
        }
        let before = self.delivered;
        self.delivered += bytes.len() as u64;
        let is_start_of_head = before == 0 && bytes.len() <= PREFACE && !bytes.contains(&b'\n');
        if self.head.is_some() || is_start_of_head {
            return false;
        }
        self.head = end_of_head(bytes).map(|end| before + end as u64);
        self.known = self.head.is_some();
        self.known
    }

    /// Returns whether all bytes that were delivered belong to requests that are complete. `body` is the length of the
    /// body of the current request, or `None` if HTTP has not reported it.
    pub fn is_reached(&mut self, body: Option<u64>) -> bool {
        if !self.known || self.delivered == 0 {
            return self.known;
        }
        let (Some(head), Some(body)) = (self.head, body) else { return false };
        let length = head.saturating_add(body);
        self.known = self.delivered <= length;
        if self.delivered != length {
            return false;
        }
        *self = Self::new();
        true
    }
}

/// Returns the length of the head with which `bytes` begin, or `None` if it is incomplete, or if its end is not plain:
/// every line must end in CRLF, and none but the last may be empty.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for newline in memchr::memchr_iter(b'\n', bytes) {
        match bytes.get(line..newline)? {
            b"\r" => return (line > 0).then_some(newline + 1),
            [.., b'\r'] => line = newline + 1,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n";

    #[test]
    fn a_boundary_is_after_the_head_and_the_whole_body() {
        let mut boundary = RequestBoundary::new();
        for body in [&b"hello"[..], b"\n\r\n\r\n"] {
            assert!(boundary.is_reached(None));
            assert!(boundary.deliver(&[HEAD, &body[..2]].concat()));
            assert!(!boundary.is_reached(None) && !boundary.is_reached(Some(5)));
            assert!(!boundary.deliver(&body[2..]));
            assert!(!boundary.is_reached(None));
            assert!(boundary.is_reached(Some(5)));
        }
        // The first read of a connection is as long as a preface.
        assert!(!boundary.deliver(&HEAD[..PREFACE - 10]));
        assert!(!boundary.is_reached(Some(0)));
        assert!(boundary.deliver(&HEAD[PREFACE - 10..]));
        assert!(boundary.is_reached(Some(0)));
    }

    #[test]
    fn boundaries_are_unknown_after_pipelined_requests_and_unusual_heads() {
        let twice = [HEAD, b"hello", HEAD].concat();
        let bare = b"POST / HTTP/1.1\nhost: x\ncontent-length: 5\n\nhello\r\n\r\n".to_vec();
        let mixed = b"POST / HTTP/1.1\r\nhost: x\n\r\n".to_vec();
        let empty = [b"\r\n", HEAD].concat();
        let incomplete = HEAD[..HEAD.len() - 1].to_vec();
        for bytes in [twice, bare, mixed, empty, incomplete] {
            let mut boundary = RequestBoundary::new();
            boundary.deliver(&bytes);
            let is_reached = (0..20).any(|body| boundary.is_reached(Some(body)));
            assert!(!is_reached, "{}", String::from_utf8_lossy(&bytes));
            boundary.deliver(b"hello");
            assert!(!boundary.is_reached(Some(5)));
        }
    }
}
