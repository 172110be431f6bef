//! File descriptors: how many connections they allow, and a spare one for answering when none is left.

use std::fs::File;

/// The number of connections over the limit that are answered with an error at the same time.
const EXCESS_CONNECTIONS: usize = 256;

/// The number of descriptors that are reserved for files, such as models and keys at a reload.
const FILES: usize = 16;

/// How many connections may be served, and how many more may be open while they are answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub served: usize,
    pub excess: usize,
}

impl ConnectionLimits {
    /// Returns the limits for `server.max_connections`, or lower ones if the process may not open that many files. The
    /// log then has a warning.
    pub fn new(max_connections: usize) -> Self {
        let wanted = Self { served: max_connections, excess: EXCESS_CONNECTIONS };
        let Some((limit, open)) = limit().zip(open()) else { return wanted };
        let allowed = wanted.within(limit.saturating_sub(open));
        if allowed.served < max_connections {
            tracing::warn!(
                "server.max_connections is {max_connections}, but this process may have {limit} files open: at most {} \
                 connections are served; raise the limit (`ulimit -n`, LimitNOFILE= in systemd, --ulimit nofile=N in Docker)",
                allowed.served
            );
        }
        allowed
    }

    fn within(self, free: usize) -> Self {
        let free = free - FILES.min(free / 4);
        if self.served.saturating_add(self.excess) <= free {
            return self;
        }
        let excess = (free / 4).clamp(2, self.excess);
        Self { served: self.served.min(free.saturating_sub(excess)).max(1), excess }
    }
}

/// Returns the limit of open files.
fn limit() -> Option<usize> {
    #[cfg(unix)]
    return rlimit::getrlimit(rlimit::Resource::NOFILE)
        .ok()
        .map(|(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    #[cfg(not(unix))]
    None
}

/// Returns the number of open files.
fn open() -> Option<usize> {
    Some(std::fs::read_dir("/dev/fd").ok()?.count())
}

/// A spare descriptor, which is closed to accept a connection when no other descriptor is free.
#[derive(Debug)]
pub struct SpareDescriptor(Option<File>);

impl SpareDescriptor {
    pub fn new() -> Self {
        Self(None).reopened()
    }

    fn reopened(self) -> Self {
        let null = if cfg!(windows) { "NUL" } else { "/dev/null" };
        Self(self.0.or_else(|| File::open(null).ok()))
    }

    /// Opens the spare descriptor again, if it is closed and a descriptor is free.
    pub fn reopen(&mut self) {
        *self = Self(self.0.take()).reopened();
    }

    /// Closes the spare descriptor. Returns whether it was open.
    pub fn close(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_below_the_limit_of_open_files() {
        let wanted = ConnectionLimits { served: 10_000, excess: EXCESS_CONNECTIONS };
        assert_eq!(wanted.within(10_272), wanted);
        for free in [0, 1, 8, 50, 1000, 10_271] {
            let ConnectionLimits { served, excess } = wanted.within(free);
            assert!(served >= 1 && excess >= 2 && served < 10_000, "{free}");
            assert!(free < 8 || served + excess < free, "{free}: {served} + {excess}");
        }
        let few = ConnectionLimits { served: 5, excess: EXCESS_CONNECTIONS };
        assert_eq!(few.within(50).served, 5);
    }

    #[test]
    fn the_spare_descriptor_is_closed_once_until_it_is_opened_again() {
        let mut reserve = SpareDescriptor::new();
        assert_eq!((reserve.close(), reserve.close()), (true, false));
        reserve.reopen();
        assert!(reserve.close());
    }
}
