//! Runs a server inside the test process on a free port, and gives access to the committed checkpoints.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use embedding_server::config::{Config, ModelConfig};
use embedding_server::server::{self, ServerState};
use embedding_server::workers::{Slices, Workers};
use layer0::embedder::Settings;
use layer0::pooling::place::DeviceChoice;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Returns the path of a committed checkpoint, by the name of its directory.
pub fn checkpoint(name: &str) -> PathBuf {
    fixtures("checkpoints").join(name)
}

/// Returns the path of a committed checkpoint that must not load.
pub fn broken(name: &str) -> PathBuf {
    fixtures("broken").join(name)
}

pub fn fixtures(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind)
}

/// Returns the device on which every server of these tests computes its vectors, from the variable
/// `EMBEDDING_SERVER_TEST_DEVICE`. Without it, servers use the CPU.
pub fn test_device() -> Option<DeviceChoice> {
    let name = std::env::var("EMBEDDING_SERVER_TEST_DEVICE").ok()?;
    Some(DeviceChoice::try_from(name).unwrap())
}

/// Returns the default settings of an embedder with a change.
pub fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

/// Returns whether two vectors of the same text are the same: in every bit on the CPU, and up to rounding on a device,
/// whose sums depend on the batch.
pub fn same(a: &[f32], b: &[f32]) -> bool {
    if test_device().is_some() { difference(a, b) < 1e-5 } else { a == b }
}

/// Returns a copy of a committed checkpoint that the test may change.
pub fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// A running server, which stops when it is dropped.
pub struct TestApp {
    pub address: String,
    workers: Arc<Workers>,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
}

impl TestApp {
    /// Starts a server with the tiny Llama as `text-embedding-3-small`, configured by `change`, on [`test_device`].
    pub fn start(change: impl FnOnce(&mut Config)) -> Self {
        let models = vec![ModelConfig::new("text-embedding-3-small", checkpoint("llama"))];
        let mut config = Config { models, ..Config::default() };
        change(&mut config);
        if let Some(device) = test_device() {
            config.server.device = device;
            config.models.iter_mut().for_each(|model| model.device_min_tokens = Some(0));
        }
        config.validate().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, workers) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let state = Arc::new(ServerState::new(config).unwrap());
            state.load().await.unwrap();
            let workers = Arc::clone(state.workers());
            let stopped = async {
                let _ = stopped.await;
            };
            tokio::spawn(server::serve(listener, state, stopped, std::future::pending()));
            (address, workers)
        });
        Self { address, workers, runtime: Some(runtime), stop: Some(stop) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends POST /v1/embeddings.
    pub fn embed(&self, body: &Value) -> Answer {
        self.post("/v1/embeddings", "application/json", body.to_string().as_bytes())
    }

    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Answer {
        Answer::read(agent().post(self.url(path)).header("content-type", content_type).send(body).unwrap())
    }

    /// Sends a request with these headers: a POST with `body`, or a GET without one.
    pub fn send(&self, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request = ureq::http::Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.header("content-type", "application/json");
        Answer::read(agent().run(request.body(body).unwrap()).unwrap())
    }

    pub fn get(&self, path: &str) -> Answer {
        Answer::read(agent().get(self.url(path)).call().unwrap())
    }

    /// Returns the value of a metric. `name` includes the labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = agent().get(self.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(&text).parse().unwrap()
    }

    /// Occupies all compute threads, so that no work of a request begins before the returned value is dropped.
    pub fn occupy_workers(&self) -> OccupiedWorkers {
        let threads = self.workers.threads();
        let (release, released) = channel::<()>();
        let (start, started) = channel();
        let released = Mutex::new(released);
        let slices = self.workers.run(threads, move |_| {
            start.send(()).unwrap();
            // The other end sends nothing. It is dropped to release the threads.
            let _ = released.lock().unwrap().recv();
        });
        for _ in 0..threads {
            started.recv().unwrap();
        }
        OccupiedWorkers { _slices: slices, _release: release }
    }

    /// Sends `body` to `path` twice at the same time, waits until more than `weight` bytes are in flight, and asserts that small requests are
    /// answered before both end. Then asserts that their work ends when their clients disconnect.
    pub fn assert_that_large_requests_yield(&self, path: &str, body: &str, weight: f64) {
        let in_flight = || self.metric("embedding_server_bytes_in_flight");
        let wait = |what: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !what() {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
        };
        let begin = || {
            let mut stream = TcpStream::connect(&self.address).unwrap();
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
            write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
            stream
        };
        let occupied = self.occupy_workers();
        let clients = [begin(), begin()];
        wait(&|| in_flight() > weight);
        drop(occupied);
        for _ in 0..20 {
            assert_eq!(self.embed(&json!({"input": "word ".repeat(300)})).status, 200);
        }
        assert!(in_flight() > 0.0, "the small requests waited for the large ones");
        drop(clients);
        wait(&|| in_flight() == 0.0);
        assert_eq!(self.embed(&json!({"input": "word ".repeat(300)})).status, 200);
    }

    /// Returns the vectors of a request that must succeed.
    pub fn vectors(&self, body: &Value) -> Vec<Vec<f32>> {
        let answer = self.embed(body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.vectors()
    }
}

/// The compute threads of a server, which do nothing until this is dropped.
pub struct OccupiedWorkers {
    _slices: Slices<()>,
    _release: Sender<()>,
}

impl Drop for TestApp {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// A response with its whole body.
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn read(mut response: ureq::http::Response<ureq::Body>) -> Self {
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
        Self { status: response.status().as_u16(), headers: response.headers().clone(), body }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that the response has OpenAI's error shape, and returns `(status, type, code, param, message)`.
    pub fn error(&self) -> (u16, &str, Option<&str>, Option<&str>, &str) {
        assert_eq!(self.header("content-type"), "application/json");
        let object = self.body.as_object().unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["error"]);
        let error = &object["error"];
        let mut keys: Vec<_> = error.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        (
            self.status,
            error["type"].as_str().unwrap(),
            error["code"].as_str(),
            error["param"].as_str(),
            error["message"].as_str().unwrap(),
        )
    }

    pub fn vectors(&self) -> Vec<Vec<f32>> {
        let data = self.body["data"].as_array().unwrap();
        data.iter()
            .enumerate()
            .map(|(index, entry)| {
                assert_eq!(entry["index"], index);
                assert_eq!(entry["object"], "embedding");
                match &entry["embedding"] {
                    Value::String(base64) => from_base64(base64),
                    numbers => serde_json::from_value(numbers.clone()).unwrap(),
                }
            })
            .collect()
    }
}

pub fn from_base64(text: &str) -> Vec<f32> {
    let bytes = base64_simd::STANDARD.decode_to_vec(text).unwrap();
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Returns the largest difference between the numbers of two vectors.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
