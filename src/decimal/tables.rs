//! Tables, computed at compile time, for writing numbers in eight or nine digits.

// An index out of range is a compile error here.
#![allow(clippy::indexing_slicing)]

/// The bounds at which the number of digits changes, or the number of zeros before them. Numbers below the first bound and from 1
/// on are rare in vectors of length 1, and are written by `zmij`.
pub const BOUNDS: [f32; 10] = [1e-5, 2e-5, 1e-4, 2e-4, 1e-3, 2e-3, 1e-2, 2e-2, 1e-1, 2e-1];

/// The format of the numbers between two bounds.
#[derive(Clone, Copy)]
pub struct Class {
    /// The number of zeros between the decimal point and the digits.
    pub zeros: usize,
    /// The number of significant digits: 8 or 9.
    pub digits: usize,
}

impl Class {
    /// Returns the class of the numbers that have reached `bounds` of the [`BOUNDS`]. `bounds` is at least 1.
    pub const fn new(bounds: usize) -> Self {
        Self { zeros: 4 - (bounds - 1) / 2, digits: 8 + bounds % 2 }
    }

    /// Returns the power of ten that moves the digits of a number before the decimal point.
    pub const fn scale(self) -> f64 {
        let (mut scale, mut left) = (1.0, self.zeros + self.digits);
        while left > 0 {
            scale *= 10.0;
            left -= 1;
        }
        scale
    }
}

/// The numbers between two powers of two. They contain at most one bound.
#[derive(Clone, Copy)]
pub struct Binade {
    /// The bound between them, or infinity.
    pub bound: f32,
    /// The number of bounds that the smallest of these numbers has reached.
    pub begun: u8,
}

impl Binade {
    /// Returns the binade of the biased exponent of an f32.
    pub const fn new(exponent: u32) -> Self {
        let (begin, end) = (f32::from_bits(exponent << 23), f32::from_bits((exponent + 1) << 23));
        let mut binade = Self { bound: f32::INFINITY, begun: 0 };
        let mut i = 0;
        while i < BOUNDS.len() {
            if BOUNDS[i] <= begin {
                binade.begun += 1;
            } else if BOUNDS[i] < end {
                binade.bound = BOUNDS[i];
            }
            i += 1;
        }
        binade
    }
}

/// The biased exponent of the smallest number that has a class.
pub const FIRST_BINADE: u32 = BOUNDS[0].to_bits() >> 23;

pub static BINADES: [Binade; 127 - FIRST_BINADE as usize] = {
    let mut binades = [Binade { bound: 0.0, begun: 0 }; 127 - FIRST_BINADE as usize];
    let mut i = 0;
    while i < binades.len() {
        binades[i] = Binade::new(FIRST_BINADE + i as u32);
        i += 1;
    }
    binades
};

/// A class in the form in which it is written.
#[derive(Clone, Copy)]
pub struct Shape {
    pub scale: f64,
    /// The bytes before the digits: comma, sign, point and zeros.
    pub prefix: [u8; 8],
    pub length: u8,
    pub nine: bool,
}

/// The shapes by class. Those of negative numbers are 16 places further.
pub static SHAPES: [Shape; 32] = {
    let mut shapes = [Shape { scale: 0.0, prefix: [0; 8], length: 0, nine: false }; 32];
    let mut bounds = 1;
    while bounds <= BOUNDS.len() {
        let class = Class::new(bounds);
        let (length, nine) = (3 + class.zeros as u8, class.digits == 9);
        shapes[bounds] = Shape { scale: class.scale(), prefix: *b",0.00000", length, nine };
        shapes[bounds + 16] = Shape { prefix: *b",-0.0000", length: length + 1, ..shapes[bounds] };
        bounds += 1;
    }
    shapes
};

pub static FOUR_DIGITS: [[u8; 4]; 10_000] = {
    let mut digits = [[0; 4]; 10_000];
    let mut n = 0;
    while n < digits.len() {
        digits[n] =
            [b'0' + (n / 1000) as u8, b'0' + (n / 100 % 10) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    digits
};
