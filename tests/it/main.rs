//! The one integration binary: real requests over a socket, real checkpoints, the real command line.

// Tests say what must hold by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod architecture;
mod common;
mod config;
mod contract;
mod eval;
mod golden;
mod loading;
mod process;
mod properties;
mod refine;
