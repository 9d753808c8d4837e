//! What a user may write for a model: a folder or a name on the hub.

use std::fmt;
use std::path::{Path, PathBuf};

use super::HubError;

/// The longest organisation or model name that the hub allows.
const MAX_NAME_BYTES: usize = 96;
const MAX_REVISION_BYTES: usize = 255;

/// A model as a user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder that exists.
    Folder(PathBuf),
    /// A model on the hub.
    Hub(HubModel),
}

/// A model on the hub at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    organisation: String,
    name: String,
    revision: String,
}

impl ModelSource {
    /// Understands a folder, `org/name` or `org/name@revision`.
    ///
    /// A folder that exists wins. Anything else that looks like a path (it starts with `.`, `/` or `~`, or has
    /// a backslash or a second `/` before any `@`) is a folder that is missing, and never a name to look up.
    /// A bare `name` is refused: every model on the hub has an organisation.
    pub fn parse(text: &str) -> Result<ModelSource, HubError> {
        if text.is_empty() {
            return Err(HubError::bad_name(text, "it is empty"));
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(ModelSource::Folder(path.into()));
        }
        if path.exists() {
            return Err(HubError::NotAFolder { path: path.into() });
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let like_a_path =
            text.starts_with(['.', '/', '~']) || text.contains('\\') || id.matches('/').count() > 1;
        if like_a_path {
            return Err(HubError::NoSuchFolder { path: path.into() });
        }
        let Some((organisation, name)) = id.split_once('/') else {
            let reason = "there is no folder of this name, and models on the hub are named org/name";
            return Err(HubError::bad_name(text, reason));
        };
        check_name(text, organisation)?;
        check_name(text, name)?;
        check_revision(text, revision)?;
        let (organisation, name) = (organisation.to_string(), name.to_string());
        Ok(ModelSource::Hub(HubModel { organisation, name, revision: revision.to_string() }))
    }
}

impl HubModel {
    /// `org/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// The branch, tag or commit; `main` unless given.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.organisation, self.name, self.revision)
    }
}

/// The hub's own rules; they also keep names from becoming other paths in the cache.
fn check_name(text: &str, name: &str) -> Result<(), HubError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(allowed);
    if fits
        && !name.contains("..")
        && !name.contains("--")
        && !name.starts_with(['.', '-'])
        && !name.ends_with(['.', '-'])
    {
        return Ok(());
    }
    Err(HubError::bad_name(
        text,
        &format!("`{name}` is not a name that the hub allows (letters, digits, `.`, `_`, `-`)"),
    ))
}

fn check_revision(text: &str, revision: &str) -> Result<(), HubError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+/".contains(&byte);
    let plain_parts =
        revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'));
    if revision.len() <= MAX_REVISION_BYTES
        && revision.bytes().all(allowed)
        && plain_parts
        && !revision.contains("..")
    {
        return Ok(());
    }
    Err(HubError::bad_name(text, &format!("`{revision}` is not a branch, tag or commit")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hub(text: &str) -> (String, String) {
        match ModelSource::parse(text).unwrap() {
            ModelSource::Hub(model) => (model.id(), model.revision().to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_and_revisions() {
        assert_eq!(hub("Qwen/Qwen2.5-0.5B"), ("Qwen/Qwen2.5-0.5B".into(), "main".into()));
        assert_eq!(hub("a/b@v1.0"), ("a/b".into(), "v1.0".into()));
        assert_eq!(hub("a/b@refs/pr/1"), ("a/b".into(), "refs/pr/1".into()));
    }

    #[test]
    fn a_folder_that_exists_wins() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().to_str().unwrap();
        assert_eq!(ModelSource::parse(text).unwrap(), ModelSource::Folder(folder.path().into()));
        // `src/hub` has the form of a hub name; tests run in the package's folder.
        assert_eq!(ModelSource::parse("src/hub").unwrap(), ModelSource::Folder("src/hub".into()));
    }

    #[test]
    fn missing_folders_are_not_looked_up() {
        for text in ["./model", "../model", "/no/model", "~/model", "a/b/c", "a\\b", "/no@thing"] {
            let error = ModelSource::parse(text).unwrap_err();
            assert!(matches!(error, HubError::NoSuchFolder { .. }), "{text}: {error}");
            assert!(error.to_string().contains("config.json"), "{error}");
        }
        assert!(matches!(ModelSource::parse("Cargo.toml"), Err(HubError::NotAFolder { .. })));
    }

    #[test]
    fn bad_names_say_why() {
        let cases = [
            "",
            "gpt2",
            "gpt2@main",
            "a/",
            "a/b c",
            "a/b..c",
            "a/-b",
            "a/b@",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@x y",
            "ä/b",
        ];
        for text in cases {
            let error = ModelSource::parse(text).unwrap_err();
            assert!(matches!(error, HubError::BadName { .. }), "{text}: {error}");
        }
    }
}
