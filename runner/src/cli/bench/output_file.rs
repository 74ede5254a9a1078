//! A file that is written whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fastrun::Error;

/// A file to write, whose name has been tried.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    /// Where it is written, beside `path`, before it takes that name.
    part: PathBuf,
}

impl OutputFile {
    /// Makes sure that `path` can be written, before the work whose result goes there; an earlier file stays for now.
    pub fn new(path: &Path) -> Result<OutputFile, Error> {
        // A link stays one: what it leads to is replaced.
        let target = match fs::metadata(path) {
            Ok(meta) if meta.is_file() => fs::canonicalize(path).map_err(|e| failed(path, &e))?,
            Ok(_) => {
                return Err(Error::User(format!(
                    "can't write {}: it exists and is no regular file; give the name of a file",
                    path.display()
                )));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
            Err(e) => return Err(failed(path, &e)),
        };
        let Some(name) = target.file_name() else {
            return Err(Error::User(format!(
                "can't write {}: this names no file",
                path.display()
            )));
        };
        let mut part = name.to_os_string();
        part.push(format!(".{}.part", std::process::id()));
        let file = OutputFile {
            part: target.with_file_name(part),
            path: target,
        };
        fs::write(&file.part, "")
            .and_then(|()| fs::remove_file(&file.part))
            .map_err(|e| failed(path, &e))?;
        Ok(file)
    }

    /// Writes the file, over an earlier one.
    pub fn write(&self, text: &str) -> Result<(), Error> {
        fs::write(&self.part, text)
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|e| {
                // The error to tell is the first one.
                let _ = fs::remove_file(&self.part);
                failed(&self.path, &e)
            })
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::User(format!(
        "can't write {}: {error}; choose a name in a folder that exists and that you may write to",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_stays_beside_it() {
        let folder = std::env::temp_dir().join(format!("fastrun-output-{}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        let path = folder.join("chart.svg");
        fs::write(&path, "earlier").expect("written");
        let file = OutputFile::new(&path).expect("writable");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "earlier");
        file.write("<svg/>").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), "<svg/>");
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), 1);
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn what_cannot_be_written_is_told_by_name() {
        let text = |path: &Path| match OutputFile::new(path) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?} instead of a user error"),
        };
        let folder = std::env::temp_dir();
        assert!(text(&folder).contains("no regular file"));
        let missing = folder.join("fastrun-no-such-folder").join("c.svg");
        let text = text(&missing);
        assert!(
            text.contains("c.svg") && text.contains("folder that exists"),
            "{text}"
        );
    }
}
