//! A file that appears whole or not at all: a temporary one beside it, renamed at the end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::Error;

/// A file in the making; dropped, it leaves nothing behind, and what was at its path stays.
pub struct Output {
    path: PathBuf,
    folder: PathBuf,
    file: NamedTempFile,
}

impl Output {
    /// Makes sure that a file can come to be at `path`, before much time is spent on what goes into it. `inputs` are files that
    /// it mustn't take the place of.
    ///
    /// # Errors
    /// The folder is missing, or the path is that of a folder or of an input.
    pub fn check<'a>(path: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
        let folder = folder_of(path);
        let shown = path.display();
        if !folder.is_dir() {
            return Err(Error::User(format!(
                "can't write {shown}: there is no folder {}; make it first",
                folder.display()
            )));
        }
        if path.is_dir() || path.file_name().is_none() {
            return Err(Error::User(format!(
                "can't write {shown}: it is a folder; name a file"
            )));
        }
        // A path that can't be resolved has no file yet, so is no input.
        if let Ok(resolved) = path.canonicalize() {
            let mut inputs = inputs.into_iter();
            if inputs.any(|input| input.canonicalize().is_ok_and(|input| input == resolved)) {
                return Err(Error::User(format!(
                    "can't write {shown}: it is the input itself; name another file"
                )));
            }
        }
        Ok(())
    }

    /// Makes the temporary file.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn create(path: &Path) -> Result<Output, Error> {
        let folder = folder_of(path);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".fastc-").suffix(".part");
        #[cfg(unix)]
        {
            // As any new file, less the user's mask: a temporary file's own would keep others out.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(&folder);
        Ok(Output {
            file: file.map_err(|e| failed(path, e))?,
            path: path.to_path_buf(),
            folder,
        })
    }

    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// What an error of the file means.
    pub fn failed(&self, error: io::Error) -> Error {
        failed(&self.path, error)
    }

    /// Brings everything to the disk and the file to its path.
    ///
    /// # Errors
    /// The disk is full or fails, or the path has become a folder.
    pub fn finish(self) -> Result<(), Error> {
        let Output { path, folder, file } = self;
        file.as_file().sync_all().map_err(|e| failed(&path, e))?;
        file.persist(&path).map_err(|e| failed(&path, e.error))?;
        // The rename is durable once the folder is.
        #[cfg(unix)]
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| failed(&path, e))?;
        #[cfg(not(unix))]
        drop(folder);
        Ok(())
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    let path = path.display();
    // The library adds the temporary file's name, which says nothing to anyone.
    let reason = match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error
            .get_ref()
            .and_then(|e| e.source())
            .and_then(|e| e.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error)
            .map_or(error, io::Error::from_raw_os_error),
    };
    let hint = match reason.kind() {
        io::ErrorKind::StorageFull => "; free some space or choose another folder",
        io::ErrorKind::PermissionDenied => "; choose a folder that you may write to",
        _ => "",
    };
    Error::User(format!("can't write {path}: {reason}{hint}"))
}
