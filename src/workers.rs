//! The worker threads, which tokenize and pool, and the order in which they process jobs.
//!
//! A job is cut into slices of at most a few milliseconds. Waiting jobs take turns of `SLICES_PER_TURN` slices, so a
//! small request waits for a turn or two and never for a whole batch. A job that is alone gets every thread. While a
//! slice takes longer, such as one long text, jobs with much shorter slices take their turns inside it, at its yield
//! points ([`Workers::run_long`]). A job runs at most a window of slices ahead of its reader, which limits how much
//! memory a slow reader costs. If the reader is dropped, the job's remaining slices are not run.
//!
//! # Example
//!
//! There is one thread. It runs slice 0 of job L, which has 10 slices, when job S with 2 slices is added. The thread
//! then runs:
//!
//! ```text
//! L0 L1 L2 L3 | S0 S1 | L4 L5 L6 L7 | L8 L9
//! ```
//!
//! So S waits for the rest of one turn, 3 more slices, and not for the other 9. If L0 to L9 were a single slice of 100
//! ms with yield points, S would run at the first yield point after 4 ms. The window of a job is `2 * threads + 2` = 4
//! slices: if nobody reads the results of L, it stops after L3 and leaves the queue until a result is read.
//!
//! A background job ([`Workers::run_background`]) has the lowest turn: its next slice begins only while no other job waits, and all other
//! jobs are run at the yield points of its slices.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use layer0::yield_point::{Stopped, Undisturbed, YieldPoint};

/// A fixed set of worker threads. Dropping it ends each thread after its current slice.
pub struct Workers {
    queue: Arc<Queue>,
}

/// The message of a panic in a slice. The worker thread survives the panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked(pub String);

/// The number of slices that a job runs before the next job's turn. Running a few in a row keeps the job's data in the
/// caches.
const SLICES_PER_TURN: usize = 4;

/// If at least this many jobs per thread are waiting, all threads will be busy for some more milliseconds.
const BUSY_JOBS_PER_THREAD: usize = 2;

struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
    /// Notified when [`Queue::is_busy`] has become false.
    no_longer_busy: Condvar,
    threads: usize,
}

#[derive(Default)]
struct QueueState {
    /// The jobs that have a slice to claim, in the order of their turns. A job is listed at most once.
    jobs: VecDeque<Turn>,
    /// The background jobs that have a slice to claim, in the order of their turns. They are run while `jobs` is empty.
    background: VecDeque<Turn>,
    /// For each thread, the slices that only this thread may run.
    pinned: Vec<VecDeque<(Arc<dyn SlicedJob>, usize)>>,
    /// The number of threads that are blocked in [`Workers::wait_while_busy`].
    waiting_threads: usize,
    closed: bool,
}

struct Turn {
    job: Arc<dyn SlicedJob>,
    /// The number of slices of this turn that have been claimed.
    claimed_slices: usize,
}

trait SlicedJob: Send + Sync {
    /// Claims the next slice. Returns its index and whether another slice can be claimed after it, or `None` if there
    /// is nothing to do now.
    fn claim(&self) -> Option<(usize, bool)>;
    /// Runs a slice on the thread with this number.
    fn run(&self, slice: usize, queue: &Queue, thread: usize);
    /// Returns how long the longest slice takes, or zero if none takes more than a few milliseconds.
    fn longest(&self) -> Duration;
    /// Returns whether the job is run only while no other job waits.
    fn is_background(&self) -> bool;
    /// Returns whether the results will never be read, because their reader was dropped.
    fn is_abandoned(&self) -> bool;
}

struct Job<T, F> {
    work: F,
    longest: Duration,
    background: bool,
    state: Mutex<JobState<T>>,
}

/// The yield point of a slice that takes longer than a turn. Jobs whose slices are much shorter take turns here, inside
/// the slice. So a small request waits only a few milliseconds for a long text, and a long text waits only for other
/// long texts.
struct LongSlice<'a> {
    queue: &'a Queue,
    job: &'a dyn SlicedJob,
    thread: usize,
    /// The time at which this slice last started or resumed.
    since: Cell<Instant>,
}

/// How long a long slice runs before other jobs may take a turn inside it.
const YIELD_INTERVAL: Duration = Duration::from_millis(4);

/// How long a slice of a background job runs before other jobs may take turns inside it.
const BACKGROUND_YIELD_INTERVAL: Duration = Duration::from_millis(1);

/// The assumed length of the longest slice of a background job. The value matters only in that it is not zero, so that the slices
/// receive a yield point.
const BACKGROUND_SLICE: Duration = Duration::from_secs(1);

/// A job may take a turn inside a slice only if its own slices are shorter by this factor, which also limits the
/// nesting.
const NESTING_RATIO: u32 = 4;

