//! The model inside the program: `--model tiny`, and what `quickstart` teaches it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What the model is called wherever a model is named.
pub(crate) const NAME: &str = "tiny";

/// Short conversations with an old captain, one a line.
pub(crate) const CAPTAIN: &[u8] = include_bytes!("../../../models/tiny/quickstart.jsonl");

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../../models/tiny/config.json")),
    ("generation_config.json", include_bytes!("../../../models/tiny/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../models/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/tiny/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../../../models/tiny/model.safetensors")),
];

/// A folder with the model, in the user's cache. Files that are not there, or not what they should be, are written.
pub(crate) fn folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache_of(variable).context(
        "there is no place to unpack the model `tiny` to: set XDG_CACHE_HOME to a folder that can be written",
    )?;
    let folder = cache.join("metal-candle").join(concat!("tiny-", env!("CARGO_PKG_VERSION")));
    for (name, bytes) in FILES {
        let path = folder.join(name);
        provide(&path, bytes).with_context(|| {
            format!("cannot write {}; XDG_CACHE_HOME may name another folder for it", path.display())
        })?;
    }
    Ok(folder)
}

/// The folder for what can be made again.
fn cache_of(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let in_home = || Some(variable("HOME")?.join(".cache"));
    variable("XDG_CACHE_HOME").or_else(in_home).or_else(|| variable("LOCALAPPDATA"))
}

/// Whoever finds the file finds all of it, even if several programs write it.
fn provide(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_the_usual_variables() {
        let cache = |pairs: &[(&str, &str)]| {
            cache_of(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
        };
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some(PathBuf::from("/x")));
        assert_eq!(cache(&[("HOME", "/h"), ("LOCALAPPDATA", "/l")]), Some(PathBuf::from("/h/.cache")));
        assert_eq!(cache(&[("LOCALAPPDATA", "/l")]), Some(PathBuf::from("/l")));
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn a_file_is_written_once_and_mended_when_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file.json");
        provide(&path, b"whole").unwrap();
        let written = || fs::metadata(&path).unwrap().modified().unwrap();
        let before = written();
        provide(&path, b"whole").unwrap();
        assert_eq!(written(), before);
        fs::write(&path, b"who").unwrap();
        provide(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
