//! Changes seeds a little, with random bytes, numbers at a limit, keywords of the formats, and parts of other seeds.

use fastrand::Rng;

/// Keywords of the formats, and strings that are hard for their readers.
const WORDS: [&[u8]; 26] = [
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"0.5",
    b"\"\"",
    b"[[[[[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff\xfe",
    b"\"input\"",
    b"\"data_offsets\":[0,9223372036854775807]",
    b"\"shape\":[4294967295,4294967295]",
    b"\"F32\"",
    b"\"BF16\"",
    b"..",
    b"/dev/zero",
    b"GGUF",
    b"\"model\"",
    b"\"vocab\"",
    b"\0\0\0\0",
    b"\xe2\x96\x81",
];

const NUMBERS: [u64; 9] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX, 1 << 40];

/// The largest size of an input in bytes. Longer inputs are slow and find no more.
const LONGEST: usize = 1 << 20;

pub fn one(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = corpus[rng.usize(..corpus.len())].clone();
    for _ in 0..1 << rng.u32(0..4) {
        change(&mut input, corpus, rng);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    // Half of the changes are at the beginning, where headers are.
    let head = if rng.bool() { input.len() } else { input.len().min(512) };
    let at = rng.usize(..=head);
    let end = (at + (1 << rng.u32(0..10))).min(input.len());
    match rng.u32(0..9) {
        0 if at < input.len() => input[at] = rng.u8(..),
        1 if at < input.len() => input[at] ^= 1 << rng.u32(0..8),
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        4 => drop(input.splice(at..at, WORDS[rng.usize(..WORDS.len())].iter().copied())),
        5 => drop(input.splice(at..end, WORDS[rng.usize(..WORDS.len())].iter().copied())),
        6 => {
            let bytes = NUMBERS[rng.usize(..NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.usize(..4)].min(input.len() - at);
            input[at..at + width].copy_from_slice(&bytes[..width]);
        }
        7 => {
            let other = &corpus[rng.usize(..corpus.len())];
            let from = rng.usize(..=other.len());
            let to = (from + (1 << rng.u32(0..12))).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.truncate(at),
    }
}
