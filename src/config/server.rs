//! The settings of the section `[server]`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::declare::declare_settings;
use super::host::{self, Host};
use super::settings::Flag;
use super::units::{ByteCount, Seconds};
use super::values::ValueKind::{self, Form, Keys, List, Path, Size, Time, Truth, Whole};
use super::{cors, values};
use crate::batches::StorageLimits;
use crate::keys::ApiKeys;
use layer0::checkpoint::TokenizerCache;
use layer0::pooling::place::DeviceChoice;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: u64 = 24 * 60 * 60 * 1000;
/// A year of 365.25 days, as times are written.
const YEAR: u64 = 31_557_600_000;

/// A length of time from 1 ms to 1 day.
const TIME: ValueKind = Time { zero: false, least: 1, most: DAY };

/// A length of time from 1 ms to 1 day, or zero.
const TIME_OR_ZERO: ValueKind = Time { zero: true, least: 1, most: DAY };

/// A device, as [`DeviceChoice`] reads it.
pub(super) const DEVICE: ValueKind = Form {
    values: "`auto`, `cpu`, `cuda`, `cuda:0` to `cuda:255`, `metal`, `metal:0` to `metal:255`",
    parse: |text| {
        let device = DeviceChoice::try_from(text.to_ascii_lowercase()).ok();
        let device = device.filter(|device| !matches!(device, DeviceChoice::Cuda(256..) | DeviceChoice::Metal(256..)));
        device.map(String::from).ok_or_else(|| {
            "write auto, cpu, cuda, cuda:N, metal or metal:N, where N is a device number up to 255".into()
        })
    },
};

pub(super) const TOKENIZER_CACHE: ValueKind = Form {
    values: "`user`, `off`, or a directory",
    parse: |text| match text {
        "" => Err("write user, off, or the path of a directory".into()),
        _ => Ok(text.to_owned()),
    },
};

const HOST: ValueKind = Form {
    values: "an IP address, a host name, `unix:PATH`",
    parse: |text| text.parse::<Host>().map(|host| host.to_string()),
};

const fn seconds(seconds: u64) -> Seconds {
    Seconds(Duration::from_secs(seconds))
}

