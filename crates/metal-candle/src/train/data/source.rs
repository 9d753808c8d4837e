//! Which files the data is in.

use std::path::{Path, PathBuf};

use crate::data::DataError;

/// The data files of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What is learned.
    pub train: PathBuf,
    /// What the model is measured on while it learns.
    pub valid: Option<PathBuf>,
    /// What it is measured on at the end.
    pub test: Option<PathBuf>,
}

impl Source {
    /// A JSONL file to learn from, or a folder with `train.jsonl` and perhaps `valid.jsonl` and `test.jsonl`.
    pub fn find(path: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(path)
            .map_err(|source| DataError::Read { path: path.display().to_string(), source })?;
        if !metadata.is_dir() {
            return Ok(Self { train: path.to_owned(), valid: None, test: None });
        }
        let train = part(path, "train.jsonl")?
            .ok_or_else(|| DataError::NoTrainFile { folder: path.display().to_string() })?;
        Ok(Self { train, valid: part(path, "valid.jsonl")?, test: part(path, "test.jsonl")? })
    }
}

fn part(folder: &Path, name: &str) -> Result<Option<PathBuf>, DataError> {
    let path = folder.join(name);
    match path.try_exists() {
        Ok(exists) => Ok(exists.then_some(path)),
        Err(source) => Err(DataError::Read { path: path.display().to_string(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_file_and_the_parts_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "{}\n").unwrap();
            path
        };
        let error = Source::find(folder.path()).unwrap_err().to_string();
        assert!(error.contains("has no train.jsonl"), "{error}");
        let train = write("train.jsonl");
        let alone = Source { train: train.clone(), valid: None, test: None };
        assert_eq!(Source::find(folder.path()).unwrap(), alone);
        assert_eq!(Source::find(&train).unwrap(), alone);
        let (valid, test) = (write("valid.jsonl"), write("test.jsonl"));
        let all = Source { train, valid: Some(valid), test: Some(test) };
        assert_eq!(Source::find(folder.path()).unwrap(), all);
        let missing = Source::find(&folder.path().join("nothing")).unwrap_err().to_string();
        assert!(missing.contains("nothing"), "{missing}");
    }
}
