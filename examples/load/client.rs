//! HTTP/1.1 on a kept connection: sends, and reads an answer to its end without looking at it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn get(&mut self, path: &str) -> Result<u16> {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")?;
        self.status()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<u16> {
        self.send(path, body, body.len())?;
        self.status()
    }

    /// A request that announces `length` bytes and has `body`.
    pub fn send(&mut self, path: &str, body: &[u8], length: usize) -> Result<()> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)
    }

    /// Reads one answer: its status.
    pub fn status(&mut self) -> Result<u16> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(ErrorKind::UnexpectedEof)?;
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name {
                "content-length" => length = value.parse().unwrap(),
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        while chunked {
            line.clear();
            self.stream.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim_end(), 16).map_err(|_| ErrorKind::UnexpectedEof)?;
            self.skip(size + 2)?;
            chunked = size > 0;
        }
        self.skip(length)?;
        Ok(status)
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        let skipped = std::io::copy(&mut self.stream.by_ref().take(length), &mut std::io::sink())?;
        if skipped == length { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}
