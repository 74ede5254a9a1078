//! What the kernel tells about a machine in /sys, /proc and /dev, from any root: a recorded machine is examined like this one.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// Files of a machine.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// This machine's.
    pub fn here() -> Tree {
        Tree::at(Path::new("/"))
    }

    /// Those below a folder, which stands for `/`.
    pub fn at(root: &Path) -> Tree {
        Tree { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the blanks around it; none where there is no such file, or it isn't for us.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_string())
    }

    /// A file's number, decimal or `0x…`.
    pub fn number(&self, path: &str) -> Option<u64> {
        let text = self.text(path)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether this process may read and write a file, which it opens for that.
    pub fn opens(&self, path: &str) -> bool {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.open(self.path(path)).is_ok()
    }

    /// Names in a folder, sorted; none where there is no such folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder));
        let names = entries.into_iter().flatten().flatten();
        let mut names: Vec<String> = names
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}
