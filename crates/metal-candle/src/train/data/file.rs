//! Where the lines of a data file begin.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    data::{BadLines, DataError, Record, is_blank, without_mark},
    fingerprint,
};

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;

/// What to do with a line that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadLinePolicy {
    /// It is an error.
    #[default]
    Refuse,
    /// It is counted and passed over.
    Skip,
}

/// A data file whose lines have been found and checked once.
#[derive(Debug)]
pub struct DataFile {
    path: PathBuf,
    policy: BadLinePolicy,
    /// Where the line of each example begins.
    offsets: Vec<u64>,
    /// Lines that are no examples, from 0: blank and bad ones.
    passed_over: Vec<u64>,
    bad: BadLines,
    fingerprint: u64,
    stamp: Stamp,
}

/// Reads examples of a [`DataFile`].
#[derive(Debug)]
pub(super) struct LineReader {
    file: BufReader<File>,
    line: Vec<u8>,
}

/// What shows that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl DataFile {
    /// Reads a file once, checks the form of every line and notes where it begins. `progress` is told bytes done and
    /// bytes in all.
    ///
    /// Memory: 8 bytes per line, and the longest line.
    pub fn open(
        path: &Path,
        policy: BadLinePolicy,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.display().to_string(), source };
        let file = File::open(path).map_err(read)?;
        let stamp = Stamp::of(&file).map_err(read)?;
        let mut found = Self {
            path: path.to_owned(),
            policy,
            offsets: Vec::new(),
            passed_over: Vec::new(),
            bad: BadLines::default(),
            fingerprint: fingerprint::START,
            stamp,
        };
        found.index(&mut BufReader::with_capacity(1 << 18, file), progress).map_err(read)?;
        if found.bad.count > 0 && policy == BadLinePolicy::Refuse {
            return Err(DataError::BadLines { path: found.name(), bad: found.bad });
        }
        if found.offsets.is_empty() {
            return Err(DataError::Empty { path: found.name() });
        }
        if u32::try_from(found.offsets.len()).is_err() {
            let expected = "below 4294967296 in one file: split it";
            return Err(DataError::Option {
                option: "the number of lines",
                expected,
                found: found.offsets.len(),
            });
        }
        Ok(found)
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Never: a file without examples is an error.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The lines that were passed over because of their form.
    pub fn bad_lines(&self) -> &BadLines {
        &self.bad
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is done with lines that cannot be used.
    pub fn policy(&self) -> BadLinePolicy {
        self.policy
    }

    /// A number that changes with the file's bytes: FNV-1a, 64 bits.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The path, for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Opens the file for reading, if it is what it was.
    pub(super) fn reader(&self) -> Result<LineReader, DataError> {
        let file = File::open(&self.path).map_err(|source| self.read_error(source))?;
        let reader = LineReader { file: BufReader::with_capacity(1 << 14, file), line: Vec::new() };
        self.check_unchanged(&reader)?;
        Ok(reader)
    }

    /// An error if the file was written to since it was indexed.
    pub(super) fn check_unchanged(&self, reader: &LineReader) -> Result<(), DataError> {
        let now = Stamp::of(reader.file.get_ref()).map_err(|source| self.read_error(source))?;
        if now.bytes != self.stamp.bytes {
            return Err(self.changed(format!("it had {} bytes and has {}", self.stamp.bytes, now.bytes)));
        }
        if now.modified != self.stamp.modified {
            return Err(self.changed("it was written to".to_owned()));
        }
        Ok(())
    }

    /// The record of an example.
    pub(super) fn read(&self, example: usize, reader: &mut LineReader) -> Result<Record, DataError> {
        reader.line.clear();
        let sought = reader.file.seek(SeekFrom::Start(self.offsets[example]));
        sought
            .and_then(|_| reader.file.read_until(b'\n', &mut reader.line))
            .map_err(|source| self.read_error(source))?;
        // The line was good when the file was indexed.
        parse(&reader.line)
            .map_err(|reason| self.changed(format!("line {} is bad now: {reason}", self.line(example))))
    }

    /// The line of an example, from 1.
    pub(super) fn line(&self, example: usize) -> u64 {
        let mut before = 0;
        let mut after = self.passed_over.len();
        while before < after {
            let middle = before.midpoint(after);
            // So many examples stand before this line.
            if self.passed_over[middle] - middle as u64 <= example as u64 {
                before = middle + 1;
            } else {
                after = middle;
            }
        }
        (example + before) as u64 + 1
    }

    fn index(
        &mut self,
        reader: &mut impl BufRead,
        progress: &mut dyn FnMut(u64, u64),
    ) -> std::io::Result<()> {
        let (mut offset, mut reported) = (0, 0);
        let mut bytes = Vec::new();
        for line in 0.. {
            bytes.clear();
            let length = reader.read_until(b'\n', &mut bytes)? as u64;
            if length == 0 {
                break;
            }
            self.fingerprint = fingerprint::fingerprint(self.fingerprint, &bytes);
            if std::str::from_utf8(&bytes).is_ok_and(is_blank) {
                self.passed_over.push(line);
            } else if let Err(reason) = parse(&bytes) {
                self.passed_over.push(line);
                self.bad.add(line + 1, reason);
            } else {
                self.offsets.push(offset);
            }
            offset += length;
            if offset - reported >= REPORT_BYTES {
                reported = offset;
                progress(offset, self.stamp.bytes);
            }
        }
        self.offsets.shrink_to_fit();
        self.passed_over.shrink_to_fit();
        progress(offset, self.stamp.bytes);
        Ok(())
    }

    fn read_error(&self, source: std::io::Error) -> DataError {
        DataError::Read { path: self.name(), source }
    }

    fn changed(&self, reason: String) -> DataError {
        DataError::Changed { path: self.name(), reason }
    }
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        // Not every file system keeps the time.
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let text = std::str::from_utf8(line)
        .map_err(|error| format!("not UTF-8 after byte {}; save the file as UTF-8", error.valid_up_to()))?;
    Record::parse(without_mark(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn texts(file: &DataFile) -> Vec<String> {
        let mut reader = file.reader().unwrap();
        // Backwards: the order of reading is free.
        let text = |example| match file.read(example, &mut reader).unwrap() {
            Record::Text(text) => text,
            other => panic!("{other:?}"),
        };
        let mut texts: Vec<String> = (0..file.len()).rev().map(text).collect();
        texts.reverse();
        texts
    }

    #[test]
    fn finds_lines_behind_marks_blanks_and_other_line_ends() {
        let content = "\u{feff}{\"text\": \"a\"}\r\n\r\n  \n{\"text\": \"é\"}\n{\"text\": \"c\"}";
        let (_folder, path) = write(content.as_bytes());
        let mut told = Vec::new();
        let file =
            DataFile::open(&path, BadLinePolicy::Refuse, &mut |done, all| told.push((done, all))).unwrap();
        assert_eq!(texts(&file), ["a", "é", "c"]);
        assert_eq!([file.line(0), file.line(1), file.line(2)], [1, 4, 5]);
        assert_eq!(told.last(), Some(&(content.len() as u64, content.len() as u64)));
        assert_eq!(file.bad_lines(), &BadLines::default());
    }

    #[test]
    fn a_file_of_only_a_mark_or_blanks_is_empty() {
        for content in ["", "\u{feff}", "\n\r\n  \n", "\u{feff}\n"] {
            let (_folder, path) = write(content.as_bytes());
            let error = DataFile::open(&path, BadLinePolicy::Skip, &mut |_, _| ()).unwrap_err();
            assert!(matches!(error, DataError::Empty { .. }), "{content:?}: {error}");
        }
    }

    #[test]
    fn bad_lines_are_all_named_or_counted() {
        let content =
            b"{\"text\": \"a\"}\nnonsense\n\n{\"text\": \"\xff\"}\n{\"text\": \"b\"}\n{\"txt\": 1}\n";
        let (_folder, path) = write(content);
        let error = DataFile::open(&path, BadLinePolicy::Refuse, &mut |_, _| ()).unwrap_err().to_string();
        for part in [
            "train.jsonl: 3 bad lines",
            "line 2: not JSON",
            "line 4: not UTF-8 after byte 10",
            "line 6: needs",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let file = DataFile::open(&path, BadLinePolicy::Skip, &mut |_, _| ()).unwrap();
        assert_eq!(texts(&file), ["a", "b"]);
        assert_eq!([file.line(0), file.line(1)], [1, 5]);
        let lines: Vec<u64> = file.bad_lines().first.iter().map(|bad| bad.line).collect();
        assert_eq!((file.bad_lines().count, lines), (3, vec![2, 4, 6]));
    }

    #[test]
    fn of_many_bad_lines_the_first_are_shown() {
        let (_folder, path) = write("x\n".repeat(25).as_bytes());
        let error = DataFile::open(&path, BadLinePolicy::Refuse, &mut |_, _| ()).unwrap_err().to_string();
        assert!(error.contains("25 bad lines") && error.contains("line 10:"), "{error}");
        assert!(!error.contains("line 11:") && error.contains("and 15 more"), "{error}");
    }

    #[test]
    fn a_changed_file_is_an_error() {
        let (_folder, path) = write(b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        let file = DataFile::open(&path, BadLinePolicy::Refuse, &mut |_, _| ()).unwrap();
        let mut reader = file.reader().unwrap();
        std::fs::write(&path, b"{\"text\": \"a\"}\n").unwrap();
        let errors =
            [file.check_unchanged(&reader), file.reader().map(drop), file.read(1, &mut reader).map(drop)];
        for error in errors {
            assert!(matches!(error, Err(DataError::Changed { .. })), "{error:?}");
        }
        std::fs::write(&path, b"{\"text\": \"a\"}\n{\"text\": \"c\"}\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(matches!(file.check_unchanged(&reader), Err(DataError::Changed { .. })));
        let again = DataFile::open(&path, BadLinePolicy::Refuse, &mut |_, _| ()).unwrap();
        assert_ne!(again.fingerprint(), file.fingerprint());
    }
}
