//! A Hub on the loopback interface: the API, files with their digests, and a second address that stores large files.
//! The server can cut, corrupt, delay and refuse responses, and counts bytes and requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use layer0::hub::{Hub, Settings};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const ID: &str = "org/model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that the server received.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// The last component of the path: the name of a file, or `api`.
    pub file: String,
    pub authorization: Option<String>,
    pub range: Option<(usize, usize)>,
    /// Whether the request was sent to the second address, which stores large files.
    pub stored: bool,
}

/// A fault in a response.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The response has this status and no body.
    Status(u16),
    /// The response has status 200, these header lines in place of the usual ones, and this body.
    Instead(&'static str, &'static str),
    /// The connection ends after this number of bytes of the body.
    Cut(usize),
    /// One byte of the body is changed.
    Corrupt,
    /// The server sends this number of bytes of the body, notifies the test, and then sends nothing until the client
    /// closes the connection.
    Hold(usize),
    /// The server sends this number of bytes of the body, and then one byte every few milliseconds.
    Drip(usize),
    /// The server ignores ranges and sends the whole file.
    Whole,
}

type Judge = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

struct State {
    /// The content, the SHA-256 and git's SHA-1 of each file.
    files: HashMap<String, (Vec<u8>, String, String)>,
    token: Mutex<Option<String>>,
    fault: Mutex<Judge>,
    asked: Mutex<Vec<Asked>>,
    served: AtomicU64,
    held: Mutex<Sender<()>>,
    stored_at: String,
    sha: Mutex<String>,
}

pub struct FakeHub {
    pub endpoint: String,
    state: Arc<State>,
    held: Receiver<()>,
}

impl FakeHub {
    /// Starts a server for the files of `dir` as the model [`ID`].
    pub fn start(dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|e| e.path().is_file());
        let files = entries
            .map(|e| (e.file_name().into_string().unwrap(), digested(std::fs::read(e.path()).unwrap())))
            .collect();
        let (hub, store) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let (sender, held) = channel();
        let state = Arc::new(State {
            files,
            token: Mutex::default(),
            fault: Mutex::new(Box::new(|_| None)),
            asked: Mutex::default(),
            served: AtomicU64::default(),
            held: Mutex::new(sender),
            stored_at: format!("http://{}", store.local_addr().unwrap()),
            sha: Mutex::new(COMMIT.to_owned()),
        });
        for (listener, stored) in [(hub, false), (store, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || state.connection(&stream, stored));
                }
            });
        }
        Self { endpoint, state, held }
    }

    /// Gives each response from now on the fault that `judge` returns.
    pub fn fault(&self, judge: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.state.fault.lock().unwrap() = Box::new(judge);
    }

    /// Refuses requests without this token from now on.
    pub fn demand(&self, token: &str) {
        *self.state.token.lock().unwrap() = Some(token.to_owned());
    }

    pub fn say_commit(&self, sha: &str) {
        *self.state.sha.lock().unwrap() = sha.to_owned();
    }

    /// Waits until a response is held back.
    pub fn wait_until_held(&self) {
        self.held.recv_timeout(Duration::from_secs(60)).expect("nothing was held");
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Returns the number of bytes of bodies that were sent so far.
    pub fn served(&self) -> u64 {
        self.state.served.load(Ordering::SeqCst)
    }

    /// Returns the size of a file in bytes.
    pub fn size(&self, file: &str) -> u64 {
        self.state.files[file].0.len() as u64
    }

    /// Returns settings for a cache at `cache`, with the short timeouts of tests.
    pub fn settings(&self, cache: &Path) -> Settings {
        let mut settings = Settings::new(|_| None, None);
        settings.endpoint = self.endpoint.clone();
        settings.cache = cache.to_owned();
        settings.timeout = Duration::from_secs(20);
        settings.backoff = Duration::from_millis(1);
        settings
    }

    pub fn hub(&self, cache: &Path) -> Hub {
        Hub::new(self.settings(cache))
    }
}