impl YieldPoint for LongSlice<'_> {
    fn reached(&self) -> Result<(), Stopped> {
        let background = self.job.is_background();
        let interval = if background { BACKGROUND_YIELD_INTERVAL } else { YIELD_INTERVAL };
        if self.since.get().elapsed() < interval {
            return Ok(());
        }
        if self.job.is_abandoned() {
            return Err(Stopped);
        }
        if background {
            // The threads of the connections, which may be waiting for a processor, come first as well.
            thread::yield_now();
            // A background job waits for all other jobs. None of them ever runs a background job inside itself.
            while self.queue.run_shorter(Duration::MAX, self.thread)? {}
        } else {
            self.queue.run_shorter(self.job.longest() / NESTING_RATIO, self.thread)?;
        }
        self.since.set(Instant::now());
        Ok(())
    }
}

struct JobState<T> {
    slices: usize,
    window: usize,
    /// The index of the next slice to claim.
    next: usize,
    /// The number of results that the reader has taken.
    read: usize,
    /// The results of the slices from index `read` on, `None` while a slice is running.
    done: VecDeque<Option<Result<T, Panicked>>>,
    reader: Option<Waker>,
    /// Whether the job is in the queue.
    queued: bool,
    abandoned: bool,
}

/// The results of a job, in the order of its slices. Dropping it abandons the slices that have not begun.
pub struct Slices<T: Send + 'static> {
    queue: Arc<Queue>,
    job: Arc<dyn JobResults<T>>,
}

trait JobResults<T>: SlicedJob {
    fn poll(&self, context: &mut Context<'_>) -> (Poll<Option<Result<T, Panicked>>>, bool);
    /// Abandons the job. Returns whether it is still in the queue.
    fn abandon(&self) -> bool;
    fn as_slice(self: Arc<Self>) -> Arc<dyn SlicedJob>;
}

/// Locks `mutex` even if it is poisoned: no code that can panic runs while one of these locks is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Starts `threads` worker threads, or, for 0, as many as the process may use, which includes the cgroup's CPU
    /// quota.
    ///
    /// # Errors
    /// If the system does not provide the threads.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let threads = if threads > 0 { threads } else { thread::available_parallelism().map_or(1, usize::from) };
        let state = QueueState { pinned: (0..threads).map(|_| VecDeque::new()).collect(), ..QueueState::default() };
        let queue =
            Arc::new(Queue { state: Mutex::new(state), wake: Condvar::new(), no_longer_busy: Condvar::new(), threads });
        let workers = Self { queue: Arc::clone(&queue) };
        for n in 0..threads {
            let queue = Arc::clone(&queue);
            let started = thread::Builder::new().name(format!("worker-{n}")).spawn(move || queue.work(n));
            started.map_err(|e| std::io::Error::new(e.kind(), format!("thread {} of {threads}: {e}", n + 1)))?;
        }
        Ok(workers)
    }

    pub fn threads(&self) -> usize {
        self.queue.threads
    }

    /// Returns the number of jobs that have a slice waiting for a thread.
    pub fn waiting(&self) -> usize {
        lock(&self.queue.state).jobs.len()
    }

    /// Blocks while enough jobs are waiting to keep all threads busy, for at most `limit`.
    pub fn wait_while_busy(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = lock(&self.queue.state);
        state.waiting_threads += 1;
        while self.queue.is_busy(&state) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { break };
            state = self.queue.no_longer_busy.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting_threads -= 1;
    }

    /// Runs `work(0)` to `work(slices - 1)`, in turns with other jobs.
    pub fn run<T, F>(&self, slices: usize, work: F) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize) -> T + Send + Sync + 'static,
    {
        self.enqueue(slices, Duration::ZERO, false, move |slice, _| work(slice), VecDeque::push_back)
    }

    /// Like [`Workers::run`], for slices of which the longest takes about `longest`. If that is more than a few
    /// milliseconds, `work` must call the yield point that it receives. When the [`Slices`] are dropped, the yield
    /// point tells `work` to stop.
    pub fn run_long<T, F>(&self, slices: usize, longest: Duration, work: F) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync + 'static,
    {
        self.enqueue(slices, longest, false, work, VecDeque::push_back)
    }

    /// Like [`Workers::run_long`], but the job goes to the front of the queue. It is for the second job of a request,
    /// whose first job has already waited.
    pub fn run_next<T, F>(&self, slices: usize, longest: Duration, work: F) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync + 'static,
    {
        self.enqueue(slices, longest, false, work, VecDeque::push_front)
    }

    /// Like [`Workers::run_long`], for work that nobody waits for: its slices begin only while no other job waits, and at
    /// their yield points all waiting jobs are run.
    pub fn run_background<T, F>(&self, slices: usize, work: F) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync + 'static,
    {
        self.enqueue(slices, BACKGROUND_SLICE, true, work, VecDeque::push_back)
    }

    fn enqueue<T, F>(
        &self,
        slices: usize,
        longest: Duration,
        background: bool,
        work: F,
        place: fn(&mut VecDeque<Turn>, Turn),
    ) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync + 'static,
    {
        let state = JobState {
            slices,
            window: 2 * self.queue.threads + 2,
            next: 0,
            read: 0,
            done: VecDeque::new(),
            reader: None,
            queued: slices > 0,
            abandoned: false,
        };
        let job = Arc::new(Job { work, longest, background, state: Mutex::new(state) });
        if slices > 0 {
            self.queue.push(Arc::clone(&job) as Arc<dyn SlicedJob>, place);
        }
        Slices { queue: Arc::clone(&self.queue), job }
    }

    /// Runs `work` once on each of as many threads as can run at the same time, with the number of the thread. It
    /// prepares data that each thread needs before it is fast.
    pub fn on_each_thread<T, F>(&self, work: F) -> Slices<T>
    where
        T: Send + 'static,
        F: Fn(usize) -> T + Send + Sync + 'static,
    {
        let threads = self.queue.threads.min(thread::available_parallelism().map_or(1, usize::from));
        let state = JobState {
            slices: threads,
            window: threads,
            next: threads,
            read: 0,
            done: (0..threads).map(|_| None).collect(),
            reader: None,
            queued: false,
            abandoned: false,
        };
        let work = move |slice, _: &dyn YieldPoint| work(slice);
        let job = Arc::new(Job { work, longest: Duration::ZERO, background: false, state: Mutex::new(state) });
        for (thread, pinned) in lock(&self.queue.state).pinned.iter_mut().enumerate().take(threads) {
            pinned.push_back((Arc::clone(&job) as Arc<dyn SlicedJob>, thread));
        }
        self.queue.wake.notify_all();
        Slices { queue: Arc::clone(&self.queue), job }
    }
}

