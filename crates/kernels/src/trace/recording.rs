//! A recording: what each thread did, in memory that has an end.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::Device;

use super::{MARKS, RECORDING, STATE, Work, launches, marks};
use crate::{device_memory::device_memory, memory::resident_bytes};

/// What a recording may take, and what it is to change.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The most spans and samples that are kept, of all threads together; about a hundred bytes each. Later ones are only
    /// counted.
    pub most_spans: usize,
    /// Makes an op slow: to see whether a way of measuring finds it.
    pub plant: Option<Plant>,
}

/// An op that is made slow.
#[derive(Debug, Clone, PartialEq)]
pub struct Plant {
    /// The name of its span.
    pub name: String,
    /// How many times as long as it took it takes: the host is kept busy after it.
    pub factor: f64,
}

/// What was recorded. Times are nanoseconds since the start.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Every thread that opened a span.
    pub threads: Vec<ThreadRecord>,
    /// What was counted at some times, in their order.
    pub samples: Vec<Sample>,
    /// Spans and samples for which there was no room.
    pub dropped: u64,
    /// From the start to the end.
    pub duration_ns: u64,
    /// [`launches`] in that time.
    pub launches: u64,
}

/// A thread's part.
#[derive(Debug, Clone, Default)]
pub struct ThreadRecord {
    /// The thread's name, or its number.
    pub name: String,
    /// In the order in which they began: a span stands before those that it contains.
    pub spans: Vec<SpanRecord>,
}

/// A span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRecord {
    /// What was done.
    pub name: &'static str,
    /// Which of several: a layer's number.
    pub index: Option<usize>,
    /// When it began, by the host's clock.
    pub start_ns: u64,
    /// How long it took the host; up to the end of the recording if that came first.
    pub duration_ns: u64,
    /// Spans of this thread around it.
    pub depth: u32,
    /// Of an op.
    pub work: Option<Work>,
    /// Of the whole process in that time.
    pub launches: u64,
    /// On an accelerator.
    pub device: Option<DeviceTime>,
}

/// When an accelerator did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTime {
    /// When it began.
    pub start_ns: u64,
    /// How long it took.
    pub duration_ns: u64,
}

/// What was counted at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at_ns: u64,
    /// Since the start.
    pub launches: u64,
    /// Memory of the process; `None` where the system does not tell.
    pub resident_bytes: Option<u64>,
    /// Memory of the accelerator that is in use; `None` for the CPU.
    pub device_bytes: Option<u64>,
}

/// There is one recording at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingRuns;

impl fmt::Display for RecordingRuns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("spans are being recorded already; finish that recording first")
    }
}

impl std::error::Error for RecordingRuns {}

impl Default for Settings {
    fn default() -> Self {
        Self { most_spans: 1 << 19, plant: None }
    }
}

/// Records from now on.
pub fn start(settings: Settings) -> Result<(), RecordingRuns> {
    let mut current = lock(&CURRENT);
    if current.is_some() {
        return Err(RecordingRuns);
    }
    let number = NEXT.fetch_add(RECORDING, Ordering::Relaxed);
    *current = Some(Arc::new(Recorder {
        number,
        began: Instant::now(),
        launches: launches(),
        room: AtomicUsize::new(settings.most_spans),
        dropped: AtomicU64::new(0),
        plant: settings.plant,
        threads: Mutex::new(Vec::new()),
        samples: Mutex::new(Vec::new()),
    }));
    STATE.fetch_or(number, Ordering::Relaxed);
    Ok(())
}

/// Ends the recording and hands it over; `None` if there is none. Spans that are still open end here. Waits for the devices.
pub fn finish() -> Option<Recording> {
    let recorder = lock(&CURRENT).take()?;
    STATE.fetch_and(MARKS, Ordering::Relaxed);
    Some(recorder.take())
}

/// Counts launches and memory, if a recording runs.
#[inline]
pub fn sample(device: &Device) {
    if STATE.load(Ordering::Relaxed) >= RECORDING {
        take_sample(device);
    }
}

static CURRENT: Mutex<Option<Arc<Recorder>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(RECORDING);

