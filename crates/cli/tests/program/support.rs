//! Running the program, and the models that it runs.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use metal_candle_testkit::golden;
use serde_json::Value;
use tempfile::TempDir;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Outcome {
    /// Asserts success.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts failure with this code and all these words on stderr, and nothing on stdout.
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is missing in {self:#?}");
        }
        assert_eq!(self.out, "", "{self:#?}");
        self
    }

    /// stdout as JSON.
    pub(crate) fn json(self) -> Value {
        let outcome = self.ok();
        serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program, cut off from the user's own hub settings.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    // Where a forgotten folder would otherwise turn into a request to the real hub.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent");
    command
}

pub(crate) fn run(args: &[&str]) -> Outcome {
    run_with_input(args, "")
}

pub(crate) fn run_with_input(args: &[&str], input: &str) -> Outcome {
    finish(program(args), input)
}

pub(crate) fn finish(mut command: Command, input: &str) -> Outcome {
    let mut child = command.spawn().unwrap();
    // A program that fails early does not read its input.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap().into()
}

/// The golden model with a tokenizer and a chat template.
pub(crate) fn tiny_chat() -> String {
    path_text(&golden::root().join("models/tiny-chat"))
}

/// What transformers makes of [`tiny_chat`].
pub(crate) fn expected() -> Value {
    golden::json("models/tiny-chat/expected.json")
}

/// A copy of [`tiny_chat`] to change.
pub(crate) fn copy_of_tiny_chat() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny_chat()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// A new file with this text, and the folder that it disappears with.
pub(crate) fn file(name: &str, text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    (folder, path_text(&path))
}

pub(crate) fn path_text(path: &Path) -> String {
    PathBuf::from(path).into_os_string().into_string().unwrap()
}