impl QueueState {
    fn turns(&mut self, background: bool) -> &mut VecDeque<Turn> {
        if background { &mut self.background } else { &mut self.jobs }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.queue.state).closed = true;
        self.queue.wake.notify_all();
    }
}

impl Queue {
    fn push(&self, job: Arc<dyn SlicedJob>, place: fn(&mut VecDeque<Turn>, Turn)) {
        place(lock(&self.state).turns(job.is_background()), Turn { job, claimed_slices: 0 });
        self.wake.notify_one();
    }

    /// Removes a job whose reader was dropped.
    fn remove(&self, job: &Arc<dyn SlicedJob>) {
        let mut state = lock(&self.state);
        let turns = state.turns(job.is_background());
        turns.retain(|turn| !std::ptr::addr_eq(Arc::as_ptr(&turn.job), Arc::as_ptr(job)));
        self.notify_if_not_busy(&state);
    }

    fn notify_if_not_busy(&self, state: &QueueState) {
        if state.waiting_threads > 0 && !self.is_busy(state) {
            self.no_longer_busy.notify_all();
        }
    }

    fn is_busy(&self, state: &QueueState) -> bool {
        state.jobs.len() >= BUSY_JOBS_PER_THREAD * self.threads
    }

    fn work(&self, thread: usize) {
        while let Some((job, slice)) = self.next(thread) {
            job.run(slice, self, thread);
        }
    }

    /// Runs a turn of the first job whose slices take at most `longest`, and slices that only this thread may run,
    /// inside the slice that this thread is running. Returns whether the turn was used up, so that more slices may wait.
    fn run_shorter(&self, longest: Duration, thread: usize) -> Result<bool, Stopped> {
        for _ in 0..SLICES_PER_TURN {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(Stopped);
            }
            let pinned = state.pinned.get_mut(thread).and_then(VecDeque::pop_front);
            let first = |state: &QueueState| state.jobs.iter().position(|turn| turn.job.longest() <= longest);
            let found = pinned.or_else(|| first(&state).and_then(|at| self.claim(&mut state, at, false)));
            drop(state);
            let Some((job, slice)) = found else { return Ok(false) };
            job.run(slice, self, thread);
        }
        Ok(true)
    }

    /// Claims the next slice of the job at index `at` of the queue or of the background queue, and moves the job to the
    /// place of its next turn.
    fn claim(&self, state: &mut QueueState, at: usize, background: bool) -> Option<(Arc<dyn SlicedJob>, usize)> {
        let turns = state.turns(background);
        let Turn { job, claimed_slices } = turns.remove(at)?;
        let claimed = job.claim();
        if let Some((_, true)) = claimed {
            let job = Arc::clone(&job);
            match claimed_slices + 1 {
                SLICES_PER_TURN.. => turns.push_back(Turn { job, claimed_slices: 0 }),
                claimed_slices => turns.push_front(Turn { job, claimed_slices }),
            }
            self.wake.notify_one();
        } else {
            self.notify_if_not_busy(state);
        }
        claimed.map(|(slice, _)| (job, slice))
    }

    fn next(&self, thread: usize) -> Option<(Arc<dyn SlicedJob>, usize)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(pinned) = state.pinned.get_mut(thread).and_then(VecDeque::pop_front) {
                return Some(pinned);
            }
            let background = state.jobs.is_empty();
            if background && state.background.is_empty() {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if let Some(claimed) = self.claim(&mut state, 0, background) {
                return Some(claimed);
            }
        }
    }
}

