//! The thread pool of the CPU kernels.
//!
//! A parallel region costs about a microsecond while the workers are awake: they watch an atomic word for
//! a while after each region and only then go to sleep. Each thread starts with a range of neighbouring
//! tasks, whose memory it reads in one stream; one that has finished takes tasks from the end of another's
//! range, so a slow core delays the others by one task at most. The calling thread works too.
//!
//! One region runs at a time. A second thread that starts a region meanwhile, and a task that starts one
//! itself, run their tasks alone, in order; every kernel gives the same result either way.
//!
//! The number of threads is what the process may use at once (control groups and affinity included),
//! unless the environment variable `METAL_CANDLE_THREADS` or [`set_threads`] says otherwise.

use std::{
    any::Any,
    cell::Cell,
    hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::{parts::Parts, simd};

/// How long an idle worker watches for work before it sleeps.
const WATCH: Duration = Duration::from_micros(100);

/// Runs `task(0)`, …, `task(tasks - 1)`, spread over the pool's threads; returns when all are done.
///
/// # Panics
/// With the panic of a task, once no task is running any more; tasks not yet begun are then left out.
pub fn for_each(tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    let run_alone = || (0..tasks).for_each(task);
    if tasks <= 1 || tasks > u32::MAX as usize || threads() == 1 || INSIDE.get() {
        return run_alone();
    }
    let pool = pool();
    let Ok(mut workers) = pool.region.try_lock().or_else(recover) else {
        return run_alone();
    };
    pool.run(&mut workers, tasks, task);
}

/// Splits `slice` into parts of `length` elements (the last may be shorter) and runs
/// `task(part number, part)` for each, spread over the pool's threads.
///
/// # Panics
/// If `length` is zero, and as [`for_each`] does.
pub fn for_each_part<T: Send>(slice: &mut [T], length: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    assert!(length > 0, "parts of no elements");
    let total = slice.len();
    let parts = Disjoint::new(slice);
    for_each(total.div_ceil(length), &|index| {
        let start = index * length;
        // SAFETY: each index is run once, and the ranges of different indices do not overlap.
        let part = unsafe { parts.part(start, length.min(total - start)) };
        task(index, part);
    });
}

/// How many threads work on a region.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => default_threads(),
        threads => threads,
    }
}

/// Sets how many threads work on regions that start from now on, the caller included; 0 stands for the
/// default.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// A mutable slice that several tasks write to, each its own part.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    length: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts that different threads use, as if each had been sent its part.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: it stands for the mutable slice.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), _slice: std::marker::PhantomData }
    }

    /// Where an element would be: to prefetch it, or to write what nobody else uses.
    pub(crate) fn address(&self, index: usize) -> *mut T {
        self.start.wrapping_add(index)
    }

    /// `slice[start..start + length]`.
    ///
    /// # Safety
    /// No two parts that are in use at the same time may overlap.
    ///
    /// # Panics
    /// If the part is not inside the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "a part outside its slice");
        // SAFETY: inside the slice, which is borrowed for as long as `self` lives; the caller promised
        // that nobody else uses this part.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

/// What [`set_threads`] said; 0 for the default.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is running a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn default_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    *DEFAULT.get_or_init(|| match std::env::var("METAL_CANDLE_THREADS") {
        Ok(text) => match text.parse() {
            Ok(threads) if threads > 0 => threads,
            _ => panic!("METAL_CANDLE_THREADS: `{text}` is not a number of threads; use 1 or more"),
        },
        Err(std::env::VarError::NotPresent) => thread::available_parallelism().map_or(1, usize::from),
        Err(error) => panic!("METAL_CANDLE_THREADS: {error}"),
    })
}

fn pool() -> &'static Pool {
    static POOL: Pool = Pool {
        region: Mutex::new(Workers { handles: Vec::new(), epoch: 0 }),
        state: Padded(AtomicUsize::new(0)),
        ranges: [const { Padded(Range::empty()) }; RANGES],
        job: JobCell(std::cell::UnsafeCell::new(None)),
        panic: Mutex::new(None),
    };
    &POOL
}

/// Keeps counters that different threads write out of each other's cache lines.
#[repr(align(128))]
struct Padded<T>(T);

struct Pool {
    /// Held by the thread that runs a region.
    region: Mutex<Workers>,
    /// The region: its number, whether it is open, and how many workers are in it. See [`State`].
    state: Padded<AtomicUsize>,
    /// The tasks that are left, by the thread that they were meant for.
    ranges: [Padded<Range>; RANGES],
    /// What to run. Written while no worker is in a region, read by workers that are in one.
    job: JobCell,
    /// The first panic of a region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Threads that have a range of tasks of their own; more than these share them.
const RANGES: usize = 64;

/// Tasks `start..end` of a region, as `end · 2³² + start`: its thread takes the first, others the last.
struct Range(AtomicU64);

impl Range {
    const fn empty() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Called while no worker is in a region; opening one makes it visible.
    fn set(&self, start: usize, end: usize) {
        self.0.store((end as u64) << 32 | start as u64, Ordering::Relaxed);
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|start, end| (start, (start + 1, end)))
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|start, end| (end - 1, (start, end - 1)))
    }

    /// `choose` is given a range that is not empty; it returns the task and what is left.
    fn take(&self, choose: impl Fn(u64, u64) -> (u64, (u64, u64))) -> Option<usize> {
        let mut task = None;
        let update = |range: u64| {
            let (start, end) = (range & u64::from(u32::MAX), range >> 32);
            if start >= end {
                return None;
            }
            let (chosen, (start, end)) = choose(start, end);
            task = Some(chosen as usize);
            Some(end << 32 | start)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()?;
        task
    }
}

