//! The settings of the section `[log]`.

use serde::{Deserialize, Serialize};

use super::declare::declare_settings;
use super::log_level;
use super::settings::Flag;
use super::values::ValueKind::{Form, Truth, Word};

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

declare_settings! {
    /// The log, which goes to standard error.
    pub struct LogConfig in "log", "[log]" {
        /// The level of the log: off, error, warn, info, debug or trace, or a filter in the syntax of tracing. An
        /// example of a filter is "info,embedding_server=debug".
        level: String {
            default: "info".to_owned(),
            check: Form { values: "a level or a filter", parse: log_level::parse },
            variable: "EMBEDDING_SERVER_LOG_LEVEL",
            restart: true,
        }
        /// The format of the log.
        format: LogFormat {
            default: LogFormat::Text,
            check: Word(&["text", "json"]),
            variable: "EMBEDDING_SERVER_LOG_FORMAT",
            flag: Flag::new("--log-format", "LOG_FORMAT"),
            restart: true,
        }
        /// Whether the log has a line for each request. Requests that fail by a fault of the server (5xx) always have
        /// one.
        access: bool {
            default: true,
            check: Truth,
            variable: "EMBEDDING_SERVER_LOG_ACCESS",
        }
    }
}
