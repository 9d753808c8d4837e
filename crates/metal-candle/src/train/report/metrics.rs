//! `metrics.jsonl`: every event of a run, one a line.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{ReportError, replace};
use crate::{
    Result,
    train::events::{Observer, TrainEvent},
};

/// The metrics in a run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Writes events to a file, each at once.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// A new file; one that is there is emptied.
    pub fn create(path: &Path) -> Result<Self, ReportError> {
        Self::open(path, OpenOptions::new().write(true).create(true).truncate(true))
    }

    /// Goes on with a file as it was after `step` steps: what came later is dropped, and so is a line that a crash cut.
    pub fn resume(path: &Path, step: u64) -> Result<Self, ReportError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ReportError::Read { path: path.to_owned(), source }),
        };
        let mut kept = String::with_capacity(text.len());
        for event in lines(path, &text) {
            let (line, event) = event?;
            if event.step() <= step {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        if kept != text {
            replace(path, kept.as_bytes())?;
        }
        Self::open(path, OpenOptions::new().append(true).create(true))
    }

    fn open(path: &Path, how: &OpenOptions) -> Result<Self, ReportError> {
        let path = path.to_owned();
        match how.open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(ReportError::Write { path, source }),
        }
    }

    fn append(&mut self, event: &TrainEvent) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        // In one piece, so that whoever follows the file never sees half a line for long.
        self.file.write_all(&line)
    }
}

impl Observer for MetricsFile {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        let written = self.append(event);
        written.map_err(|source| ReportError::Write { path: self.path.clone(), source })?;
        Ok(ControlFlow::Continue(()))
    }
}

/// The whole lines of a metrics file. The last one, if a crash cut it, is left out.
pub(super) fn lines<'text>(
    path: &'text Path,
    text: &'text str,
) -> impl Iterator<Item = Result<(&'text str, TrainEvent), ReportError>> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let numbered = text[..whole].lines().enumerate();
    let filled = numbered.filter(|(_, line)| !line.trim().is_empty());
    filled.map(|(index, line)| match serde_json::from_str(line) {
        Ok(event) => Ok((line, event)),
        Err(error) => {
            Err(ReportError::Line { path: path.to_owned(), line: index + 1, reason: error.to_string() })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::events::{Checkpoint, Started, Step};

    fn step(step: u64) -> TrainEvent {
        TrainEvent::Step(Step { step, loss: step as f64, ..Step::default() })
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        lines(path, &text).map(|line| line.unwrap().1.step()).collect()
    }

    #[test]
    fn a_resumed_file_has_no_step_twice_and_no_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let mut file = MetricsFile::create(&path).unwrap();
        let checkpoint = TrainEvent::Checkpoint(Checkpoint { step: 2, path: "x".to_owned() });
        for event in [TrainEvent::Started(Started::default()), step(1), step(2), checkpoint, step(3), step(4)]
        {
            file.append(&event).unwrap();
        }
        file.file.write_all(br#"{"event":"step","st"#).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 2, 3, 4]);

        let mut file = MetricsFile::resume(&path, 2).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 2]);
        for event in
            [TrainEvent::Started(Started { step: 2, ..Started::default() }), step(3), step(4), step(5)]
        {
            file.append(&event).unwrap();
        }
        assert_eq!(steps(&path), [0, 1, 2, 2, 2, 3, 4, 5]);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("}\n"));
    }

    #[test]
    fn resuming_at_the_end_mends_only_the_torn_line_and_creating_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        MetricsFile::resume(&path, 0).unwrap().append(&step(0)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"event\""].concat()).unwrap();
        MetricsFile::resume(&path, 9).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        MetricsFile::create(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_bad_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        std::fs::write(&path, "{\"event\":\"step\",\"step\":1}\n{\"event\":\"dance\"}\n").unwrap();
        let error = MetricsFile::resume(&path, 1).unwrap_err();
        assert!(matches!(error, ReportError::Line { line: 2, .. }), "{error}");
    }
}