declare_settings! {
    /// The server: where it listens, what it accepts, and who may use it.
    pub struct ServerConfig in "server", "[server]" {
        /// The address to listen on: an IP address, a host name, or `unix:PATH` for a Unix socket. A host name is
        /// resolved once, at the start. `0.0.0.0` or `::` listens on every interface.
        host: Host {
            default: Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            check: HOST,
            variable: "EMBEDDING_SERVER_HOST",
            flag: Flag::new("--host", "ADDRESS"),
            restart: true,
        }
        /// The port to listen on, or 0 for a free one. The port is printed on standard output. It is ignored with a
        /// Unix socket.
        port: u16 {
            default: 5000,
            check: Whole { least: 0, most: 65_535 },
            variable: "EMBEDDING_SERVER_PORT",
            flag: Flag::new("--port", "PORT").short('p'),
            restart: true,
        }
        /// The number of threads that tokenize and pool, or 0 for as many as the process may use. This number respects
        /// the CPU quota of the process's cgroup.
        threads: usize {
            default: 0,
            check: Whole { least: 0, most: 1024 },
            variable: "EMBEDDING_SERVER_THREADS",
            restart: true,
        }
        /// The default device of models: auto, cpu, `cuda[:N]` or `metal[:N]`. "cuda" and "metal" need a build with the
        /// feature of that name, and "cuda:1" is the second of several devices. "auto" takes a device if there is one,
        /// and otherwise the CPU, with the reason in the log.
        device: DeviceChoice {
            check: DEVICE,
            variable: "EMBEDDING_SERVER_DEVICE",
            flag: Flag::new("--device", "DEVICE"),
        }
        /// Where the compiled form of a tokenizer of 1 MB and more is kept, which makes later starts and reloads faster:
        /// user, off, or a directory. "user" is embedding-server/tokenizers in the cache directory of the user
        /// (`XDG_CACHE_HOME` or ~/.cache). With "off", compiled tokenizers are neither written nor read, not even the
        /// one that `extract`, `refine` and `fit` write beside a tokenizer.json.
        tokenizer_cache: TokenizerCache {
            check: TOKENIZER_CACHE,
            variable: "EMBEDDING_SERVER_TOKENIZER_CACHE",
        }
        /// The largest request body, decompressed. A larger one gets 413.
        max_body: ByteCount {
            default: ByteCount(32 * MIB),
            check: Size { least: KIB, most: 4 * GIB },
            variable: "EMBEDDING_SERVER_MAX_BODY",
        }
        /// The largest number of inputs in one request. A request with more inputs gets 400. The default is OpenAI's
        /// limit.
        max_inputs: usize {
            default: 2048,
            check: Whole { least: 1, most: 1_000_000 },
            variable: "EMBEDDING_SERVER_MAX_INPUTS",
        }
        /// The in-flight budget: the largest total weight of the requests in flight. A request weighs the bytes of its
        /// body that have arrived, plus 4 KiB for each input. A request that does not fit gets 429, unless it is alone.
        /// If there is no room, requests that only wait for a slow client are ended first. The default is about one
        /// second of work for two cores.
        max_in_flight: ByteCount {
            default: ByteCount(64 * MIB),
            check: Size { least: KIB, most: 1024 * GIB },
            variable: "EMBEDDING_SERVER_MAX_IN_FLIGHT",
        }
        /// The directory of files and batches, which switches on /v1/files and /v1/batches. It is created if it is missing, only one
        /// process may use it, and it outlives the process: batches continue after a restart. Files hold the texts and the vectors of
        /// clients.
        batch_directory: Option<PathBuf> {
            check: Path,
            variable: "EMBEDDING_SERVER_BATCH_DIRECTORY",
            unset: "no files and batches",
            example: "/var/lib/embedding-server/batches",
            restart: true,
        }
        /// The largest file that a client may upload. A larger one gets 413. The limit on one line of it is `max_body`.
        max_file_bytes: ByteCount {
            default: ByteCount(200 * MIB),
            check: Size { least: KIB, most: 1024 * GIB },
            variable: "EMBEDDING_SERVER_MAX_FILE_BYTES",
        }
        /// The largest size of all files together, with the answers to batches. If it is reached, uploads get 413, and
        /// batches fail.
        max_stored_bytes: ByteCount {
            default: ByteCount(10 * GIB),
            check: Size { least: KIB, most: 1024 * 1024 * GIB },
            variable: "EMBEDDING_SERVER_MAX_STORED_BYTES",
        }
        /// The largest number of files and batches together.
        max_stored_files: usize {
            default: 10_000,
            check: Whole { least: 1, most: 1_000_000 },
            variable: "EMBEDDING_SERVER_MAX_STORED_FILES",
        }
        /// The time after which files and batches that have ended are deleted. A client may ask for another time from 1 hour to 30
        /// days.
        file_expires_after: Seconds {
            default: seconds(30 * 24 * 60 * 60),
            check: Time { zero: false, least: 1000, most: YEAR },
            variable: "EMBEDDING_SERVER_FILE_EXPIRES_AFTER",
        }
        /// The largest number of requests in one batch. The default is OpenAI's limit.
        max_batch_requests: u64 {
            default: 50_000,
            check: Whole { least: 1, most: 1_000_000_000 },
            variable: "EMBEDDING_SERVER_MAX_BATCH_REQUESTS",
        }
        /// The largest number of batches that are worked on at the same time. Further batches wait.
        max_running_batches: usize {
            default: 4,
            check: Whole { least: 1, most: 1024 },
            variable: "EMBEDDING_SERVER_MAX_RUNNING_BATCHES",
        }
        /// The largest number of open connections. Further connections get 503 and are closed.
        max_connections: usize {
            default: 10_000,
            check: Whole { least: 1, most: 1_000_000 },
            variable: "EMBEDDING_SERVER_MAX_CONNECTIONS",
            restart: true,
        }
        /// The time that a client may take to send the headers of a request, and that a connection may be idle. It must
        /// be longer than a proxy in front keeps idle connections (60s for most proxies). Otherwise the proxy sends
        /// requests on connections that are being closed.
        header_timeout: Seconds {
            default: seconds(75),
            check: TIME,
            variable: "EMBEDDING_SERVER_HEADER_TIMEOUT",
        }
        /// The time from the end of a request's body to the first byte of its response. Beyond it the request gets 503.
        /// A body may take longer if at least 4 KiB per second of it arrive on average over 30s, or over this time if
        /// it is shorter; otherwise the request gets 408.
        request_timeout: Seconds {
            default: seconds(60),
            check: TIME,
            variable: "EMBEDDING_SERVER_REQUEST_TIMEOUT",
        }
        /// The time for which the server still accepts requests after SIGTERM or Ctrl-C. During this time /ready
        /// returns 503 and each response closes its connection. Set it to the time that a load balancer needs to
        /// notice, or to "0s" if the load balancer learns of the stop in another way.
        drain_delay: Seconds {
            default: seconds(0),
            check: TIME_OR_ZERO,
            variable: "EMBEDDING_SERVER_DRAIN_DELAY",
        }
        /// The time that requests in flight have to finish after the drain delay. Then they are interrupted.
        drain_timeout: Seconds {
            default: seconds(30),
            check: TIME_OR_ZERO,
            variable: "EMBEDDING_SERVER_DRAIN_TIMEOUT",
        }
        /// The interval between checks whether the configuration file, or a file that it names, has changed. A change
        /// reloads the configuration, as SIGHUP does. "0s" reloads only on SIGHUP.
        reload_interval: Seconds {
            default: seconds(0),
            check: Time { zero: true, least: 10, most: DAY },
            variable: "EMBEDDING_SERVER_RELOAD_INTERVAL",
        }
        /// The API keys. Without any, everybody may use the server. "KEY" may use every model, and "KEY MODEL MODEL"
        /// only these models. "KEY name=alice requests_per_minute=600 tokens_per_minute=1000000 MODEL" names the key in
        /// the log and the metrics, and limits its use; each of these options is optional. "sha256:HEX" instead of a
        /// key keeps the key out of this file. Clients send `Authorization: Bearer KEY`, `api-key: KEY` or `x-api-key:
        /// KEY`.
        api_keys: ApiKeys {
            check: Keys,
            variable: "EMBEDDING_SERVER_API_KEYS",
        }
        /// The path of a file with further API keys, one per line.
        api_key_file: Option<PathBuf> {
            check: Path,
            variable: "EMBEDDING_SERVER_API_KEY_FILE",
            unset: "none",
            example: "/run/secrets/api-keys",
        }
        /// The path of a certificate chain in PEM, which switches HTTPS on. It needs `tls_key`.
        tls_cert: Option<PathBuf> {
            check: Path,
            variable: "EMBEDDING_SERVER_TLS_CERT",
            unset: "plain HTTP",
            example: "/run/secrets/tls.crt",
        }
        /// The path of the private key of the certificate, in PEM.
        tls_key: Option<PathBuf> {
            check: Path,
            variable: "EMBEDDING_SERVER_TLS_KEY",
            unset: "none",
            example: "/run/secrets/tls.key",
        }
        /// The origins whose pages may read responses in a browser. An origin is written `https://page.example` or
        /// `app://name`. "*" allows any origin, and an empty list none (in the variable: none).
        cors_origins: Vec<String> {
            default: vec![cors::ANY.to_owned()],
            check: List { item: cors::parse, example: "https://page.example", none: true },
            variable: "EMBEDDING_SERVER_CORS_ORIGINS",
        }
        /// Further host names that requests may name. A server on a loopback address without API keys answers only
        /// requests for a local host name: localhost, a loopback address, or a name without a dot. Others get 403, so
        /// that no web page can reach the server by DNS rebinding. This list adds names, for a proxy that passes on the
        /// name that clients ask for. "*" allows any name.
        allowed_hosts: Vec<String> {
            check: List { item: host::parse_allowed, example: "embeddings.example", none: true },
            variable: "EMBEDDING_SERVER_ALLOWED_HOSTS",
        }
        /// The prefix of all paths, such as "/models/a", for a proxy that does not strip it. /health, /ready and
        /// /metrics also answer without it. "" means no prefix.
        path_prefix: String {
            check: Form { values: "a path", parse: values::path_prefix },
            variable: "EMBEDDING_SERVER_PATH_PREFIX",
        }
        /// Whether GET /metrics returns metrics for Prometheus.
        metrics: bool {
            default: true,
            check: Truth,
            variable: "EMBEDDING_SERVER_METRICS",
        }
        /// Whether GET /metrics needs an API key, too. /health and /ready never do.
        metrics_need_key: bool {
            default: false,
            check: Truth,
            variable: "EMBEDDING_SERVER_METRICS_NEED_KEY",
        }
        /// Whether GET /openapi.json describes the API, and GET /docs shows the description.
        docs: bool {
            default: true,
            check: Truth,
            variable: "EMBEDDING_SERVER_DOCS",
        }
        /// Whether GET / is a page to try the models in a browser. The page contacts no other host.
        playground: bool {
            default: true,
            check: Truth,
            variable: "EMBEDDING_SERVER_PLAYGROUND",
        }
    }
}

impl ServerConfig {
    /// Returns the limits on the files of batches.
    pub fn storage_limits(&self) -> StorageLimits {
        StorageLimits {
            max_file_bytes: self.max_file_bytes.0,
            max_stored_bytes: self.max_stored_bytes.0,
            max_stored_files: self.max_stored_files,
        }
    }

    /// Returns after how many seconds files and batches that have ended are deleted.
    pub fn file_lifetime(&self) -> u64 {
        self.file_expires_after.0.as_secs()
    }
}
