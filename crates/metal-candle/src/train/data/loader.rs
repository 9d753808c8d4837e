//! Batches in an order that a seed decides, from any place in it.

use std::{num::NonZero, ops::Range, panic::resume_unwind, sync::Arc, thread};

use serde::{Deserialize, Serialize};

use super::{
    Batch, Batching, DataFile, Tally,
    batch::{Place, Sequence, assemble},
    file::{BadLinePolicy, LineReader},
    packing::{Bin, plan},
};
use crate::{
    Error, Result,
    data::{DataError, Encoder, Example, Record},
    fingerprint::fingerprint,
    random::{seeded, shuffle},
    trace,
};

/// [`Batching::Concatenated`] looks at no other examples; it reads as many at once so that threads have work.
const CONCATENATED_WINDOW: usize = 64;

/// How examples become batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderOptions {
    /// How examples share a batch.
    pub batching: Batching,
    /// Examples in a batch; bins for [`Batching::Packed`]. The last batch may have fewer.
    pub batch_size: usize,
    /// Longer examples are cut to this many tokens; also the rows of a bin.
    pub max_seq_length: usize,
    /// Decides the order.
    pub seed: u64,
    /// A new order in every epoch. Without, examples come as in the file, and of a window the batch first that
    /// holds its first.
    pub shuffle: bool,
    /// How many examples are looked at together, to pack them or to find those of similar length. They are held in memory:
    /// 8 bytes for each of their tokens.
    pub window: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batching: Batching::default(),
            batch_size: 4,
            max_seq_length: 2048,
            seed: 0,
            shuffle: true,
            window: 1024,
        }
    }
}

/// Where a loader stands: what it takes to go on there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The data and the options that the place belongs to.
    pub fingerprint: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The examples of the epoch before the window.
    pub window: u64,
    /// The batches of the window that have been given out.
    pub batch: u64,
}

/// An iterator of batches, epoch after epoch.
///
/// The order of an epoch is a shuffle of the file's examples by a generator of the seed and the epoch. A window is as
/// many of them as are looked at together; its batches depend on them alone, so a loader that starts at a [`Cursor`]
/// gives exactly what one that came there would give. After an error there is nothing more.
#[derive(Debug)]
pub struct Loader {
    file: Arc<DataFile>,
    encoder: Arc<Encoder>,
    options: LoaderOptions,
    epochs: Option<u64>,
    threads: NonZero<usize>,
    reader: LineReader,
    cursor: Cursor,
    /// The epoch's order, with its epoch.
    order: Option<(u64, Vec<u32>)>,
    window: Option<Window>,
    tally: Tally,
    failed: bool,
}

#[derive(Debug)]
struct Window {
    /// The examples of the epoch up to its end.
    end: usize,
    sequences: Vec<Sequence>,
    batches: Vec<Vec<Bin>>,
}

impl Loader {
    /// From the first epoch's first batch on, without end.
    pub fn new(file: Arc<DataFile>, encoder: Arc<Encoder>, options: LoaderOptions) -> Result<Self> {
        check(&options)?;
        let reader = file.reader()?;
        let cursor = Cursor { fingerprint: fingerprint_of(&file, &encoder, &options), ..Cursor::default() };
        Ok(Self {
            file,
            encoder,
            options,
            epochs: None,
            threads: NonZero::<usize>::MIN,
            reader,
            cursor,
            order: None,
            window: None,
            tally: Tally::default(),
            failed: false,
        })
    }

    /// Goes on at a place that a batch of such a loader named. Data or options that have changed are an error.
    pub fn at(mut self, cursor: Cursor) -> Result<Self> {
        if cursor.fingerprint != self.cursor.fingerprint {
            let reason =
                "the data, or how it is made into batches, is not what it was; restore both, or start anew";
            return Err(self.lost(reason));
        }
        if cursor.window >= self.file.len() as u64 {
            return Err(self.lost("it lies behind the last line"));
        }
        self.cursor = cursor;
        self.window = None;
        Ok(self)
    }

