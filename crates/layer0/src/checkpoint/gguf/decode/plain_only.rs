//! Stands in for the decoder of quantized blocks in builds without candle.

use std::convert::Infallible;

pub const EXPECTED: &str = "F32, F16 or BF16, because this build does not decode quantized tensors";
pub const REMEDY: &str = "build with the feature `candle`, or take a GGUF file of plain numbers";

/// No block type can be decoded.
#[derive(Clone, Copy)]
pub enum BlockType {}

impl BlockType {
    pub fn block_size(self) -> usize {
        match self {}
    }

    pub fn type_size(self) -> usize {
        match self {}
    }
}

pub const fn block_type(_dtype: u32) -> Option<(&'static str, BlockType)> {
    None
}

pub fn decode_rows(_: &[u8], blocks: BlockType, _: usize, _: usize) -> Result<Vec<u8>, Infallible> {
    match blocks {}
}
