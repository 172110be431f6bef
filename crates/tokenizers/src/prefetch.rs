//! A hint to the CPU that memory will be read soon.

// The only unsafe operation is a prefetch instruction, which reads nothing.
#![allow(unsafe_code)]

/// Prefetches `slice[index]`, if it exists, into the CPU's caches. Does nothing where stable Rust has no prefetch instruction
/// (everywhere but on x86-64).
#[inline]
pub fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(slice.as_ptr().wrapping_add(index).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}