    /// Ends with the last batch of this many epochs, counted from the first.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.epochs = Some(epochs);
        self
    }

    /// Tokenises with this many threads. The batches are the same.
    #[must_use]
    pub fn threads(mut self, threads: NonZero<usize>) -> Self {
        self.threads = threads;
        self
    }

    /// Where the next batch is.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What has been met so far, in whole windows.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The data.
    pub fn file(&self) -> &Arc<DataFile> {
        &self.file
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        loop {
            if self.epochs.is_some_and(|epochs| self.cursor.epoch >= epochs) {
                return Ok(None);
            }
            let window = match self.window.take() {
                Some(window) => window,
                None => self.read_window()?,
            };
            let epoch = self.cursor.epoch;
            let at = self.cursor.batch as usize;
            if at > 0 && at >= window.batches.len() {
                return Err(self.lost("it lies behind the last batch of its window"));
            }
            self.step(&window);
            let Some(bins) = window.batches.get(at) else { continue };
            let LoaderOptions { batching, max_seq_length, .. } = self.options;
            let place = Place { batching, max_seq_length, epoch, next: self.cursor };
            let batch = assemble(bins, &window.sequences, place);
            if at + 1 < window.batches.len() {
                self.window = Some(window);
            }
            return Ok(Some(batch));
        }
    }

    /// Moves the cursor behind a batch of the window, or behind a window without batches.
    fn step(&mut self, window: &Window) {
        self.cursor.batch += 1;
        if (self.cursor.batch as usize) < window.batches.len() {
            return;
        }
        self.cursor.batch = 0;
        self.cursor.window = window.end as u64;
        if window.end == self.file.len() {
            self.cursor.window = 0;
            self.cursor.epoch += 1;
        }
    }

    fn read_window(&mut self) -> Result<Window> {
        self.file.check_unchanged(&self.reader)?;
        let LoaderOptions { batching, batch_size, window, seed, shuffle, .. } = self.options;
        let wanted = match batching {
            Batching::Concatenated => window.min(CONCATENATED_WINDOW),
            Batching::Packed | Batching::Padded => window,
        };
        // So that only the epoch's last batch can be smaller.
        let wanted = wanted.next_multiple_of(batch_size);
        let start = self.cursor.window as usize;
        let mut end = start;
        let mut sequences = Vec::new();
        while end < self.file.len() && sequences.len() < wanted {
            let until = self.file.len().min(end + wanted - sequences.len());
            sequences.extend(self.read(end..until)?);
            end = until;
        }
        if start == 0 && sequences.is_empty() {
            return Err(self.nothing_to_learn().into());
        }
        let lengths: Vec<usize> = sequences.iter().map(Sequence::rows).collect();
        let mut random = shuffle.then(|| seeded(&[seed, self.cursor.epoch, start as u64]));
        let batches = plan(&lengths, &self.options, random.as_mut());
        Ok(Window { end, sequences, batches })
    }

    /// The sequences of a part of the epoch's order.
    fn read(&mut self, part: Range<usize>) -> Result<Vec<Sequence>> {
        let chosen: Vec<usize> = self.order()[part].iter().map(|&example| example as usize).collect();
        let (file, reader) = (&self.file, &mut self.reader);
        let records = chosen.iter().map(|&example| file.read(example, reader));
        let records: Vec<Record> = records.collect::<Result<_, _>>()?;
        let encoded = self.encode(&records);
        let mut sequences = Vec::with_capacity(encoded.len());
        for (&line, example) in chosen.iter().zip(encoded) {
            match example {
                Ok(example) => sequences.extend(self.fit(example, self.file.line(line))),
                // Holds for every line of the kind.
                Err(error @ Error::Data(DataError::NoTemplate)) => return Err(error),
                Err(error) => {
                    let (line, reason) = (self.file.line(line), error.to_string());
                    if self.file.policy() == BadLinePolicy::Refuse {
                        return Err(DataError::Line { path: self.file.name(), line, reason }.into());
                    }
                    self.tally.bad.add(line, reason);
                }
            }
        }
        Ok(sequences)
    }

    fn order(&mut self) -> &[u32] {
        let epoch = self.cursor.epoch;
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let examples = u32::try_from(self.file.len()).expect("checked when the file was opened");
            let mut order: Vec<u32> = (0..examples).collect();
            if self.options.shuffle {
                shuffle(&mut order, &mut seeded(&[self.options.seed, epoch]));
            }
            self.order = Some((epoch, order));
        }
        self.order.as_ref().map_or(&[], |(_, order)| order)
    }

    fn encode(&self, records: &[Record]) -> Vec<Result<Example>> {
        let encode =
            |part: &[Record]| part.iter().map(|record| self.encoder.encode(record)).collect::<Vec<_>>();
        let share = records.len().div_ceil(self.threads.get()).max(1);
        if share >= records.len() {
            return encode(records);
        }
        thread::scope(|scope| {
            let parts: Vec<_> = records.chunks(share).map(|part| scope.spawn(move || encode(part))).collect();
            parts
                .into_iter()
                .flat_map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    /// Cuts an example to the limit; `None` if nothing is left to learn. Counts what happened.
    fn fit(&mut self, mut example: Example, line: u64) -> Option<Sequence> {
        let tally = &mut self.tally;
        let (tokens, targets) = (example.tokens.len(), example.targets());
        tally.examples += 1;
        tally.tokens += tokens as u64;
        tally.lengths.add(tokens);
        if example.truncate(self.options.max_seq_length) {
            tally.cut += 1;
            tally.tokens_lost += (tokens - example.tokens.len()) as u64;
        }
        let counted = example.targets();
        tally.counted += counted as u64;
        match (targets, counted) {
            (0, _) => tally.without_targets += 1,
            (_, 0) => tally.cut_away += 1,
            _ => {}
        }
        Sequence::new(example, line)
    }

    /// The whole file has been read, and nothing of it was kept.
    fn nothing_to_learn(&self) -> DataError {
        let (path, examples) = (self.file.name(), self.file.len() as u64);
        match &self.tally.bad {
            bad if bad.count > 0 => DataError::BadLines { path, bad: bad.clone() },
            _ => DataError::NothingCounts { path, examples },
        }
    }

    fn lost(&self, reason: &'static str) -> Error {
        DataError::Cursor { path: self.file.name(), reason }.into()
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let making = trace::host_span("batch");
        let batch = self.advance();
        drop(making);
        self.failed = batch.is_err();
        batch.transpose()
    }
}

fn check(options: &LoaderOptions) -> Result<(), DataError> {
    let wrong = |option, expected, found| Err(DataError::Option { option, expected, found });
    let &LoaderOptions { batch_size, max_seq_length, window, .. } = options;
    match batch_size.checked_mul(max_seq_length).is_some_and(|rows| u32::try_from(rows).is_ok()) {
        _ if max_seq_length < 2 => wrong("max_seq_length", "at least 2", max_seq_length),
        _ if batch_size == 0 => wrong("batch_size", "at least 1", batch_size),
        _ if window == 0 => wrong("window", "at least 1", window),
        false => wrong("batch_size", "so small that a batch has fewer than 2^32 rows", batch_size),
        true => Ok(()),
    }
}

fn fingerprint_of(file: &DataFile, encoder: &Encoder, options: &LoaderOptions) -> u64 {
    let parts = serde_json::to_vec(&(options, encoder.options(), encoder.end()));
    fingerprint(file.fingerprint(), &parts.expect("plain data can be written as JSON"))
}