impl<T: Send, F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync> SlicedJob for Job<T, F> {
    fn claim(&self) -> Option<(usize, bool)> {
        let mut state = lock(&self.state);
        if !state.may_claim() {
            state.queued = false;
            return None;
        }
        let slice = state.next;
        state.next += 1;
        state.done.push_back(None);
        state.queued = state.may_claim();
        Some((slice, state.queued))
    }

    fn run(&self, slice: usize, queue: &Queue, thread: usize) {
        let result = match self.longest.is_zero() {
            true => run_inline(|| (self.work)(slice, &Undisturbed)),
            false => {
                let point = LongSlice { queue, job: self, thread, since: Cell::new(Instant::now()) };
                run_inline(|| (self.work)(slice, &point))
            }
        };
        let mut state = lock(&self.state);
        let place = slice - state.read;
        if let Some(slot) = state.done.get_mut(place) {
            *slot = Some(result);
        }
        if let Some(reader) = state.reader.take() {
            drop(state);
            reader.wake();
        }
    }

    fn longest(&self) -> Duration {
        self.longest
    }

    fn is_background(&self) -> bool {
        self.background
    }

    fn is_abandoned(&self) -> bool {
        lock(&self.state).abandoned
    }
}

impl<T: Send, F: Fn(usize, &dyn YieldPoint) -> T + Send + Sync + 'static> JobResults<T> for Job<T, F>
where
    T: 'static,
{
    /// Returns the next result, and whether the job must be added to the queue again.
    fn poll(&self, context: &mut Context<'_>) -> (Poll<Option<Result<T, Panicked>>>, bool) {
        let mut state = lock(&self.state);
        if state.read == state.slices {
            return (Poll::Ready(None), false);
        }
        let Some(result) = state.done.front_mut().and_then(Option::take) else {
            state.reader = Some(context.waker().clone());
            return (Poll::Pending, false);
        };
        state.done.pop_front();
        state.read += 1;
        let requeue = !state.queued && state.may_claim();
        state.queued |= requeue;
        (Poll::Ready(Some(result)), requeue)
    }

    fn abandon(&self) -> bool {
        let mut state = lock(&self.state);
        state.abandoned = true;
        state.queued
    }

    fn as_slice(self: Arc<Self>) -> Arc<dyn SlicedJob> {
        self
    }
}

impl<T> JobState<T> {
    fn may_claim(&self) -> bool {
        !self.abandoned && self.next < self.slices && self.next - self.read < self.window
    }
}

impl<T: Send + 'static> Slices<T> {
    /// Returns the result of the next slice, or `None` after the last one.
    ///
    /// # Errors
    /// If the slice panicked.
    pub async fn next(&mut self) -> Option<Result<T, Panicked>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Like [`Slices::next`], for use in streams.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<T, Panicked>>> {
        let (result, requeue) = self.job.poll(context);
        if requeue {
            self.queue.push(Arc::clone(&self.job).as_slice(), VecDeque::push_back);
        }
        result
    }
}

impl<T: Send + 'static> Drop for Slices<T> {
    fn drop(&mut self) {
        if self.job.abandon() {
            self.queue.remove(&Arc::clone(&self.job).as_slice());
        }
    }
}

/// Runs `work` on the current thread, for work that is shorter than handing it to a worker thread.
///
/// # Errors
/// If `work` panics.
pub fn run_inline<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Panicked::from_payload(&*panic))
}

static PANICS: AtomicU64 = AtomicU64::new(0);

impl Panicked {
    /// Converts the payload of a caught panic, and counts the panic.
    pub fn from_payload(panic: &(dyn Any + Send)) -> Self {
        PANICS.fetch_add(1, Ordering::Relaxed);
        Self(message(panic))
    }
}

/// Returns the number of caught panics of this process.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
