//! Memory that is read at random.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A slice of fixed length that Linux is asked to keep in pages of 2 MiB: reads at random then miss the TLB less often,
/// which costs most on virtual machines.
pub struct LargePages<T> {
    map: MmapMut,
    of: PhantomData<T>,
}

impl<T: Pod> LargePages<T> {
    /// `length` zeros; `None` when the system gives no memory, or `length` is zero.
    pub fn zeroed(length: usize) -> Option<Self> {
        let map = MmapMut::map_anon(length.checked_mul(size_of::<T>())?).ok()?;
        // Advice: a system without it, or set to "never", keeps small pages.
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
