//! The cache on disk: `blobs` by contents, `snapshots` by commit with links to them, `refs` from branch to commit.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::{HubError, HubModel, HubOptions};

/// The cache folder of one model.
pub(super) struct ModelCache {
    root: PathBuf,
    folder_name: String,
    layout: CacheRepo,
    revision: String,
}

impl ModelCache {
    pub(super) fn new(model: &HubModel, options: &HubOptions) -> ModelCache {
        let repo = Repo::with_revision(model.id(), RepoType::Model, model.revision().into());
        ModelCache {
            root: options.cache.clone(),
            folder_name: repo.folder_name(),
            layout: Cache::new(options.cache.clone()).repo(repo),
            revision: model.revision().into(),
        }
    }

    /// The folder of a commit's files. It may not exist.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Where contents lie.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Where unfinished contents lie.
    pub(super) fn partial_blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(&format!("{etag}.incomplete"))
    }

    /// The commit that the revision meant when it was last fetched; a commit means itself.
    pub(super) fn known_commit(&self) -> Option<String> {
        let known = fs::read_to_string(self.reference()).ok();
        let known = known.map(|commit| commit.trim().to_string());
        let is_commit =
            |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        known
            .or_else(|| Some(self.revision.clone()))
            .filter(is_commit)
            .filter(|commit| self.snapshot(commit).is_dir())
    }

    /// Notes what the revision means, once all files are there.
    pub(super) fn remember(&self, commit: &str) -> Result<(), HubError> {
        let reference = self.reference();
        let unchanged = fs::read_to_string(&reference).is_ok_and(|known| known.trim() == commit);
        if unchanged || self.revision == commit {
            return Ok(());
        }
        create_parent(&reference)?;
        let fresh = reference.with_extension(format!("{}.new", std::process::id()));
        fs::write(&fresh, commit)
            .and_then(|()| fs::rename(&fresh, &reference))
            .map_err(|source| HubError::cache("write", &reference, source))
    }

    /// Keeps other processes, ours and those of the Python libraries, from writing the same contents.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.root.join(".locks").join(&self.folder_name).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let open = File::options().write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(|source| HubError::cache("create", &path, source))?;
        file.lock().map_err(|source| HubError::cache("lock", &path, source))?;
        Ok(file)
    }

    /// Makes `blob` visible as `file` of the commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        let blob = self.blob(etag);
        let fail = |source| HubError::cache("create", &pointer, source);
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        // Some file systems know no symbolic links, some not even hard ones.
        symbolic_link(&Path::new("../../blobs").join(etag), &pointer)
            .or_else(|_| fs::hard_link(&blob, &pointer))
            .or_else(|_| copy_whole(&blob, &pointer))
            .map_err(fail)
    }

    fn reference(&self) -> PathBuf {
        self.root.join(&self.folder_name).join("refs").join(&self.revision)
    }
}

/// Creates the folder that `path` will lie in.
pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| HubError::cache("create", parent, source))
}

/// The size of the file or of what it links to.
pub(super) fn file_bytes(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// A copy that shows up only when it is whole.
fn copy_whole(from: &Path, to: &Path) -> io::Result<()> {
    let fresh = to.with_extension("incomplete");
    fs::copy(from, &fresh)?;
    fs::rename(fresh, to)
}

#[cfg(unix)]
fn symbolic_link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symbolic_link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
