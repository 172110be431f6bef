//! An allocator that counts the bytes that it takes from the system's allocator.

#![allow(unsafe_code)] // GlobalAlloc is an unsafe trait.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed to the system's allocator unchanged, which meets the requirements of the trait.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller of `alloc` guarantees what `System.alloc` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `place` comes from `System.alloc` with the same layout, as the caller of `dealloc` guarantees.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Starts a measurement, and returns the number of bytes that are allocated now.
pub fn watermark() -> usize {
    let now = NOW.load(Ordering::Relaxed);
    PEAK.store(now, Ordering::Relaxed);
    now
}

/// Returns the largest number of bytes that were allocated at once since the last call of [`watermark`].
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}
