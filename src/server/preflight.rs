//! What can be known of a configuration before a port is bound and before a model is loaded. `check`, the start and each
//! reload ask here, and so refuse the same things in the same words.

use super::tls::Tls;
use crate::checkpoint::Checkpoint;
use crate::config::layers::ConfigError;
use crate::config::{Config, Model};
use crate::error::LoadError;
use crate::location::Location;

/// Looks up the host, and reads the API keys, the certificate, and the headers of each model that is on this machine. Returns the dimensions of
/// each model's vectors, where they are known already.
///
/// # Errors
/// When `config` cannot be served.
pub fn check(config: &Config) -> Result<Vec<Option<usize>>, ConfigError> {
    config.server.host.check().map_err(ConfigError)?;
    super::keys(config)?;
    Tls::read(&config.server).map_err(ConfigError)?;
    let models = config.models.iter().map(|model| {
        let model = model.clone().on(&config.server);
        dimensions(&model).map_err(|error| ConfigError(format!("model {:?}: {error}", model.id)))
    });
    models.collect()
}

fn dimensions(model: &Model) -> Result<Option<usize>, LoadError> {
    let (overrides, settings) = (model.overrides(), model.settings());
    match Location::of(&model.path) {
        Location::Local(path) => {
            let Some(preview) = Checkpoint::preview(&path, &overrides)? else { return Ok(None) };
            settings.check(&path, preview.dimensions)?;
            Ok(Some(settings.dimensions.unwrap_or(preview.dimensions)))
        }
        // It may have to be fetched first.
        #[cfg(feature = "hub")]
        Location::Hub(_) => settings.check(&model.path, usize::MAX).map(|()| settings.dimensions),
        #[cfg(not(feature = "hub"))]
        Location::Hub(id) => Err(crate::location::without_feature(&id)),
    }
}
