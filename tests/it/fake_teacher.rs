//! An OpenAI-compatible endpoint on the loopback interface that computes vectors of its own. It can refuse requests,
//! cut, delay or falsify responses, and it records the requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

pub const DIMENSIONS: usize = 6;

/// A request as it was received.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The path and the query.
    pub target: String,
    pub texts: Vec<String>,
    pub authorization: Option<String>,
    pub api_key: Option<String>,
    pub encoding_format: Option<String>,
}

/// The fault of a response.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The response has this status, these header lines, and this body.
    Status(u16, &'static str, &'static str),
    /// The connection is closed in the middle of the response.
    Cut,
    /// The connection is closed without a response.
    Hang,
    /// No response is sent until the client closes the connection. The test is notified.
    Hold,
    /// The function changes the body of the correct response.
    Instead(fn(&mut Value)),
}

type Judge = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

struct State {
    fault: Mutex<Judge>,
    asked: Mutex<Vec<Asked>>,
    /// The number of times that each text was answered.
    answered: Mutex<HashMap<String, usize>>,
    held: Mutex<Sender<()>>,
}

pub struct FakeTeacher {
    pub url: String,
    state: Arc<State>,
    held: Receiver<()>,
}

impl FakeTeacher {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, held) = channel();
        let state = Arc::new(State {
            fault: Mutex::new(Box::new(|_| None)),
            asked: Mutex::default(),
            answered: Mutex::default(),
            held: Mutex::new(sender),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || while state.exchange(&stream).is_some() {});
            }
        });
        Self { url, state, held }
    }

    /// Determines the faults: from now on, each response has the fault that `judge` returns for its request.
    pub fn fault(&self, judge: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.state.fault.lock().unwrap() = Box::new(judge);
    }

    /// Waits until a response is held.
    pub fn wait_until_held(&self) {
        self.held.recv_timeout(Duration::from_secs(60)).expect("nothing was held");
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Returns the number of times that each text was answered.
    pub fn answered(&self) -> HashMap<String, usize> {
        self.state.answered.lock().unwrap().clone()
    }
}

/// Returns a vector that depends on pairs of adjacent letters of the text, and therefore is not a function of its
/// tokens.
pub fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.1f32; DIMENSIONS];
    for (at, pair) in text.as_bytes().windows(2).enumerate() {
        let hash = usize::from(pair[0]) * 31 + usize::from(pair[1]) * 17;
        vector[hash % DIMENSIONS] += 1.0 + (at % 3) as f32 * 0.1;
    }
    vector
}

impl State {
    /// Handles one request. Returns `None` when the connection has ended.
    fn exchange(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let (mut length, mut asked) = (0, Asked::default());
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        asked.target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        line.clear();
        while reader.read_line(&mut line).ok()? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "authorization" => asked.authorization = Some(value.trim().to_owned()),
                "api-key" => asked.api_key = Some(value.trim().to_owned()),
                _ => {}
            }
            line.clear();
        }
        if length == 0 {
            return None;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["model"], "wise");
        asked.texts = serde_json::from_value(body["input"].clone()).unwrap();
        asked.encoding_format = body.get("encoding_format").map(|format| format.as_str().unwrap().to_owned());
        self.asked.lock().unwrap().push(asked.clone());
        let fault = (self.fault.lock().unwrap())(&asked);
        let mut answer = json!({ "object": "list", "data": asked.texts.iter().enumerate().map(|(index, text)| {
            json!({ "object": "embedding", "index": index, "embedding": vector(text) })
        }).collect::<Vec<_>>() });
        match fault {
            Some(Fault::Status(status, headers, body)) => return send(stream, status, headers, body),
            Some(Fault::Hang) => {
                stream.shutdown(Shutdown::Both).unwrap();
                return None;
            }
            Some(Fault::Hold) => {
                self.held.lock().unwrap().send(()).unwrap();
                // The read returns when the client closes the connection.
                let _ = reader.read(&mut [0]);
                return None;
            }
            Some(Fault::Cut) => {
                let text = answer.to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                (&*stream).write_all(&[head.as_bytes(), &text.as_bytes()[..text.len() / 2]].concat()).ok()?;
                stream.shutdown(Shutdown::Both).unwrap();
                return None;
            }
            Some(Fault::Instead(change)) => change(&mut answer),
            None => {
                let mut answered = self.answered.lock().unwrap();
                for text in &asked.texts {
                    *answered.entry(text.clone()).or_default() += 1;
                }
            }
        }
        send(stream, 200, "", &answer.to_string())
    }
}

fn send(mut stream: &TcpStream, status: u16, headers: &str, body: &str) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status} x\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()
}
