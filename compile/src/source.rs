//! The model's files, mapped: one, or the parts of a split one (`name-00001-of-00003.gguf`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::Error;
use crate::gguf::Gguf;

/// Mapped model files.
pub struct Source {
    parts: Vec<Part>,
}

struct Part {
    path: PathBuf,
    map: Mmap,
}

impl Source {
    /// Maps a model file, and where its name says that it is one of several, all of them.
    ///
    /// # Errors
    /// A file is missing, can't be read, or is not a file.
    pub fn open(path: &Path) -> Result<Source, Error> {
        let paths = split_paths(path)?.unwrap_or_else(|| vec![path.to_path_buf()]);
        let parts = paths
            .into_iter()
            .map(Part::open)
            .collect::<Result<_, _>>()?;
        Ok(Source { parts })
    }

    /// The path of each file.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|p| &*p.path)
    }

    /// The bytes of each file.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|p| &p.map[..])
    }

    /// Parses all files as one model.
    ///
    /// # Errors
    /// A file is damaged, or the parts don't belong together; the text names the file.
    pub fn parse(&self) -> Result<Gguf<'_>, Error> {
        let count = self.parts.len();
        let mut whole: Option<Gguf<'_>> = None;
        for (index, part) in self.parts.iter().enumerate() {
            let in_file = |e: Error| e.context(part.path.display());
            let gguf = Gguf::parse(&part.map)
                .map_err(Error::from)
                .map_err(in_file)?;
            let number = |key: &str| {
                gguf.metadata
                    .optional::<usize>(key)
                    .map_err(Error::from)
                    .map_err(in_file)
            };
            let (own, all) = (number("split.no")?, number("split.count")?);
            let whole_file = count == 1 && all.is_none_or(|n| n <= 1);
            if !whole_file && (own, all) != (Some(index), Some(count)) {
                let name = |n: Option<usize>| n.map_or("none".to_string(), |n| n.to_string());
                return Err(in_file(Error::User(format!(
                    "split.no is {} and split.count {}, expected {index} and {count}; all parts of a split model are \
                     needed, under the names that they were made with",
                    name(own),
                    name(all)
                ))));
            }
            match &mut whole {
                None => whole = Some(gguf),
                Some(whole) => whole.append(gguf).map_err(Error::from).map_err(in_file)?,
            }
        }
        whole.ok_or_else(|| Error::Bug("a source without files".to_string()))
    }

    /// Tells the system that a part of a file will be read soon.
    pub fn expect(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, offset)) = self.locate(bytes) {
            // Refused advice costs time, nothing else.
            let _ = map.advise_range(memmap2::Advice::WillNeed, offset, bytes.len());
        }
    }

    /// Tells the system that a part of a file won't be read soon, so that the memory in use stays near what is worked on,
    /// not the model.
    pub fn forget(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, offset)) = self.locate(bytes) {
            // SAFETY: the map is read-only and of a file, so what is dropped is read from the file again at the next
            // access, the same bytes: no one can tell the difference.
            let advised = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                map.unchecked_advise_range(advice, offset, bytes.len())
            };
            // Refused advice costs memory, nothing else.
            let _ = advised;
        }
    }

    /// The map that has these bytes, and where.
    #[cfg(unix)]
    fn locate(&self, bytes: &[u8]) -> Option<(&Mmap, usize)> {
        self.parts.iter().find_map(|Part { map, .. }| {
            let offset = (bytes.as_ptr() as usize).checked_sub(map.as_ptr() as usize)?;
            (offset + bytes.len() <= map.len()).then_some((map, offset))
        })
    }
}

impl Part {
    fn open(path: PathBuf) -> Result<Part, Error> {
        let describe = |e: io::Error| Error::User(format!("can't read {}: {e}", path.display()));
        let file = File::open(&path).map_err(describe)?;
        if !file.metadata().map_err(describe)?.is_file() {
            return Err(Error::User(format!(
                "{} is not a file; expected a GGUF model",
                path.display()
            )));
        }
        // SAFETY: the map is read-only and private. Another process that cuts the file while we read it makes the read
        // fail with SIGBUS, which ends this process and leaves no bundle; one that changes it gives a bundle of a model
        // that never existed, but no access outside the map, since every bound is that of the map.
        let map = unsafe { Mmap::map(&file) }.map_err(describe)?;
        Ok(Part { path, map })
    }
}

/// The paths of all parts, if a name ends in `-NNNNN-of-NNNNN.gguf`.
fn split_paths(path: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
    let parse = || -> Option<(&str, usize, usize)> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
        Some((name, digits(number)?, digits(count)?))
    };
    let Some((name, number, count)) = parse() else {
        return Ok(None);
    };
    if number == 0 || number > count {
        return Err(Error::User(format!(
            "{}: part {number} of {count}; parts are numbered from 1",
            path.display()
        )));
    }
    let part = |n: usize| path.with_file_name(format!("{name}-{n:05}-of-{count:05}.gguf"));
    Ok(Some((1..=count).map(part).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_names_the_others() {
        let paths = split_paths(Path::new("a/m-q4-00002-of-00003.gguf"))
            .unwrap()
            .unwrap();
        let expected: Vec<PathBuf> = (1..=3)
            .map(|n| format!("a/m-q4-0000{n}-of-00003.gguf").into())
            .collect();
        assert_eq!(paths, expected);
        for whole in [
            "m.gguf",
            "m-1-of-2.gguf",
            "m-00001-of-00002.bin",
            "-of-.gguf",
        ] {
            assert!(split_paths(Path::new(whole)).unwrap().is_none(), "{whole}");
        }
        for wrong in ["m-00000-of-00002.gguf", "m-00003-of-00002.gguf"] {
            assert!(
                split_paths(Path::new(wrong))
                    .unwrap_err()
                    .to_string()
                    .contains("numbered from 1")
            );
        }
    }
}
