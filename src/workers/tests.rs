//! The turns of jobs, panics, and waiting while the threads are busy.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;

async fn collect<T: Send + 'static>(mut slices: Slices<T>) -> Vec<Result<T, Panicked>> {
    let mut all = Vec::new();
    while let Some(result) = slices.next().await {
        all.push(result);
    }
    all
}

#[tokio::test]
async fn all_results_arrive_in_order() {
    let workers = Workers::start(3).unwrap();
    for slices in [0, 1, 7, 500] {
        let results = collect(workers.run(slices, |i| i * i)).await;
        assert_eq!(results, (0..slices).map(|i| Ok(i * i)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_job_for_each_thread_runs_once_on_each_thread_that_can_run() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(cores + 50).unwrap();
    let jobs = [0, 1].map(|_| workers.on_each_thread(|n| (n, thread::current().name().map(str::to_owned))));
    for job in jobs {
        let expected: Vec<_> = (0..cores).map(|n| Ok((n, Some(format!("worker-{n}"))))).collect();
        assert_eq!(collect(job).await, expected);
    }
    assert_eq!(collect(workers.run(5, |i| i)).await.len(), 5);
}

#[tokio::test]
async fn a_panic_fails_only_its_slice() {
    let workers = Workers::start(1).unwrap();
    let results = collect(workers.run(3, |i| if i == 1 { panic!("slice {i}") } else { i })).await;
    assert_eq!(results, [Ok(0), Err(Panicked("slice 1".to_owned())), Ok(2)]);
    assert_eq!(collect(workers.run(1, |i| i)).await, [Ok(0)]);
}

/// The only thread is held at the first slice of a long job while other jobs arrive.
#[tokio::test]
async fn jobs_take_turns_and_follow_up_jobs_run_next() {
    let workers = Workers::start(1).unwrap();
    let (started, at_first) = mpsc::channel();
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&order);
    let long = workers.run(SLICES_PER_TURN + 2, move |i| {
        if i == 0 {
            started.send(()).unwrap();
            lock(&held).recv().unwrap();
        }
        lock(&log).push(("long", i));
    });
    at_first.recv().unwrap();
    assert_eq!(workers.waiting(), 1);
    let say = |name| {
        let log = Arc::clone(&order);
        move |i| lock(&log).push((name, i))
    };
    let short = workers.run(2, say("short"));
    let begun = say("begun");
    let begun = workers.run_next(1, Duration::ZERO, move |i, _| begun(i));
    assert_eq!(workers.waiting(), 3);
    go.send(()).unwrap();
    let (..) = tokio::join!(collect(short), collect(begun), collect(long));
    let at = |name, i| lock(&order).iter().position(|&entry| entry == (name, i)).unwrap();
    let turns = [("long", 0), ("begun", 0), ("long", SLICES_PER_TURN - 1), ("short", 0), ("short", 1)];
    let turns = turns.map(|(name, i)| at(name, i));
    assert!(turns.is_sorted() && at("short", 1) < at("long", SLICES_PER_TURN), "{:?}", lock(&order));
}

/// The example at the top of this file: the thread is held at L0 while S is added.
#[tokio::test]
async fn the_example_of_the_module_holds() {
    let workers = Workers::start(1).unwrap();
    let (started, at_first) = mpsc::channel();
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let order = Arc::new(Mutex::new(String::new()));
    let (log, also) = (Arc::clone(&order), Arc::clone(&order));
    let long = workers.run(10, move |i| {
        if i == 0 {
            started.send(()).unwrap();
            lock(&held).recv().unwrap();
        }
        lock(&log).push_str(&format!("L{i} "));
    });
    at_first.recv().unwrap();
    let short = workers.run(2, move |i| lock(&also).push_str(&format!("S{i} ")));
    go.send(()).unwrap();
    // Until its reader reads, L stops at the end of its window.
    collect(short).await;
    collect(workers.run(1, |_| ())).await;
    assert_eq!(*lock(&order), "L0 L1 L2 L3 S0 S1 ");
    collect(long).await;
    assert_eq!(*lock(&order), "L0 L1 L2 L3 S0 S1 L4 L5 L6 L7 L8 L9 ");
}

#[tokio::test]
async fn a_long_slice_yields_to_shorter_jobs_and_ends_with_its_reader() {
    const LONG: Duration = Duration::from_secs(1);
    let workers = Workers::start(1).unwrap();
    let (said, heard) = mpsc::channel();
    let (heard, is_over) = (Mutex::new(heard), Arc::new(AtomicUsize::new(0)));
    let over = Arc::clone(&is_over);
    let long = workers.run_long(1, LONG, move |_, at| {
        loop {
            at.reached()?;
            if let Ok(said) = lock(&heard).try_recv() {
                over.store(1, Ordering::SeqCst);
                return Ok::<_, Stopped>(said);
            }
        }
    });
    // The slices of this job are not much shorter than those of the first.
    let other = workers.run_long(1, LONG / 2, move |_, _| is_over.load(Ordering::SeqCst));
    let also = said.clone();
    let shorter = workers.run_long(1, LONG / 10, move |_, at| {
        at.reached().unwrap();
        also.send("shorter").unwrap();
    });
    assert_eq!(collect(shorter).await, [Ok(())]);
    assert_eq!((collect(long).await, collect(other).await), (vec![Ok(Ok("shorter"))], vec![Ok(1)]));
    // Work that only this thread may run does not wait either.
    let (started, at_first) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    let endless = workers.run_long(1, LONG, move |_, at| {
        started.send(()).unwrap();
        while at.reached().is_ok() {}
        ended.send(()).unwrap();
    });
    at_first.recv().unwrap();
    assert_eq!(collect(workers.on_each_thread(|thread| thread)).await, [Ok(0)]);
    assert_eq!(collect(workers.run(9, |slice| slice)).await.len(), 9);
    assert!(end.try_recv().is_err());
    drop(endless);
    end.recv().unwrap();
}

/// Jobs leave the queue when they are finished, and when their reader is dropped.
#[tokio::test]
async fn waiting_while_busy_ends_when_few_jobs_are_left_or_at_the_limit() {
    const EVER: Duration = Duration::from_secs(3600);
    for wanted in [true, false] {
        let workers = Arc::new(Workers::start(1).unwrap());
        workers.wait_while_busy(EVER);
        let (started, at_first) = mpsc::channel();
        let (go, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let first = workers.run(1, move |_| {
            started.send(()).unwrap();
            lock(&held).recv().unwrap();
        });
        at_first.recv().unwrap();
        let mut others = vec![workers.run(1, |_| ())];
        workers.wait_while_busy(EVER);
        others.extend((1..BUSY_JOBS_PER_THREAD).map(|_| workers.run(1, |_| ())));
        let (began, limit) = (Instant::now(), Duration::from_millis(20));
        workers.wait_while_busy(limit);
        assert!(began.elapsed() >= limit);
        let waits = {
            let workers = Arc::clone(&workers);
            thread::spawn(move || workers.wait_while_busy(EVER))
        };
        while lock(&workers.queue.state).waiting_threads == 0 {
            thread::yield_now();
        }
        if wanted {
            go.send(()).unwrap();
            waits.join().unwrap();
        } else {
            others.clear();
            assert_eq!(workers.waiting(), 0);
            waits.join().unwrap();
            go.send(()).unwrap();
        }
        collect(first).await;
        for other in others {
            assert_eq!(collect(other).await, [Ok(())]);
        }
    }
}

#[tokio::test]
async fn a_job_stays_within_its_window_and_ends_with_its_reader() {
    let workers = Workers::start(1).unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let mut slices = workers.run(1000, move |_| count.fetch_add(1, Ordering::SeqCst));
    // The only thread runs both jobs in turn: when the second is finished, the first has reached the end of its
    // window.
    collect(workers.run(100, |_| ())).await;
    assert_eq!(ran.load(Ordering::SeqCst), 4);
    slices.next().await.unwrap().unwrap();
    collect(workers.run(100, |_| ())).await;
    assert_eq!(ran.load(Ordering::SeqCst), 5);
    drop(slices);
    collect(workers.run(100, |_| ())).await;
    assert_eq!(ran.load(Ordering::SeqCst), 5);
}

/// The only thread is held at the first slice of a background job while other jobs arrive.
#[tokio::test]
async fn a_background_job_waits_for_all_other_jobs() {
    let workers = Workers::start(1).unwrap();
    let (started, at_first) = mpsc::channel();
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let order = Arc::new(Mutex::new(Vec::new()));
    let say = |name| {
        let log = Arc::clone(&order);
        move |i: usize| lock(&log).push((name, i))
    };
    let background = say("background");
    let background = workers.run_background(2, move |i, _| {
        if i == 0 {
            started.send(()).unwrap();
            lock(&held).recv().unwrap();
        }
        background(i);
    });
    at_first.recv().unwrap();
    let jobs = ["first", "second"].map(|name| workers.run(SLICES_PER_TURN, say(name)));
    go.send(()).unwrap();
    let [first, second] = jobs;
    let (..) = tokio::join!(collect(background), collect(first), collect(second));
    let order = lock(&order).clone();
    assert_eq!((order.first(), order.last()), (Some(&("background", 0)), Some(&("background", 1))), "{order:?}");
    assert_eq!(order.len(), 2 + 2 * SLICES_PER_TURN);
}

#[tokio::test]
async fn every_job_runs_at_the_yield_points_of_a_background_job() {
    let workers = Workers::start(1).unwrap();
    let (started, at_first) = mpsc::channel();
    let done = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&done);
    let background = workers.run_background(1, move |_, at| {
        started.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while seen.load(Ordering::Relaxed) < 3 && Instant::now() < deadline {
            at.reached().unwrap();
        }
        seen.load(Ordering::Relaxed)
    });
    at_first.recv().unwrap();
    let count = move |_, _: &dyn YieldPoint| done.fetch_add(1, Ordering::Relaxed);
    // The slices of one of the jobs are longer than any of the background job.
    let short = workers.run_long(2, Duration::ZERO, count.clone());
    let long = workers.run_long(1, Duration::from_secs(3600), count);
    assert_eq!(collect(background).await, [Ok(3)]);
    let (..) = tokio::join!(collect(short), collect(long));
}