thread_local! {
    static LOCAL: RefCell<Option<(Arc<Recorder>, Arc<Thread>)>> = const { RefCell::new(None) };
}

struct Recorder {
    number: u64,
    began: Instant,
    launches: u64,
    room: AtomicUsize,
    dropped: AtomicU64,
    plant: Option<Plant>,
    threads: Mutex<Vec<Arc<Thread>>>,
    samples: Mutex<Vec<Sample>>,
}

struct Thread {
    name: String,
    spans: Mutex<Spans>,
    #[cfg(feature = "cuda")]
    cuda: Mutex<super::cuda::Pending>,
}

#[derive(Default)]
struct Spans {
    records: Vec<SpanRecord>,
    /// Which of them have no end yet.
    open: Vec<usize>,
}

/// A span without an end.
pub(super) struct Open {
    recorded: Option<OpenRecord>,
    marked: bool,
}

struct OpenRecord {
    recorder: Arc<Recorder>,
    thread: Arc<Thread>,
    /// Among the thread's.
    place: usize,
    timer: Timer,
}

/// How the time of the device is found.
enum Timer {
    /// It is the host's.
    Host,
    /// The device is waited for.
    Wait(Device),
    #[cfg(feature = "cuda")]
    Events(super::cuda::Began),
}

#[cold]
#[inline(never)]
pub(super) fn open(
    state: u64,
    name: &'static str,
    device: Option<&Device>,
    work: Option<Work>,
) -> Option<Box<Open>> {
    let marked = state & MARKS != 0;
    if marked {
        marks::begin(name);
    }
    let recorded = if state >= RECORDING { record(state & !MARKS, name, device, work) } else { None };
    (marked || recorded.is_some()).then(|| Box::new(Open { recorded, marked }))
}

fn record(
    number: u64,
    name: &'static str,
    device: Option<&Device>,
    work: Option<Work>,
) -> Option<OpenRecord> {
    // No span of a thread that is about to end.
    let (recorder, thread) = LOCAL.try_with(|local| local_of(&mut local.borrow_mut(), number)).ok()??;
    if !recorder.has_room() {
        return None;
    }
    let timer = Timer::begin(device, &recorder, &thread);
    let mut spans = lock(&thread.spans);
    let (place, depth) = (spans.records.len(), spans.open.len() as u32);
    spans.open.push(place);
    spans.records.push(SpanRecord {
        name,
        index: None,
        start_ns: recorder.now(),
        duration_ns: 0,
        depth,
        work,
        launches: launches(),
        device: None,
    });
    drop(spans);
    Some(OpenRecord { recorder, thread, place, timer })
}

/// The recording with this number and the calling thread's part of it.
fn local_of(
    local: &mut Option<(Arc<Recorder>, Arc<Thread>)>,
    number: u64,
) -> Option<(Arc<Recorder>, Arc<Thread>)> {
    if let Some((recorder, thread)) = local
        && recorder.number == number
    {
        return Some((Arc::clone(recorder), Arc::clone(thread)));
    }
    let recorder = Arc::clone(lock(&CURRENT).as_ref()?);
    let mut threads = lock(&recorder.threads);
    let own = std::thread::current();
    let name = own.name().map_or_else(|| format!("thread {}", threads.len()), str::to_owned);
    let thread = Arc::new(Thread {
        name,
        spans: Mutex::default(),
        #[cfg(feature = "cuda")]
        cuda: Mutex::default(),
    });
    threads.push(Arc::clone(&thread));
    drop(threads);
    *local = Some((Arc::clone(&recorder), Arc::clone(&thread)));
    Some((recorder, thread))
}

fn take_sample(device: &Device) {
    let Some(recorder) = lock(&CURRENT).clone() else { return };
    if !recorder.has_room() {
        return;
    }
    let memory = device_memory(device).ok().flatten();
    let sample = Sample {
        at_ns: recorder.now(),
        launches: launches() - recorder.launches,
        resident_bytes: resident_bytes(),
        device_bytes: memory.map(|memory| memory.total.saturating_sub(memory.free)),
    };
    lock(&recorder.samples).push(sample);
}