struct Workers {
    handles: Vec<&'static Worker>,
    /// The number of the last region.
    epoch: usize,
}

struct Worker {
    /// Position among the workers.
    index: usize,
    /// Whether it is asleep or about to be.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

#[derive(Clone, Copy)]
struct Job {
    /// Outlives the region: [`Pool::run`] returns only when no worker is in it.
    task: *const (dyn Fn(usize) + Sync),
    /// How many workers may join.
    workers: usize,
    /// How many ranges the tasks were split into.
    ranges: usize,
    level: Option<simd::Level>,
}

struct JobCell(std::cell::UnsafeCell<Option<Job>>);

// SAFETY: access is ordered by `Pool::state`, as described at `Pool::job`.
unsafe impl Sync for JobCell {}

/// The word that workers watch: `epoch · 2¹⁶ + open · 2¹⁵ + workers inside`.
struct State;

impl State {
    const OPEN: usize = 1 << 15;
    const INSIDE: usize = Self::OPEN - 1;
    const EPOCH_SHIFT: u32 = 16;
}

impl Pool {
    fn run(&'static self, workers: &mut Workers, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let wanted = (threads() - 1).min(tasks - 1).min(State::INSIDE);
        while workers.handles.len() < wanted {
            match self.spawn(workers.handles.len()) {
                Some(worker) => workers.handles.push(worker),
                None => break,
            }
        }
        // SAFETY: only the lifetime changes; see `Job::task`.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(task)
        };
        let parts = Parts { whole: tasks, count: (wanted + 1).min(RANGES) };
        let ranges = parts.count;
        let job = Job { task, workers: wanted, ranges, level: simd::forced_level() };
        // SAFETY: the last region was left by all its workers, and this one is not open yet.
        unsafe { *self.job.0.get() = Some(job) };
        for (range, part) in self.ranges.iter().zip(parts.ranges()) {
            range.0.set(part.start, part.end);
        }
        workers.epoch = workers.epoch.wrapping_add(1);
        let opened = workers.epoch << State::EPOCH_SHIFT | State::OPEN;
        // Sequentially consistent, as is a worker's going to sleep: one of the two sees the other.
        self.state.0.store(opened, Ordering::SeqCst);
        for worker in workers.handles.iter().take(wanted) {
            if worker.asleep.load(Ordering::SeqCst) && worker.asleep.swap(false, Ordering::SeqCst) {
                worker.thread.get().expect("set when it was spawned").unpark();
            }
        }

        self.work(job, 0);

