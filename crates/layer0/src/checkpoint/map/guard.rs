//! Handles SIGBUS for guarded memory maps. As libwayland does for its clients' shared memory (`wayland-shm.c`), the
//! handler replaces the page of the fault and all later pages of that map with anonymous memory of zeros, and sets a
//! flag for the readers of the map.

#![allow(unsafe_code)] // A signal handler that maps memory.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::Mmap;

/// The number of maps that can be guarded at once. A further map is not guarded, and the log says so.
const SLOTS: usize = 4096;

/// The guarded maps. The signal handler reads this array, so access takes no locks and allocates no memory.
static GUARDED: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

struct Slot {
    /// The first address of the map, or 0 if the slot is free.
    start: AtomicUsize,
    /// The address after the last byte of the map.
    end: AtomicUsize,
    damaged: AtomicBool,
}

/// The registration of one guarded map. Dropping the guard ends it.
#[derive(Debug)]
pub struct Guard(Option<&'static Slot>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.start.load(Ordering::Relaxed))
    }
}

impl Slot {
    const fn free() -> Self {
        Self { start: AtomicUsize::new(0), end: AtomicUsize::new(0), damaged: AtomicBool::new(false) }
    }
}

impl Guard {
    pub fn of(map: &Mmap) -> Self {
        if !*INSTALLED.get_or_init(install) {
            tracing::warn!("SIGBUS cannot be handled: a table that is cut short under its map ends the process");
            return Self(None);
        }
        let start = map.as_ptr().addr();
        let free = |slot: &&Slot| slot.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = GUARDED.iter().find(free);
        match slot {
            Some(slot) => {
                slot.damaged.store(false, Ordering::Relaxed);
                slot.end.store(start + map.len(), Ordering::Release);
            }
            None => tracing::warn!("over {SLOTS} maps: one that is cut short now ends the process"),
        }
        Self(slot)
    }

    pub fn is_damaged(&self) -> bool {
        self.0.is_some_and(|slot| slot.damaged.load(Ordering::SeqCst))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.end.store(0, Ordering::Release);
            slot.start.store(0, Ordering::Release);
        }
    }
}

static INSTALLED: OnceLock<bool> = OnceLock::new();
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// The action for SIGBUS that was installed before: Rust's own handler, which reports stack overflows.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() -> bool {
    // SAFETY: sysconf takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if let Ok(page) = usize::try_from(page) {
        PAGE.store(page, Ordering::Relaxed);
    }
    // SAFETY: all zeros is a valid sigaction, and the call of sigaction below overwrites it.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction without a new action only writes the installed action to `before`, which has that type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 || BEFORE.set(before).is_err() {
        return false;
    }
    // SAFETY: all zeros is a valid sigaction, and the fields that matter are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and is a function that lives as long as the
    // program.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) == 0 }
}

/// Handles SIGBUS. The handler can interrupt any code, so it uses only atomics and two system calls.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, whose address is the address of the fault.
    let address = unsafe { (*info).si_addr() }.addr();
    for slot in &GUARDED {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
        if start != 0 && (start..end).contains(&address) {
            // The flag is set first, because another thread may read the zeros as soon as they are mapped and then ask
            // for the flag.
            slot.damaged.store(true, Ordering::SeqCst);
            if zeros(address, end) {
                return;
            }
        }
    }
    not_ours(signal, info, context);
}

/// Maps zeros from the page of `address` to `end` and returns whether that succeeded.
fn zeros(address: usize, end: usize) -> bool {
    let page = address - address % PAGE.load(Ordering::Relaxed);
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the range lies in a map that its guard keeps alive, so no other mapping can be in the range.
    let put = unsafe {
        let place = std::ptr::with_exposed_provenance_mut(page);
        libc::mmap(place, end - page, libc::PROT_READ, flags, -1, 0)
    };
    put != libc::MAP_FAILED
}

/// Does what would have happened without this module: calls the earlier handler, or ends the process by the same
/// signal.
fn not_ours(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if let Some(before) = BEFORE.get()
        && before.sa_sigaction > libc::SIG_IGN
        && before.sa_flags & libc::SA_SIGINFO != 0
    {
        // SAFETY: a handler that was installed with SA_SIGINFO has this signature.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
            unsafe { std::mem::transmute(before.sa_sigaction) };
        return handler(signal, info, context);
    }
    // SAFETY: restoring the default action has no preconditions. The fault is raised again on return and then meets
    // that action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
