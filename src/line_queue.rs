//! A bounded queue of lines with a thread that writes them, for output whose reader may stop reading.
//!
//! A write to a pipe blocks while the pipe is full and nobody reads it, and standard error is a pipe under most
//! supervisors.
//! With this queue only the writing thread blocks. Lines that do not fit into the queue are dropped and counted.
//! (`tracing-appender` limits only the number of lines, and prints to standard output if its queue is full at exit.)

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The capacity of the queue in bytes: about ten thousand lines of the access log.
const CAPACITY: usize = 4 << 20;

/// The size limit of one write in bytes. A write of this size to a pipe is atomic: it is not mixed with other
/// processes' output.
const LARGEST_WRITE: usize = 4096;

/// How long the writing thread sleeps after a batch. Under load, lines gather in that time, and no request has to wake
/// the thread.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a flush continues while no byte can be written.
const LONGEST_STALL: Duration = Duration::from_secs(1);

/// How long a flush continues in total.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines that this process has dropped.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The writing end of the queue. The bytes of one write, such as one line, are queued or dropped as a whole.
#[derive(Clone)]
pub struct LineQueue(Arc<SharedQueue>);

/// Waits, when it is dropped, until the queue has been written or its reader has stopped reading.
#[must_use]
pub struct FlushOnDrop(Arc<SharedQueue>);

#[derive(Default)]
struct SharedQueue {
    state: Mutex<LineQueueState>,
    /// Notified when there is something to write, or when a flush begins.
    filled: Condvar,
    /// Notified when something has been written.
    written: Condvar,
}

#[derive(Default)]
struct LineQueueState {
    pending: Vec<u8>,
    /// Whether the thread waits for `filled`.
    idle: bool,
    /// The number of dropped lines that have not been reported yet.
    unreported: u64,
    /// The number of bytes that have been taken from `pending`, and how many of these have been written or dropped.
    taken: u64,
    done: u64,
    hurry: bool,
}

impl LineQueue {
    /// Starts the thread that writes to `out`. After lines were dropped, as soon as the queue has room again, the
    /// thread calls `report` with the number of dropped lines.
    ///
    /// # Errors
    /// If the system does not provide a thread.
    pub fn start(
        name: &str,
        out: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Self, FlushOnDrop)> {
        let shared = Arc::<SharedQueue>::default();
        let writing = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writing.write(out, report))?;
        Ok((Self(Arc::clone(&shared)), FlushOnDrop(shared)))
    }

    fn push(&self, lines: &[u8]) {
        let mut state = self.0.lock();
        if state.pending.len() + lines.len() > CAPACITY {
            let count = line_count(lines);
            state.unreported += count;
            DROPPED.fetch_add(count, Ordering::Relaxed);
            return;
        }
        state.pending.extend_from_slice(lines);
        if std::mem::take(&mut state.idle) {
            self.0.filled.notify_one();
        }
    }
}

