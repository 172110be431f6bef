//! The command `embedding-server fetch`.

use std::path::Path;

use super::FetchArgs;
use super::output::Failure;
use super::progress::Bar;
use layer0::checkpoint::Overrides;
use layer0::error::{Diagnostic, HubError};
use layer0::location::{HubId, Location};

pub fn run(args: &FetchArgs) -> Result<String, Failure> {
    let id = match Location::of(Path::new(&args.id)) {
        Location::Hub(id) => id,
        Location::Local(path) => {
            let expected = "org/name or org/name@revision, and no path that exists";
            return Err(Failure::run(Diagnostic::new(path, "is no Hub id").expected(expected)));
        }
    };
    Ok(format!("{}\n", fetch(&id)?.display()))
}

#[cfg(feature = "hub")]
fn fetch(id: &HubId) -> Result<std::path::PathBuf, HubError> {
    let bar = Bar::new();
    Ok(id.attempt(&bar, || layer0::hub::Hub::from_env().fetch(id, &Overrides::default(), &bar))?.dir)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &HubId) -> Result<std::path::PathBuf, HubError> {
    Location::Hub(id.clone()).directory(&Overrides::default(), &Bar::new())
}
