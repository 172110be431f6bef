//! The list of all settings: section and key, environment variable, and allowed values. The configuration file, the
//! environment variables and the command-line flags are all read and checked by this list.

use super::values::ValueKind::{self, Form, Keys, List, Name, Number, Path, Size, Time, Truth, Whole, Word};
use super::{cors, log_level};
use crate::pooling::place::DeviceChoice;

/// One key of the configuration.
pub struct Setting {
    /// The section of the key, or "" for keys above all sections.
    pub section: &'static str,
    pub key: &'static str,
    /// The name of the environment variable without its prefix.
    pub variable: Option<&'static str>,
    pub kind: ValueKind,
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const MILLISECOND: u64 = 1;
const DAY: u64 = 24 * 60 * 60 * 1000;

/// A length of time of at least `least`, or zero to switch the feature off.
const fn time_or_zero(least: u64) -> ValueKind {
    Time { zero: true, least, most: DAY }
}

const fn time() -> ValueKind {
    Time { zero: false, least: MILLISECOND, most: DAY }
}

const fn setting(section: &'static str, key: &'static str, variable: &'static str, kind: ValueKind) -> Setting {
    Setting { section, key, variable: Some(variable), kind }
}

/// A key of `[[models]]`, for which there is no environment variable.
const fn of_model(key: &'static str, kind: ValueKind) -> Setting {
    Setting { section: "models", key, variable: None, kind }
}

const DEVICE: ValueKind = Form(|text| {
    let device = DeviceChoice::try_from(text.to_ascii_lowercase()).ok();
    let device = device.filter(|device| !matches!(device, DeviceChoice::Cuda(256..) | DeviceChoice::Metal(256..)));
    device.map(String::from).ok_or_else(|| {
        "write auto, cpu, cuda, cuda:N, metal or metal:N, where N is a device number up to 255".to_owned()
    })
});
const HOST: ValueKind = Form(|text| text.parse::<super::host::Host>().map(|host| host.to_string()));
const ORIGINS: ValueKind = List { item: cors::parse, example: "https://page.example", none: true };
const HOSTS: ValueKind = List { item: super::host::parse_allowed, example: "embeddings.example", none: true };
const NAMES: ValueKind = List { item: super::values::name, example: "name", none: false };

/// All settings, in the order of the documentation. A test compares the list with the types.
pub const SETTINGS: &[Setting] = &[
    setting("", "default_model", "DEFAULT_MODEL", Name),
    setting("server", "host", "HOST", HOST),
    setting("server", "port", "PORT", Whole { least: 0, most: 65_535 }),
    setting("server", "threads", "THREADS", Whole { least: 0, most: 1024 }),
    setting("server", "device", "DEVICE", DEVICE),
    setting("server", "max_body", "MAX_BODY", Size { least: KIB, most: 4 * GIB }),
    setting("server", "max_inputs", "MAX_INPUTS", Whole { least: 1, most: 1_000_000 }),
    setting("server", "max_in_flight", "MAX_IN_FLIGHT", Size { least: KIB, most: 1024 * GIB }),
    setting("server", "max_connections", "MAX_CONNECTIONS", Whole { least: 1, most: 1_000_000 }),
    setting("server", "header_timeout", "HEADER_TIMEOUT", time()),
    setting("server", "request_timeout", "REQUEST_TIMEOUT", time()),
    setting("server", "drain_delay", "DRAIN_DELAY", time_or_zero(MILLISECOND)),
    setting("server", "drain_timeout", "DRAIN_TIMEOUT", time_or_zero(MILLISECOND)),
    setting("server", "reload_interval", "RELOAD_INTERVAL", time_or_zero(10 * MILLISECOND)),
    setting("server", "api_keys", "API_KEYS", Keys),
    setting("server", "api_key_file", "API_KEY_FILE", Path),
    setting("server", "tls_cert", "TLS_CERT", Path),
    setting("server", "tls_key", "TLS_KEY", Path),
    setting("server", "cors_origins", "CORS_ORIGINS", ORIGINS),
    setting("server", "allowed_hosts", "ALLOWED_HOSTS", HOSTS),
    setting("server", "path_prefix", "PATH_PREFIX", Form(super::values::path_prefix)),
    setting("server", "metrics", "METRICS", Truth),
    setting("server", "metrics_need_key", "METRICS_NEED_KEY", Truth),
    setting("server", "docs", "DOCS", Truth),
    setting("server", "playground", "PLAYGROUND", Truth),
    setting("log", "level", "LOG_LEVEL", Form(log_level::parse)),
    setting("log", "format", "LOG_FORMAT", Word(&["text", "json"])),
    setting("log", "access", "LOG_ACCESS", Truth),
    of_model("id", Name),
    of_model("path", Path),
    of_model("aliases", NAMES),
    of_model("normalize", Truth),
    of_model("special_tokens", Truth),
    of_model("dimensions", Whole { least: 1, most: 65_536 }),
    of_model("token_input", Word(&["cl100k_base", "model", "reject"])),
    of_model("empty_input", Word(&["unit_vector", "reject"])),
    of_model("max_input_tokens", Whole { least: 1, most: 1_000_000_000 }),
    of_model("device", DEVICE),
    of_model("device_min_tokens", Whole { least: 0, most: 1_000_000_000 }),
    of_model("memory", Word(&["map", "copy"])),
    of_model("tokenizer", Path),
    of_model("config", Path),
    of_model("norm", Word(&["rms", "rms_plus_one", "layer", "layer_plus_one", "none"])),
    of_model("norm_eps", Number { least: 0.0, most: 1.0 }),
    of_model("embedding_scale", Number { least: 1e-6, most: 1e6 }),
    of_model("embedding_tensor", Name),
    of_model("norm_tensor", Name),
];

/// The sections, and how they are written in the configuration file.
pub const SECTIONS: [(&str, &str); 3] = [("server", "[server]"), ("log", "[log]"), ("models", "[[models]]")];

/// Returns the setting `key` of `section`.
pub fn find(section: &str, key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.section == section && setting.key == key)
}

/// Returns the keys of `section`.
pub fn keys(section: &str) -> impl Iterator<Item = &'static str> + Clone {
    SETTINGS.iter().filter(move |setting| setting.section == section).map(|setting| setting.key)
}

impl Setting {
    /// Returns the key with its section, such as `server.port`.
    pub fn name(&self) -> String {
        if self.section.is_empty() { self.key.to_owned() } else { format!("{}.{}", self.section, self.key) }
    }
}
