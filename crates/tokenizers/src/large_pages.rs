//! Memory for tables that are read at random positions.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A slice of fixed length that Linux is asked to keep in pages of 2 MiB. Random reads then miss the TLB less often. A miss costs
/// most on virtual machines.
#[derive(Debug)]
pub struct LargePages<T> {
    map: MmapMut,
    of: PhantomData<T>,
}

impl<T: Pod> LargePages<T> {
    /// Allocates `length` zeros. Returns `None` when the system gives no memory, or `length` is zero.
    pub fn zeroed(length: usize) -> Option<Self> {
        let map = MmapMut::map_anon(length.checked_mul(size_of::<T>())?).ok()?;
        // This is only advice: a system that does not support it, or whose setting is "never", uses small pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Self { map, of: PhantomData })
    }
}

impl<T: Pod> Deref for LargePages<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map)
    }
}

impl<T: Pod> DerefMut for LargePages<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

impl AsRef<[u8]> for LargePages<u8> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
