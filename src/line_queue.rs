//! Lines for a reader who may have stopped reading: a bounded queue, and a thread of its own that writes.
//!
//! A pipe whose reader stands still blocks whoever writes to it, and standard error is such a pipe under most
//! supervisors. Here only the writing thread blocks. Lines that find no room in the queue are dropped and counted.
//! (`tracing-appender` is bounded by lines alone, and prints to standard output when its queue is full at the exit.)

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that wait for the writing thread: some ten thousand lines of the access log.
const CAPACITY: usize = 4 << 20;

/// Bytes of one write. A pipe takes so many at once, and never mixes them with what other processes write.
const WRITE: usize = 4096;

/// What the writing thread sleeps after a batch. Under load lines gather meanwhile, and no request wakes the thread.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a flush goes on while the reader takes nothing.
const STALLED: Duration = Duration::from_secs(1);

/// How long a flush goes on with a reader that is slow.
const LONGEST_FLUSH: Duration = Duration::from_secs(5);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines this process has dropped.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The queue's entrance. What is written at once, such as one line, is taken or dropped as a whole.
#[derive(Clone)]
pub struct LineQueue(Arc<Shared>);

/// Waits when it is dropped until the queue has been written, or the reader has stopped reading.
#[must_use]
pub struct FlushOnDrop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or to hurry for.
    filled: Condvar,
    /// Something has been written.
    written: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// The thread waits for `filled`.
    idle: bool,
    /// Lines that found no room and have not been reported yet.
    unreported: u64,
    /// Bytes that have been taken from `pending`, and how many of these have been dealt with.
    taken: u64,
    done: u64,
    hurry: bool,
}

impl LineQueue {
    /// Starts the thread that writes to `out`. When the queue was full and has room again, `report` is called on that
    /// thread with the number of lines that were dropped meanwhile.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        out: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Self, FlushOnDrop)> {
        let shared = Arc::<Shared>::default();
        let writing = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writing.write(out, report))?;
        Ok((Self(Arc::clone(&shared)), FlushOnDrop(shared)))
    }

    fn push(&self, lines: &[u8]) {
        let mut state = self.0.lock();
        if state.pending.len() + lines.len() > CAPACITY {
            let count = count(lines);
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

impl Shared {
    /// A poisoned lock is taken all the same: no code that can panic runs under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write, report: impl Fn(u64)) {
        loop {
            let (batch, unreported) = self.next_batch();
            // The queue has room now, and holds nothing that came later than what was dropped.
            if unreported > 0 {
                report(unreported);
            }
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(whole_lines(rest));
                rest = later;
                if write_all(&mut out, now).is_err() {
                    DROPPED.fetch_add(count(now), Ordering::Relaxed);
                }
                self.lock().done += now.len() as u64;
                self.written.notify_all();
            }
        }
    }

    /// Waits for something to write. Gives back with it how many lines were dropped after it.
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
            let wait = self.0.written.wait_timeout(state, left.min(STALLED));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            if state.done == done {
                break;
            }
        }
    }
}

/// The length of the lines at the beginning of `bytes` that fit into one write; of the first line, if it does not fit.
fn whole_lines(bytes: &[u8]) -> usize {
    let fitting = bytes.get(..WRITE).unwrap_or(bytes);
    if fitting.len() == bytes.len() {
        return bytes.len();
    }
    let end = memchr::memrchr(b'\n', fitting).or_else(|| memchr::memchr(b'\n', bytes));
    end.map_or(bytes.len(), |end| end + 1)
}

/// As [`Write::write_all`]; waits for a pipe that whoever started this process has made non-blocking.
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

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reader that takes what it is allowed to take.
    struct Gate {
        open: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A sender that is gone has opened the gate for good.
            let _ = self.open.recv();
            // Pipes take a part, and say so.
            let part = &bytes[..bytes.len().min(1000)];
            self.taken.lock().unwrap().extend_from_slice(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_find_no_room_are_dropped_and_the_others_come_in_order() {
        let (open, gate) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let (reported, reports) = mpsc::channel();
        let out = Gate { open: gate, taken: Arc::clone(&taken) };
        let (mut queue, flush) = LineQueue::start("test", out, move |n| reported.send(n).unwrap()).unwrap();
        let line = |n: usize| format!("{n:>99}\n");
        // Nothing is read: the first lines are with the thread, those after them in the queue, and then there is no room.
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
    fn a_flush_waits_for_a_reader_who_reads_and_not_for_one_who_does_not() {
        let (open, gate) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let out = Gate { open: gate, taken: Arc::clone(&taken) };
        let (mut queue, flush) = LineQueue::start("test", out, |_| {}).unwrap();
        let line = [b'x'; 9_999];
        queue.write_all(&line).unwrap();
        queue.write_all(b"\nthe last\n").unwrap();
        let started = Instant::now();
        drop(flush);
        assert!(started.elapsed() >= STALLED);
        assert!(taken.lock().unwrap().is_empty());

        let again = FlushOnDrop(Arc::clone(&queue.0));
        drop(open);
        drop(again);
        assert!(taken.lock().unwrap().ends_with(b"x\nthe last\n"));
    }

    #[test]
    fn a_reader_who_is_gone_costs_lines_and_nothing_else() {
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
        assert_eq!(whole_lines(&[line(WRITE + 1), line(10)].concat()), WRITE + 1);
        assert_eq!(whole_lines(&[line(10), line(WRITE)].concat()), 10);
    }
}