        self.state.0.fetch_and(!State::OPEN, Ordering::AcqRel);
        let mut patience = Patience::new();
        while self.state.0.load(Ordering::Acquire) & State::INSIDE != 0 {
            if patience.is_spent() {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Takes tasks until none is left, those of range `own` first.
    fn work(&self, job: Job, own: usize) {
        INSIDE.set(true);
        // SAFETY: this thread is the region's caller or has joined it, so the closure is alive.
        let task = unsafe { &*job.task };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for turn in 0..job.ranges {
                let range = &self.ranges[(own + turn) % job.ranges].0;
                while let Some(index) = if turn == 0 { range.take_first() } else { range.take_last() } {
                    task(index);
                }
            }
        }));
        INSIDE.set(false);
        if let Err(panic) = outcome {
            self.ranges.iter().for_each(|range| range.0.set(0, 0));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    fn spawn(&'static self, index: usize) -> Option<&'static Worker> {
        let worker: &'static Worker =
            Box::leak(Box::new(Worker { index, asleep: AtomicBool::new(false), thread: OnceLock::new() }));
        let handle = thread::Builder::new()
            .name(format!("metal-candle-{index}"))
            .spawn(move || self.serve(worker))
            .ok()?;
        worker.thread.get_or_init(|| handle.thread().clone());
        Some(worker)
    }

    /// The life of a worker.
    fn serve(&self, worker: &Worker) -> ! {
        let mut seen = 0;
        loop {
            let state = self.wait(worker, seen);
            seen = state >> State::EPOCH_SHIFT;
            if !self.join(state) {
                continue;
            }
            // SAFETY: joining an open region makes its job visible and keeps it.
            let job = unsafe { *self.job.0.get() }.expect("an open region has a job");
            if worker.index < job.workers {
                simd::set_forced_level(job.level);
                self.work(job, worker.index + 1);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open region other than `seen`; returns the state that showed it.
    fn wait(&self, worker: &Worker, seen: usize) -> usize {
        let news = |ordering| {
            let state = self.state.0.load(ordering);
            (state & State::OPEN != 0 && state >> State::EPOCH_SHIFT != seen).then_some(state)
        };
        let mut patience = Patience::new();
        loop {
            if let Some(state) = news(Ordering::Acquire) {
                return state;
            }
            if !patience.is_spent() {
                hint::spin_loop();
                continue;
            }
            worker.asleep.store(true, Ordering::SeqCst);
            if news(Ordering::SeqCst).is_none() {
                while worker.asleep.load(Ordering::SeqCst) {
                    thread::park();
                }
            }
            worker.asleep.store(false, Ordering::SeqCst);
            patience = Patience::new();
        }
    }

    /// Enters the region that `state` showed, unless it has closed meanwhile.
    fn join(&self, mut state: usize) -> bool {
        let epoch = state >> State::EPOCH_SHIFT;
        while state & State::OPEN != 0 && state >> State::EPOCH_SHIFT == epoch {
            match self.state.0.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }
}

/// A bounded time of busy waiting.
struct Patience {
    turns: u32,
    since: Option<Instant>,
}

impl Patience {
    fn new() -> Self {
        Self { turns: 0, since: None }
    }

    /// Looks at the clock only now and then.
    fn is_spent(&mut self) -> bool {
        self.turns = self.turns.wrapping_add(1);
        if !self.turns.is_multiple_of(64) {
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() > WATCH
    }
}

/// A region's panic leaves nothing broken behind, so a poisoned lock is as good as any.
fn recover<'a>(
    error: std::sync::TryLockError<MutexGuard<'a, Workers>>,
) -> Result<MutexGuard<'a, Workers>, ()> {
    match error {
        std::sync::TryLockError::Poisoned(poisoned) => Ok(poisoned.into_inner()),
        std::sync::TryLockError::WouldBlock => Err(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Tests that set the number of threads take turns.
    pub(crate) fn with_threads(count: usize, body: impl FnOnce()) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        set_threads(count);
        let outcome = catch_unwind(AssertUnwindSafe(body));
        set_threads(0);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    /// Runs a region and checks that each task ran once.
    fn count_runs(tasks: usize) {
        let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        for_each(tasks, &|index| {
            runs[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{tasks} tasks");
    }

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for count in [1, 2, 3, 7, 2] {
            with_threads(count, || {
                assert_eq!(threads(), count);
                for tasks in [0, 1, 2, 3, 100, 1000] {
                    count_runs(tasks);
                }
            });
        }
        assert!(threads() >= 1);
    }

    #[test]
    fn workers_do_take_part() {
        with_threads(2, || {
            // Each task waits for the other, so one thread alone would never finish.
            // Another test may hold the pool, in which case the tasks would run alone: take it first.
            let pool = pool();
            let mut workers = pool.region.lock().unwrap_or_else(PoisonError::into_inner);
            let both = Barrier::new(2);
            pool.run(&mut workers, 2, &|_| {
                both.wait();
            });
        });
    }

    #[test]
    fn many_small_regions_and_sleeping_workers() {
        with_threads(3, || {
            for round in 0..3000 {
                count_runs(2 + round % 5);
                if round % 1000 == 0 {
                    thread::sleep(WATCH * 3);
                }
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        with_threads(2, || {
            for bad in [0, 3, 63] {
                let panicked = catch_unwind(|| {
                    for_each(64, &|index| assert!(index != bad, "task {index} fails on purpose"));
                });
                let message = panicked.expect_err("the panic is passed on");
                assert!(message.downcast_ref::<String>().is_some_and(|text| text.contains("on purpose")));
                count_runs(64);
            }
        });
    }

    #[test]
    fn nested_regions_run_inside_their_task() {
        with_threads(2, || {
            let total = AtomicUsize::new(0);
            for_each(8, &|_| {
                for_each(8, &|_| {
                    total.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(total.into_inner(), 64);
        });
    }

    #[test]
    fn several_callers_at_once() {
        with_threads(2, || {
            thread::scope(|scope| {
                for caller in 0..4 {
                    scope.spawn(move || (0..300).for_each(|round| count_runs(1 + (round + caller) % 9)));
                }
            });
        });
    }

    #[test]
    fn parts_cover_the_slice_and_only_it() {
        let mut numbers = vec![0usize; 103];
        for_each_part(&mut numbers, 10, |part, numbers| {
            assert_eq!(numbers.len(), if part == 10 { 3 } else { 10 });
            numbers.iter_mut().enumerate().for_each(|(index, number)| *number += part * 10 + index + 1);
        });
        assert!(numbers.iter().enumerate().all(|(index, &number)| number == index + 1));
        let mut few = [1, 2, 3];
        let parts = Disjoint::new(&mut few);
        // SAFETY: it panics.
        assert!(catch_unwind(AssertUnwindSafe(|| unsafe { parts.part(1, 3) }.len())).is_err());
    }

    #[test]
    fn a_forced_simd_level_holds_in_workers() {
        with_threads(2, || {
            simd::with_level(simd::Level::Portable, || {
                for_each(64, &|_| assert_eq!(simd::level(), simd::Level::Portable));
            });
            for_each(64, &|_| assert!(simd::level().is_available()));
        });
    }
}