impl Write for LineQueue {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SharedQueue {
    /// Locks the state even if the lock is poisoned: no code that can panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, LineQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write, report: impl Fn(u64)) {
        loop {
            let (batch, unreported) = self.next_batch();
            // The queue has room now, and everything in it is older than the dropped lines.
            if unreported > 0 {
                report(unreported);
            }
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(whole_lines(rest));
                rest = later;
                if write_all(&mut out, now).is_err() {
                    DROPPED.fetch_add(line_count(now), Ordering::Relaxed);
                }
                self.lock().done += now.len() as u64;
                self.written.notify_all();
            }
        }
    }

    /// Waits for something to write, and returns it with the number of lines that were dropped after it.
    fn next_batch(&self) -> (Vec<u8>, u64) {
        let mut state = self.lock();
        if !state.hurry {
            state = self.filled.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
        while state.pending.is_empty() {
            state.idle = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        state.taken += state.pending.len() as u64;
        (std::mem::take(&mut state.pending), std::mem::take(&mut state.unreported))
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        let end = Instant::now() + LONGEST_FLUSH;
        let mut state = self.0.lock();
        state.hurry = true;
        self.0.filled.notify_one();
        while !state.pending.is_empty() || state.done < state.taken {
            let (done, left) = (state.done, end.saturating_duration_since(Instant::now()));
            let wait = self.0.written.wait_timeout(state, left.min(LONGEST_STALL));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            if state.done == done {
                break;
            }
        }
    }
}

/// Returns the length of the lines at the beginning of `bytes` that fit into one write, or of the first line if it does
/// not fit.
fn whole_lines(bytes: &[u8]) -> usize {
    let fitting = bytes.get(..LARGEST_WRITE).unwrap_or(bytes);
    if fitting.len() == bytes.len() {
        return bytes.len();
    }
    let end = memchr::memrchr(b'\n', fitting).or_else(|| memchr::memchr(b'\n', bytes));
    end.map_or(bytes.len(), |end| end + 1)
}

/// Like [`Write::write_all`], but waits if the parent process has made the pipe non-blocking.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

fn line_count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A writer that accepts as many bytes as the test allows.
    struct Gate {
        open: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // After the sender is dropped, everything is accepted.
            let _ = self.open.recv();
            // Like a pipe, it may accept only a part.
            let part = &bytes[..bytes.len().min(1000)];
            self.taken.lock().unwrap().extend_from_slice(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_the_others_stay_in_order() {
        let (open, gate) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let (reported, reports) = mpsc::channel();
        let out = Gate { open: gate, taken: Arc::clone(&taken) };
        let (mut queue, flush) = LineQueue::start("test", out, move |n| reported.send(n).unwrap()).unwrap();
        let line = |n: usize| format!("{n:>99}\n");
        // Nothing is read: the thread holds the first lines, the queue holds the next ones, and then the queue is full.
        let lines = 3 * CAPACITY / 100;
        for n in 0..lines {
            queue.write_all(line(n).as_bytes()).unwrap();
        }
        drop(open);
        drop(flush);
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let numbers: Vec<usize> = text.lines().map(|line| line.trim().parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
        let dropped = reports.recv().unwrap();
        assert_eq!(numbers.len() as u64 + dropped, lines as u64);
        assert!(dropped > 0 && super::dropped() >= dropped);
    }

    #[test]
    fn a_flush_waits_only_for_a_reader_that_reads() {
        let (open, gate) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let out = Gate { open: gate, taken: Arc::clone(&taken) };
        let (mut queue, flush) = LineQueue::start("test", out, |_| {}).unwrap();
        let line = [b'x'; 9_999];
        queue.write_all(&line).unwrap();
        queue.write_all(b"\nthe last\n").unwrap();
        let started = Instant::now();
        drop(flush);
        assert!(started.elapsed() >= LONGEST_STALL);
        assert!(taken.lock().unwrap().is_empty());

        let again = FlushOnDrop(Arc::clone(&queue.0));
        drop(open);
        drop(again);
        assert!(taken.lock().unwrap().ends_with(b"x\nthe last\n"));
    }

    #[test]
    fn a_closed_output_only_loses_lines() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut queue, flush) = LineQueue::start("test", Closed, |_| {}).unwrap();
        let before = dropped();
        queue.write_all(b"one\ntwo\n").unwrap();
        drop(flush);
        assert!(dropped() >= before + 2);
    }

    #[test]
    fn a_write_ends_with_a_line() {
        let line = |length: usize| [&vec![b'x'; length - 1][..], b"\n"].concat();
        assert_eq!(whole_lines(b"no end"), 6);
        assert_eq!(whole_lines(&[line(3000), line(1000), line(200)].concat()), 4000);
        assert_eq!(whole_lines(&[line(LARGEST_WRITE + 1), line(10)].concat()), LARGEST_WRITE + 1);
        assert_eq!(whole_lines(&[line(10), line(LARGEST_WRITE)].concat()), 10);
    }
}
