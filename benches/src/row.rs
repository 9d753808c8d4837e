//! A row of a table.

use anyhow::Result;

use crate::{Bench, Call};

/// Something to measure.
pub struct Row {
    /// `group/name[/parameter]`, as criterion writes it.
    pub id: String,
    /// What one iteration has to do.
    pub work: Work,
    /// How long it takes.
    pub pace: Pace,
    /// Where it can run.
    pub place: Place,
    /// Whether counting its instructions says something.
    pub counts_instructions: bool,
    /// Makes what is timed.
    pub make: Make,
}

/// Makes what is timed, with all its inputs, on a device.
pub type Make = Box<dyn Fn(&Bench) -> Result<Call>>;

/// The least that one iteration has to do; `None` where that says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// Bytes to read and write, if each is touched once.
    pub bytes: Option<u64>,
    /// In how many bytes of memory they lie; `None` if no place is touched twice.
    pub working_set: Option<u64>,
    /// Whether one thread copies them from a cache: too few to be shared.
    pub copies: bool,
    /// How many locks of tensors it takes and gives back: each storage of candle's has one.
    pub locks: Option<u64>,
    /// Multiplications and additions.
    pub flops: Option<u64>,
    /// What the iteration yields, such as tokens; the first counts for criterion's throughput.
    pub units: Vec<(&'static str, u64)>,
}

/// How long an iteration takes, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Up to some milliseconds.
    Quick,
    /// Tens of milliseconds to minutes: few samples.
    Slow,
}

/// Where a row can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On every device.
    Anywhere,
    /// On the processor only; says why.
    Processor(&'static str),
}

impl Row {
    /// A quick row that runs anywhere.
    pub fn new(id: impl Into<String>, work: Work, make: impl Fn(&Bench) -> Result<Call> + 'static) -> Self {
        Self {
            id: id.into(),
            work,
            pace: Pace::Quick,
            place: Place::Anywhere,
            counts_instructions: true,
            make: Box::new(make),
        }
    }

    /// The same row with few samples; its instructions are too many to be counted.
    #[must_use]
    pub fn slow(self) -> Self {
        Self { pace: Pace::Slow, counts_instructions: false, ..self }
    }

    /// The same row, only on the processor.
    #[must_use]
    pub fn on_processor(self, reason: &'static str) -> Self {
        Self { place: Place::Processor(reason), ..self }
    }

    /// The same row, whose instructions differ from run to run, or are more than can be counted in seconds.
    #[must_use]
    pub fn without_instructions(self) -> Self {
        Self { counts_instructions: false, ..self }
    }

    /// The group, the name within it and the parameter, if there is one.
    ///
    /// # Panics
    /// If the id has no group.
    pub fn parts(&self) -> (&str, &str, Option<&str>) {
        let (group, name) = self.id.split_once('/').expect("every id has a group");
        match name.rsplit_once('/') {
            Some((name, parameter)) => (group, name, Some(parameter)),
            None => (group, name, None),
        }
    }
}

impl Work {
    /// This many bytes and operations.
    pub fn new(bytes: usize, flops: usize) -> Self {
        Self { bytes: Some(bytes as u64), flops: Some(flops as u64), ..Self::default() }
    }

    /// This many bytes; operations do not matter.
    pub fn bytes(bytes: usize) -> Self {
        Self { bytes: Some(bytes as u64), ..Self::default() }
    }

    /// This many bytes, half of them read and half written by one thread, to places of the working set one after another.
    pub fn copies(bytes: usize, working_set: usize) -> Self {
        Self { copies: true, ..Self::bytes(bytes).within(working_set) }
    }

    /// No least: what is measured is overhead.
    pub fn none() -> Self {
        Self::default()
    }

    /// Some places are read and written.
    #[must_use]
    pub fn within(self, working_set: usize) -> Self {
        Self { working_set: Some(working_set as u64), ..self }
    }

    /// Takes so many locks of tensors, one after another.
    #[must_use]
    pub fn locks(self, locks: usize) -> Self {
        Self { locks: Some(locks as u64), ..self }
    }

    /// Yields this besides.
    #[must_use]
    pub fn yields(mut self, unit: &'static str, count: usize) -> Self {
        self.units.push((unit, count as u64));
        self
    }
}
