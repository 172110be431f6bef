//! A client for HTTP/1.1 on a persistent connection. It reads each response to its end and discards the body.

use std::io::{ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const SLOWEST: Duration = Duration::from_secs(120);

pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub async fn get(&mut self, path: &str) -> Result<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.status().await
    }

    pub async fn post(&mut self, path: &str, body: &[u8]) -> Result<u16> {
        self.send(path, body, body.len()).await?;
        self.status().await
    }

    /// Sends a request with `body` whose `Content-Length` is `length`.
    pub async fn send(&mut self, path: &str, body: &[u8], length: usize) -> Result<()> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await
    }

    /// Reads one response and returns its status.
    async fn status(&mut self) -> Result<u16> {
        tokio::time::timeout(SLOWEST, self.answer()).await?
    }

    async fn answer(&mut self) -> Result<u16> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(ErrorKind::UnexpectedEof)?;
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name {
                "content-length" => length = value.parse().unwrap(),
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        while chunked {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let size = u64::from_str_radix(line.trim_end(), 16).map_err(|_| ErrorKind::UnexpectedEof)?;
            self.skip(size + 2).await?;
            chunked = size > 0;
        }
        self.skip(length).await?;
        Ok(status)
    }

    async fn skip(&mut self, length: u64) -> Result<()> {
        let skipped = tokio::io::copy_buf(&mut (&mut self.stream).take(length), &mut tokio::io::sink()).await?;
        if skipped == length { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}
