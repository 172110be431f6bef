//! Compiles kernels/mean.cu to PTX if the feature `cuda` is enabled, with the nvcc that candle's own kernels also need.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for changed in ["rerun-if-changed=kernels/mean.cu", "rerun-if-env-changed=NVCC", "rerun-if-env-changed=CUDA_HOME"] {
        println!("cargo::{changed}");
    }
    let in_home = |home| PathBuf::from(home).join("bin/nvcc");
    let nvcc = std::env::var_os("NVCC").map(PathBuf::from).or_else(|| std::env::var_os("CUDA_HOME").map(in_home));
    let ptx = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("mean.ptx");
    // The oldest GPUs that CUDA 13 supports. The driver compiles the PTX for the GPU that it finds.
    let status = Command::new(nvcc.unwrap_or_else(|| "nvcc".into()))
        .args(["-ptx", "-arch=compute_75", "-std=c++17", "-O3", "kernels/mean.cu", "-o"])
        .arg(ptx)
        // Flags that make candle's kernels compile quickly would make this kernel slow.
        .env_remove("NVCC_APPEND_FLAGS")
        .status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        println!("cargo::error=nvcc did not compile kernels/mean.cu: {status:?}; set CUDA_HOME to a CUDA toolkit");
    }
}
