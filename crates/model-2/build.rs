//! Tells the build script of embedding-server where the second half of the model is, in the variable `DEP_EMBEDDING_SERVER_MODEL_2_HALF`.
//!
//! A published package contains its half as a file. In the repository, the half is cut from the model.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let mut half = directory.join("half.bin");
    let model = directory.join("../../models/default/model.safetensors");
    if model.exists() {
        let bytes = fs::read(&model)?;
        let (_, second) = bytes.split_at(bytes.len() / 2);
        half = Path::new(&env::var("OUT_DIR")?).join("half.bin");
        fs::write(&half, second)?;
        println!("cargo::rerun-if-changed={}", model.display());
    }
    println!("cargo::metadata=HALF={}", half.display());
    Ok(())
}
