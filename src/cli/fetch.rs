//! The command `embedding-server fetch`.

use std::path::Path;

use super::FetchArgs;
use super::progress::Bar;
use layer0::checkpoint::Overrides;
use layer0::error::LoadError;
use layer0::location::{HubId, Location};

pub fn run(args: &FetchArgs) -> Result<String, LoadError> {
    let id = match Location::of(Path::new(&args.id)) {
        Location::Hub(id) => id,
        Location::Local(path) => {
            return Err(
                LoadError::new(path, "is no Hub id").expected("org/name or org/name@revision, and no path that exists")
            );
        }
    };
    Ok(format!("{}\n", fetch(&id)?.display()))
}

#[cfg(feature = "hub")]
fn fetch(id: &HubId) -> Result<std::path::PathBuf, LoadError> {
    let bar = Bar::new();
    Ok(id.attempt(&bar, || layer0::hub::Hub::from_env().fetch(id, &Overrides::default(), &bar))?.dir)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &HubId) -> Result<std::path::PathBuf, LoadError> {
    Location::Hub(id.clone()).directory(&Overrides::default(), &Bar::new())
}
