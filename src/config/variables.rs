//! The environment variables as a layer of the configuration. Every variable is trimmed, the quotation marks of env
//! files are removed, and an empty variable counts as unset.

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{ConfigError, ConfigErrorKind};
use super::layers::nearest;
use super::settings::{self, Setting};
use super::values::unquoted;

/// The prefix of all environment variables.
pub const PREFIX: &str = "EMBEDDING_SERVER_";
/// The variable with the path of the configuration file.
pub const CONFIG: &str = "EMBEDDING_SERVER_CONFIG";
/// The variable with the models.
pub const MODELS: &str = "EMBEDDING_SERVER_MODELS";
/// The prefix of variables that only this project's tests use.
const TEST: &str = "EMBEDDING_SERVER_TEST_";

/// Parts of unknown variable names that suggest that the variable should protect the server.
const PROTECTING: [&str; 9] = ["KEY", "TLS", "CERT", "AUTH", "TOKEN", "SECRET", "PASSW", "CORS", "ORIGIN"];

/// The values of the environment variables.
#[derive(Default)]
pub struct Variables {
    pub config_file: Option<PathBuf>,
    /// The settings whose variables are set, with the variable's name and value.
    pub settings: Vec<(&'static Setting, String, String)>,
    pub models: Vec<String>,
    pub warnings: Vec<String>,
}

impl Variables {
    /// Reads the variables that begin with [`PREFIX`].
    ///
    /// # Errors
    /// If a variable is not valid UTF-8, or if the name of an unknown one suggests that it should protect the
    /// server.
    pub fn read(
        environment: impl Iterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    ) -> Result<Self, ConfigError> {
        let mut found = Self::default();
        let mut ours: Vec<(String, OsString)> = environment
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value.into())))
            .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(TEST))
            .collect();
        ours.sort();
        for (name, value) in ours {
            let setting = settings::all().find(|setting| setting.variable == Some(name.as_str()));
            let is_known = setting.is_some() || name == CONFIG || name == MODELS;
            let text = match value.to_str() {
                Some(text) => text,
                None if is_known => return Err(ConfigError::value(format!("{name} is not valid UTF-8: set it again"))),
                None => continue,
            };
            if set_by_kubernetes(&name, text) {
                continue;
            }
            let text = unquoted(text);
            if !is_known {
                found.unknown(&name, text)?;
            } else if text.is_empty() {
                if setting.is_some_and(|setting| setting.key == "cors_origins") {
                    found.warnings.push(format!("{name} is empty and counts as unset; write none to allow no origin"));
                }
            } else if let Some(setting) = setting {
                found.settings.push((setting, name, text.to_owned()));
            } else if name == CONFIG {
                found.config_file = Some(PathBuf::from(text));
            } else {
                let models = text.split(',').map(unquoted).filter(|model| !model.is_empty());
                found.models.extend(models.map(str::to_owned));
                if found.models.is_empty() {
                    return Err(ConfigError::value(format!(
                        "{name} contains no model: write NAME=PATH,NAME=PATH, or unset it"
                    )));
                }
            }
        }
        Ok(found)
    }

    fn unknown(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        // All names begin with the same prefix, so they are compared without it.
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let known = settings::all().filter_map(|setting| setting.variable).chain([CONFIG, MODELS]);
        let meant = match nearest(short, known.filter_map(|variable| variable.strip_prefix(PREFIX))) {
            Some(meant) => format!("; did you mean {PREFIX}{meant}?"),
            None => {
                format!(
                    "; `embedding-server check` prints all settings, and the variable of server.port is \
                         {PREFIX}PORT"
                )
            }
        };
        if !text.is_empty() && PROTECTING.iter().any(|part| short.contains(part)) {
            return Err(ConfigError::new(
                ConfigErrorKind::Unknown,
                format!("unknown variable {name}, whose name suggests that it protects the server{meant}"),
            ));
        }
        self.warnings.push(format!("unknown variable {name}{meant}"));
        Ok(())
    }
}

