//! Checks a configuration before a port is bound and a model is loaded. The command `check`, the start of the server
//! and each reload call it, so they refuse the same mistakes with the same messages.

use crate::builtin::preview_checkpoint;
use crate::config::error::{ConfigError, ConfigErrorKind};
use crate::config::{Config, ModelConfig};
use crate::model_error::ModelError;
use crate::server::state::read_keys;
use crate::server::state::tls::TlsConfig;
use layer0::location::Location;

/// Resolves the host, and reads the API keys, the certificate, and the file headers of each local model. Returns the
/// dimensions of each model's vectors, or `None` if they are not known before the model is fetched.
///
/// # Errors
/// If `config` cannot be served.
pub fn check(config: &Config) -> Result<Vec<Option<usize>>, ConfigError> {
    config.server.host.check()?;
    read_keys(config)?;
    TlsConfig::read(&config.server)?;
    let models = config.models.iter().map(|model| {
        let model = model.clone().on(&config.server);
        dimensions(&model)
            .map_err(|error| ConfigError::new(ConfigErrorKind::Model, format!("model {:?}: {error}", model.id)))
    });
    models.collect()
}

fn dimensions(model: &ModelConfig) -> Result<Option<usize>, ModelError> {
    let (overrides, settings) = (model.overrides(), model.settings());
    match Location::of(&model.path) {
        Location::Local(path) => {
            let Some(preview) = preview_checkpoint(&path, &overrides)? else { return Ok(None) };
            let dimensions = preview.dimensions + preview.lexical_dimensions;
            settings.check(&path, dimensions)?;
            Ok(Some(settings.dimensions.unwrap_or(dimensions)))
        }
        // The model may have to be downloaded first.
        #[cfg(feature = "hub")]
        Location::Hub(_) => Ok(settings.check(&model.path, usize::MAX).map(|()| settings.dimensions)?),
        #[cfg(not(feature = "hub"))]
        Location::Hub(id) => Err(layer0::location::without_feature(&id).into()),
    }
}