impl Recorder {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Takes room for one; counts what gets none.
    fn has_room(&self) -> bool {
        let less = |room: usize| room.checked_sub(1);
        let has = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if !has {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has
    }

    fn take(&self) -> Recording {
        let duration_ns = self.now();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let threads = threads.iter().map(|thread| thread.take(duration_ns)).collect();
        let samples = std::mem::take(&mut *lock(&self.samples));
        let dropped = self.dropped.load(Ordering::Relaxed);
        Recording { threads, samples, dropped, duration_ns, launches: launches() - self.launches }
    }
}

impl Thread {
    fn take(&self, end_ns: u64) -> ThreadRecord {
        #[cfg(feature = "cuda")]
        self.settle();
        let mut spans = std::mem::take(&mut *lock(&self.spans));
        for place in spans.open {
            let span = &mut spans.records[place];
            span.duration_ns = end_ns.saturating_sub(span.start_ns);
            span.launches = launches() - span.launches;
        }
        ThreadRecord { name: self.name.clone(), spans: spans.records }
    }

    /// Gives the spans on a CUDA device their times.
    #[cfg(feature = "cuda")]
    fn settle(&self) {
        let times = lock(&self.cuda).times();
        let mut spans = lock(&self.spans);
        for (place, time) in times {
            if let Some(span) = spans.records.get_mut(place) {
                span.device = Some(time);
            }
        }
    }
}

impl Open {
    pub(super) fn set_index(&self, index: usize) {
        if let Some(OpenRecord { thread, place, .. }) = &self.recorded
            && let Some(span) = lock(&thread.spans).records.get_mut(*place)
        {
            span.index = Some(index);
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn close(self) {
        if let Some(recorded) = self.recorded {
            recorded.close();
        }
        if self.marked {
            marks::end();
        }
    }
}

impl OpenRecord {
    fn close(self) {
        let Self { recorder, thread, place, timer } = self;
        let waited = timer.end(place, &thread);
        if let Some(plant) = &recorder.plant {
            plant.keep_busy(&recorder, &thread, place);
        }
        let end = recorder.now();
        let mut spans = lock(&thread.spans);
        spans.open.retain(|open| *open != place);
        // Not there any more if the recording has ended.
        if let Some(span) = spans.records.get_mut(place) {
            span.duration_ns = end - span.start_ns;
            span.launches = launches() - span.launches;
            if waited {
                let (start_ns, duration_ns) = (span.start_ns, span.duration_ns);
                span.device = Some(DeviceTime { start_ns, duration_ns });
            }
        }
    }
}

impl Plant {
    fn keep_busy(&self, recorder: &Recorder, thread: &Thread, place: usize) {
        let start = lock(&thread.spans)
            .records
            .get(place)
            .filter(|span| span.name == self.name)
            .map(|span| span.start_ns);
        let Some(start) = start else { return };
        let took = recorder.now() - start;
        let end = recorder.began + Duration::from_nanos(start + (took as f64 * self.factor.max(1.0)) as u64);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}

impl Timer {
    fn begin(device: Option<&Device>, recorder: &Recorder, thread: &Thread) -> Self {
        // The code for CUDA reads both.
        let _ = (recorder, thread);
        match device {
            Some(device @ Device::Metal(_)) => match device.synchronize() {
                Ok(()) => Self::Wait(device.clone()),
                // The op itself will say what is wrong with the device.
                Err(_) => Self::Host,
            },
            #[cfg(feature = "cuda")]
            Some(Device::Cuda(device)) => {
                let began = lock(&thread.cuda).begin(device, || recorder.now());
                began.map_or(Self::Host, Self::Events)
            }
            _ => Self::Host,
        }
    }

    /// Says whether the host's time now includes that of an accelerator.
    fn end(self, place: usize, thread: &Thread) -> bool {
        // The code for CUDA reads both.
        let _ = (place, thread);
        match self {
            Self::Host => false,
            Self::Wait(device) => device.synchronize().is_ok(),
            #[cfg(feature = "cuda")]
            Self::Events(began) => {
                if lock(&thread.cuda).end(began, place) {
                    thread.settle();
                }
                false
            }
        }
    }
}

/// A panic while recording leaves spans as they are.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