/// Returns whether Kubernetes set this variable. A service named embedding-server or embedding-server-something sets
/// such variables in every pod of its namespace: EMBEDDING_SERVER_PORT=tcp://..., EMBEDDING_SERVER_SERVICE_HOST,
/// EMBEDDING_SERVER_PORT_5000_TCP_ADDR.
fn set_by_kubernetes(name: &str, text: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let of_a_port = || {
        let (_, rest) = name.rsplit_once("_PORT_")?;
        let (number, protocol) = rest.split_once('_')?;
        let protocol = protocol.split('_').next()?;
        Some(number.bytes().all(|b| b.is_ascii_digit()) && ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    (name.ends_with("_PORT") && is_address)
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || of_a_port().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Variables, String> {
        Variables::read(variables.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        for value in ["", " ", "\"\"", "''", "\t\n"] {
            let variables = settings::all().filter_map(|setting| setting.variable).chain([CONFIG, MODELS]);
            let found = Variables::read(variables.map(|variable| (variable, value))).unwrap();
            assert!(found.settings.is_empty() && found.models.is_empty() && found.config_file.is_none(), "{value:?}");
        }
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_recognized() {
        let found = read(&[
            ("EMBEDDING_SERVER_PORT", "tcp://10.0.0.7:5000"),
            ("EMBEDDING_SERVER_PORT_5000_TCP", "tcp://10.0.0.7:5000"),
            ("EMBEDDING_SERVER_PORT_5000_TCP_ADDR", "10.0.0.7"),
            ("EMBEDDING_SERVER_PORT_53_UDP_PORT", "53"),
            ("EMBEDDING_SERVER_SERVICE_HOST", "10.0.0.7"),
            ("EMBEDDING_SERVER_SERVICE_PORT", "5000"),
            ("EMBEDDING_SERVER_SERVICE_PORT_HTTPS_KEY", "5000"),
            ("EMBEDDING_SERVER_AUTH_SERVICE_HOST", "10.0.0.8"),
            ("EMBEDDING_SERVER_AUTH_PORT", "tcp://10.0.0.8:80"),
            ("EMBEDDING_SERVER_AUTH_PORT_80_TCP_PROTO", "tcp"),
        ]);
        let found = found.unwrap();
        assert!(found.settings.is_empty() && found.warnings.is_empty(), "{:?}", found.warnings);
        assert_eq!(read(&[("EMBEDDING_SERVER_API_KEYS", "tcp://x")]).unwrap().settings.len(), 1, "a key may look so");
    }

    #[test]
    fn unknown_variables_warn_and_are_refused_if_they_suggest_protection() {
        let warned = read(&[("EMBEDDING_SERVER_PROT", "1")]).unwrap().warnings;
        assert_eq!(warned, ["unknown variable EMBEDDING_SERVER_PROT; did you mean EMBEDDING_SERVER_PORT?"]);
        for (name, meant) in [
            ("EMBEDDING_SERVER_API_KEY", "EMBEDDING_SERVER_API_KEYS?"),
            ("EMBEDDING_SERVER_APIKEYS", "EMBEDDING_SERVER_API_KEYS?"),
            ("EMBEDDING_SERVER_API_KEYS_FILE", "EMBEDDING_SERVER_API_KEY"),
            ("EMBEDDING_SERVER_TLS_CRT", "EMBEDDING_SERVER_TLS_CERT?"),
            ("EMBEDDING_SERVER_CORS_ORIGIN", "EMBEDDING_SERVER_CORS_ORIGINS?"),
            ("EMBEDDING_SERVER_AUTH_TOKEN", "unknown variable"),
        ] {
            let error = read(&[(name, "sk-secret")]).err().unwrap();
            assert!(error.contains(name) && error.contains(meant) && !error.contains("sk-secret"), "{error}");
            assert!(read(&[(name, " ")]).is_ok());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_known_variable_that_is_not_utf8_is_an_error() {
        use std::os::unix::ffi::OsStringExt;
        for name in ["EMBEDDING_SERVER_API_KEYS", "EMBEDDING_SERVER_PORT", CONFIG, MODELS] {
            let broken = OsString::from_vec(b"sk-\xff".to_vec());
            let error = Variables::read([(OsString::from(name), broken)].into_iter()).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("UTF-8") && !error.contains("sk-"), "{error}");
        }
        let other = [(OsString::from("OTHER"), OsString::from_vec(b"\xff".to_vec()))];
        assert!(Variables::read(other.into_iter()).is_ok());
    }
}
