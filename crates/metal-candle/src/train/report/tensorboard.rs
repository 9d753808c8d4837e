//! TensorBoard's event files: TFRecords (length, its check, content, its check) of `tensorflow.Event` messages.
//!
//! The fields are those of `event.proto`, `summary.proto` and `tensor.proto` of TensorFlow.

use std::{
    fs::File,
    io::{self, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{ReportError, checksum::CRC32C};
use crate::{
    Result,
    train::events::{Observer, Sample, Speaker, Split, Step, TrainEvent},
};

/// Writes a run's curves and samples where `tensorboard --logdir` finds them.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    /// Seconds since 1970.
    clock: fn() -> f64,
}

impl TensorBoard {
    /// A new file in `folder`, which is made if need be. Where a run goes on, TensorBoard keeps the earlier files' steps up
    /// to [`Started::step`](crate::train::events::Started::step) and drops later ones.
    pub fn create(folder: &Path) -> Result<Self, ReportError> {
        Self::with_clock(folder, now)
    }

    fn with_clock(folder: &Path, clock: fn() -> f64) -> Result<Self, ReportError> {
        let failed = |path: &Path, source| ReportError::Write { path: path.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        // TensorBoard reads the files of a folder in the order of their names.
        let second = clock() as u64;
        let mut part = 0;
        loop {
            let path = folder.join(format!("events.out.tfevents.{second:010}.metal-candle.{part:03}"));
            match File::create_new(&path) {
                Ok(file) => {
                    let mut board = Self { path, file, clock };
                    board.append(&version(clock())).map_err(|source| failed(&board.path, source))?;
                    return Ok(board);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => part += 1,
                Err(source) => return Err(failed(&path, source)),
            }
        }
    }

    fn append(&mut self, event: &Message) -> io::Result<()> {
        self.file.write_all(&record(&event.0))
    }
}

impl Observer for TensorBoard {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        if let Some(message) = translate(event, (self.clock)()) {
            let written = self.append(&message);
            written.map_err(|source| ReportError::Write { path: self.path.clone(), source })?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An event as TensorBoard has it, if it has something for it.
fn translate(event: &TrainEvent, time: f64) -> Option<Message> {
    let values = match event {
        TrainEvent::Started(started) if started.step > 0 => return Some(restart(time, started.step + 1)),
        TrainEvent::Step(step) => step_values(step),
        TrainEvent::Evaluation(evaluation) => {
            let split = match evaluation.split {
                Split::Validation => "eval",
                Split::Test => "test",
            };
            vec![
                scalar(&format!("{split}/loss"), evaluation.loss),
                scalar(&format!("{split}/perplexity"), evaluation.perplexity),
            ]
        }
        TrainEvent::Sample(sample) => vec![text(sample)],
        TrainEvent::Started(_)
        | TrainEvent::Checkpoint(_)
        | TrainEvent::Notice(_)
        | TrainEvent::Finished(_) => return None,
    };
    let mut summary = Message::default();
    for value in &values {
        summary.message(1, value);
    }
    let mut message = Message::default();
    message.double(1, time).integer(2, event.step()).message(5, &summary);
    Some(message)
}

fn step_values(step: &Step) -> Vec<Message> {
    let mut values = vec![
        scalar("train/loss", step.loss),
        scalar("train/learning_rate", step.learning_rate),
        scalar("train/gradient_norm", step.gradient_norm),
        scalar("train/tokens_per_second", step.tokens_per_second),
    ];
    if step.memory_bytes > 0 {
        values.push(scalar("train/memory", step.memory_bytes as f64));
    }
    values
}

/// The first event of every file.
fn version(time: f64) -> Message {
    let mut message = Message::default();
    message.double(1, time).bytes(3, b"brain.Event:2");
    message
}

/// Tells that steps from this one on are made again: `SessionLog` with the status START.
fn restart(time: f64, step: u64) -> Message {
    let mut log = Message::default();
    log.integer(1, 1);
    let mut message = Message::default();
    message.double(1, time).integer(2, step).message(7, &log);
    message
}

/// A `Summary.Value` with a number.
fn scalar(tag: &str, number: f64) -> Message {
    let mut value = Message::default();
    value.bytes(1, tag.as_bytes()).float(2, number as f32);
    value
}

/// A `Summary.Value` with a tensor of one string, for the plugin that shows texts as Markdown.
fn text(sample: &Sample) -> Message {
    let speaker = match sample.speaker {
        Speaker::Base => "base",
        Speaker::Trained => "trained",
    };
    // Indented: a block of code, shown as it is.
    let block = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let shown = format!("{}\n*{speaker}:*\n\n{}", block(&sample.prompt), block(&sample.text));
    let (mut dimension, mut shape, mut tensor) = (Message::default(), Message::default(), Message::default());
    dimension.integer(1, 1);
    shape.message(2, &dimension);
    tensor.integer(1, 7).message(2, &shape).bytes(8, shown.as_bytes());
    let (mut plugin, mut metadata, mut value) = (Message::default(), Message::default(), Message::default());
    plugin.bytes(1, b"text");
    metadata.message(1, &plugin);
    let tag = format!("sample/{speaker}/{:08x}", CRC32C.of(sample.prompt.as_bytes()));
    value.bytes(1, tag.as_bytes()).message(8, &tensor).message(9, &metadata);
    value
}

/// The content between its length and the checks.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(content.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(content);
    record.extend(masked(content).to_le_bytes());
    record
}

/// A check that may itself be part of checked data.
fn masked(bytes: &[u8]) -> u32 {
    CRC32C.of(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// A protocol buffer in the making.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const EIGHT_BYTES: u64 = 1;
    const COUNTED: u64 = 2;
    const FOUR_BYTES: u64 = 5;

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn integer(&mut self, field: u64, number: u64) -> &mut Self {
        self.key(field, Self::VARINT);
        self.varint(number);
        self
    }

    fn double(&mut self, field: u64, number: f64) -> &mut Self {
        self.key(field, Self::EIGHT_BYTES);
        self.0.extend(number.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, number: f32) -> &mut Self {
        self.key(field, Self::FOUR_BYTES);
        self.0.extend(number.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.key(field, Self::COUNTED);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }
}

#[cfg(test)]
mod tests {
    use metal_candle_testkit::golden;

    use super::*;
    use crate::train::events::{Evaluation, Started};

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let step = Step {
            step: 301,
            loss: 2.5,
            learning_rate: 1e-4,
            gradient_norm: 0.75,
            tokens_per_second: 1234.5,
            memory_bytes: 812_000_000,
            ..Step::default()
        };
        let broken = Step {
            step: 302,
            loss: f64::NAN,
            learning_rate: 9.5e-5,
            gradient_norm: f64::INFINITY,
            tokens_per_second: 1200.0,
            memory_bytes: 0,
            ..Step::default()
        };
        let evaluation = Evaluation { step: 302, loss: 2.25, perplexity: 9.487_736, ..Evaluation::default() };
        let test =
            Evaluation { step: 302, split: Split::Test, loss: 2.5, perplexity: 12.182_494, best: false };
        let sample = Sample {
            step: 302,
            speaker: Speaker::Trained,
            prompt: "123456789".to_owned(),
            text: "ten\nelf".to_owned(),
        };
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::with_clock(folder.path(), || 1_795_000_000.5).unwrap();
        for event in [
            TrainEvent::Started(Started { step: 300, ..Started::default() }),
            TrainEvent::Step(step),
            TrainEvent::Step(broken),
            TrainEvent::Evaluation(evaluation),
            TrainEvent::Evaluation(test),
            TrainEvent::Sample(sample),
        ] {
            assert!(board.event(&event).unwrap().is_continue());
        }
        let expected = std::fs::read(golden::root().join("tensorboard/run.tfevents")).unwrap();
        assert_eq!(std::fs::read(&files(folder.path())[0]).unwrap(), expected);
    }

    #[test]
    fn parts_of_a_run_are_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for second in [|| 5.0, || 5.9, || 1e9] {
            TensorBoard::with_clock(&folder.path().join("new/folder"), second).unwrap();
        }
        let files = files(&folder.path().join("new/folder"));
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        let expected =
            ["0000000005.metal-candle.000", "0000000005.metal-candle.001", "1000000000.metal-candle.000"];
        assert_eq!(names, expected.map(|name| format!("events.out.tfevents.{name}")));
    }
}
