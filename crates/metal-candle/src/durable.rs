//! Files that are there whole or not at all, also after a crash.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Writes a file under another name in the same folder, makes sure that it is on the disk, and then gives it its name.
/// What stood there before is replaced at once; if anything fails, it stays.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let partial = partial_path(path)?;
    let written = File::create(&partial).and_then(|file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()
    });
    let named = written.and_then(|()| fs::rename(&partial, path));
    if named.is_err() {
        // It may not even exist; the first error is the one that counts.
        fs::remove_file(&partial).ok();
    }
    named?;
    sync_folder_of(path)
}

/// The name beside `path` under which something unfinished lies.
pub(crate) fn partial_path(path: &Path) -> io::Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| io::Error::other("this is not the name of a file or folder"))?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}.partial", std::process::id()));
    Ok(path.with_file_name(partial))
}

/// Makes a new name in the folder of `path` survive a crash.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    // Windows has no such call, and needs none.
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_file(&path, |file| file.write_all(b"old")).unwrap();
        let failed = write_file(&path, |file| {
            file.write_all(b"half of the ne")?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_file(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
