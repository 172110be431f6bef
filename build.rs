//! Puts the two halves of the built-in model's table together. Each of them is a package of its own, because crates.io takes at most 10 MiB.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_DEFAULT_MODEL").is_none() {
        return Ok(());
    }
    let mut table = Vec::new();
    for half in ["DEP_EMBEDDING_SERVER_MODEL_1_HALF", "DEP_EMBEDDING_SERVER_MODEL_2_HALF"] {
        let path = env::var(half)?;
        println!("cargo::rerun-if-changed={path}");
        table.extend(fs::read(&path).map_err(|error| format!("{path}: {error}"))?);
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("model.safetensors"), table)?;
    Ok(())
}