impl State {
    fn connection(&self, stream: &TcpStream, stored: bool) {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read_request(&mut reader, stored) {
            self.asked.lock().unwrap().push(asked.clone());
            let fault = (self.fault.lock().unwrap())(&asked);
            if self.answer(stream, &asked, fault.as_ref()).is_err() {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn answer(&self, mut stream: &TcpStream, asked: &Asked, fault: Option<&Fault>) -> std::io::Result<()> {
        let token = self.token.lock().unwrap().clone();
        let refused = token.filter(|t| !asked.stored && asked.authorization != Some(format!("Bearer {t}")));
        match fault {
            Some(Fault::Status(status)) => return write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n"),
            Some(Fault::Instead(headers, body)) => {
                let body = if asked.method == "HEAD" { "" } else { body };
                let length =
                    if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
                return write!(stream, "HTTP/1.1 200 OK\r\n{headers}{length}\r\n{body}");
            }
            _ if refused.is_some() => {
                let status = if asked.authorization.is_some() { 403 } else { 401 };
                return write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nx-error-code: GatedRepo\r\nx-error-message: Access is restricted\r\ncontent-length: 0\r\n\r\n"
                );
            }
            _ => {}
        }
        if asked.file == "api" {
            let siblings: Vec<_> = self.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            let sha = self.sha.lock().unwrap().clone();
            let body =
                serde_json::json!({"sha": sha, "siblings": siblings, "cardData": {"license": "mit"}}).to_string();
            return self.body(
                stream,
                asked,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
                body.as_bytes(),
                fault,
            );
        }
        let Some((content, sha256, git)) = self.files.get(&asked.file) else {
            return write!(stream, "HTTP/1.1 404 x\r\nx-error-code: EntryNotFound\r\ncontent-length: 0\r\n\r\n");
        };
        let large = asked.file.ends_with(".safetensors");
        if large && !asked.stored {
            let (size, at) = (content.len(), &self.stored_at);
            let file = &asked.file;
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: {at}/signed/{file}\r\nx-linked-etag: \"{sha256}\"\r\nx-linked-size: {size}\r\ncontent-length: 0\r\n\r\n"
            );
        }
        let etag = format!("etag: \"{git}\"\r\ncontent-type: text/plain\r\n");
        match asked.range.filter(|_| !matches!(fault, Some(Fault::Whole))) {
            Some((from, to)) => {
                let to = to.min(content.len() - 1);
                let size = content.len();
                let head = format!("HTTP/1.1 206 x\r\ncontent-range: bytes {from}-{to}/{size}\r\n{etag}");
                self.body(stream, asked, &head, &content[from..=to], fault)
            }
            None => self.body(stream, asked, &format!("HTTP/1.1 200 OK\r\n{etag}"), content, fault),
        }
    }

    fn body(
        &self,
        mut stream: &TcpStream,
        asked: &Asked,
        head: &str,
        content: &[u8],
        fault: Option<&Fault>,
    ) -> std::io::Result<()> {
        write!(stream, "{head}content-length: {}\r\n\r\n", content.len())?;
        if asked.method == "HEAD" {
            return Ok(());
        }
        let mut content = content.to_vec();
        let upto = match fault {
            Some(Fault::Cut(n) | Fault::Hold(n) | Fault::Drip(n)) => (*n).min(content.len()),
            Some(Fault::Corrupt) => {
                let middle = content.len() / 2;
                content[middle] ^= 1;
                content.len()
            }
            _ => content.len(),
        };
        stream.write_all(&content[..upto])?;
        stream.flush()?;
        self.served.fetch_add(upto as u64, Ordering::SeqCst);
        match fault {
            Some(Fault::Hold(_)) => {
                let _ = self.held.lock().unwrap().send(());
                // The read returns when the client closes the connection.
                let _ = stream.read(&mut [0]);
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            Some(Fault::Drip(_)) => content[upto..].chunks(1).try_for_each(|byte| {
                std::thread::sleep(Duration::from_millis(5));
                stream.write_all(byte)?;
                stream.flush()
            }),
            Some(Fault::Cut(_)) => Err(std::io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }
}

fn read_request(reader: &mut impl BufRead, stored: bool) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let pairs = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
        pairs.clone().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut words = lines[0].split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?);
    let api = format!("/api/models/{ID}/revision/");
    let file = format!("/{ID}/resolve/{COMMIT}/");
    let file = if path.starts_with(&api) {
        "api".to_owned()
    } else {
        path.strip_prefix(&file).or_else(|| path.strip_prefix("/signed/")).unwrap_or("unknown path").to_owned()
    };
    let range = header("range").map(|range| {
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (from.parse().unwrap(), to.parse().unwrap())
    });
    Some(Asked { method, file, authorization: header("authorization"), range, stored })
}

fn digested(content: Vec<u8>) -> (Vec<u8>, String, String) {
    let mut git = Sha1::new();
    git.update(format!("blob {}\0", content.len()));
    git.update(&content);
    let (sha256, git) = (hex(&Sha256::digest(&content)), hex(&git.finalize()));
    (content, sha256, git)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
