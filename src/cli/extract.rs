//! The command `embedding-server extract`.

use std::path::Path;

use bytesize::ByteSize;

use super::ExtractArgs;
use super::output::Failure;
use super::progress::Bar;
use super::recipe::Recipe;
use layer0::checkpoint::{Overrides, gguf};
use layer0::error::HubError;
use layer0::extract::card::Origin;
use layer0::extract::gguf::GgufSource;
use layer0::extract::source::{GivenNames, LocalSource, Source};
use layer0::extract::staging::{self, Existing};
use layer0::extract::tensors::Written;
use layer0::extract::{self, Options};
use layer0::location::{HubId, Location};
use layer0::table::TableDtype;

/// The types to which tensors can be converted.
pub const DTYPES: [TableDtype; 3] = [TableDtype::Bf16, TableDtype::F16, TableDtype::F32];

pub fn run(args: &ExtractArgs) -> Result<String, Failure> {
    let mut source = args.source.clone();
    let mut dtype = args.dtype;
    let path = Path::new(&args.source);
    if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
        let recipe = Recipe::open(path)?;
        source = recipe.model;
        dtype = dtype.or(recipe.dtype);
    }
    let mut overrides = args.overrides.overrides();
    let bar = Bar::new();
    let location = with_revision(Location::of(Path::new(&source)), args.revision.as_deref())?;
    let (dir, origin) = match location {
        Location::Local(dir) => {
            let origin = Origin::local(&dir);
            (dir, origin)
        }
        Location::Hub(id) => fetch(&id, &overrides, &bar)?,
    };
    if path.is_file() {
        // The source is a recipe or a GGUF file, which the output must not overwrite.
        staging::protect(&args.out, &[path])?;
    }
    let source: Box<dyn Source> = if gguf::is_gguf(&dir) {
        let source = GgufSource::open(&dir, &overrides)?;
        // The overrides of tensors and of the norm were applied when the source was opened, so only the others are passed on.
        overrides = Overrides {
            config: overrides.config,
            tokenizer: overrides.tokenizer,
            token_count_exponent: overrides.token_count_exponent,
            lexical_dimensions: overrides.lexical_dimensions,
            lexical_weight: overrides.lexical_weight,
            tokenizer_cache: overrides.tokenizer_cache,
            ..Overrides::default()
        };
        Box::new(source)
    } else {
        Box::new(LocalSource::open(&dir, origin)?)
    };
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    let options = Options { dtype, existing, overrides, given_names: GivenNames::Replaced };
    let written = extract::extract(&*source, &args.out, &options, &bar)?;
    let lines = written.iter().flat_map(Written::tensors).map(|tensor| {
        let info = &tensor.info;
        format!("  {}  {:?} {:?}, {}\n", info.name, info.dtype, info.shape, ByteSize(info.len))
    });
    Ok(format!("{}\n{}", args.out.display(), lines.collect::<String>()))
}

fn with_revision(location: Location, revision: Option<&str>) -> Result<Location, Failure> {
    match (location, revision) {
        (location, None) => Ok(location),
        (Location::Hub(id), Some(revision)) => {
            let parsed = HubId::parse(&format!("{}@{revision}", id.name));
            parsed.map(Location::Hub).ok_or_else(|| format!("{revision}: is no branch, tag or commit").into())
        }
        (Location::Local(path), Some(_)) => {
            Err(format!("{}: is no Hub id, so that it has no --revision", path.display()).into())
        }
    }
}

#[cfg(feature = "hub")]
fn fetch(id: &HubId, overrides: &Overrides, bar: &Bar) -> Result<(std::path::PathBuf, Origin), HubError> {
    let cached = id.attempt(bar, || layer0::hub::Hub::from_env().fetch(id, overrides, bar))?;
    Ok((cached.dir, cached.origin))
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &HubId, _: &Overrides, _: &Bar) -> Result<(std::path::PathBuf, Origin), HubError> {
    Err(layer0::location::without_feature(id))
}
