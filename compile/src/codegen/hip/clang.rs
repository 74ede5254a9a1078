//! The compiler of HIP C++: clang with its linker, run where there is code to compile with it. It needs no GPU, no headers and
//! no device library.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::error::Error;

/// Names the compiler, instead of the usual places.
const VARIABLE: &str = "FASTC_CLANG";

/// Names of the compiler, the version that kernels are tuned with first.
const NAMES: [&str; 4] = ["clang-19", "clang-20", "clang-21", "clang"];

/// Where else it may be.
const ROCM: &str = "/opt/rocm/llvm/bin/clang";

/// The first version that knows the chip's instructions.
const VERSION: u32 = 19;

const INSTALL: &str = "Install LLVM 19, which needs no GPU: apt-get install clang-19 lld-19";

/// What came of a compilation.
pub struct Compiled {
    /// An ELF file.
    pub object: Vec<u8>,
    /// `clang 19.1.7`
    pub version: String,
}

/// Compiles a source for a chip, `gfx1151`.
///
/// # Errors
/// [`Error::User`] where the compiler isn't there, is too old or has no linker; [`Error::Bug`] for code that doesn't compile.
pub fn compile(source: &str, arch: &str) -> Result<Compiled, Error> {
    let clang = Clang::find(|name| std::env::var_os(name))?;
    let object = clang.compile(source, arch)?;
    let version = format!("clang {}", clang.version);
    Ok(Compiled { object, version })
}

#[derive(Debug)]
struct Clang {
    path: PathBuf,
    /// `19.1.7`
    version: String,
}

impl Clang {
    /// The compiler that the variable names, or the first one that there is.
    fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Clang, Error> {
        if let Some(named) = variable(VARIABLE).filter(|v| !v.is_empty()) {
            let path = PathBuf::from(named);
            return match Clang::at(&path)? {
                Some(clang) => Ok(clang),
                None => Err(Error::User(format!(
                    "{VARIABLE} names {}, which can't be run. {INSTALL}",
                    path.display()
                ))),
            };
        }
        let mut old = None;
        for path in NAMES.iter().chain([&ROCM]).map(Path::new) {
            match Clang::at(path) {
                Ok(Some(clang)) => return Ok(clang),
                Ok(None) => {}
                // A newer one may follow.
                Err(error) => old = Some(error),
            }
        }
        Err(old.unwrap_or_else(|| {
            Error::User(format!(
                "no compiler for AMD targets: looked for {} and {ROCM}. {INSTALL}; or name the compiler in {VARIABLE}",
                NAMES.join(", ")
            ))
        }))
    }

    /// The compiler at a path; none where there is none.
    fn at(path: &Path) -> Result<Option<Clang>, Error> {
        let Ok(output) = Command::new(path).arg("--version").output() else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = version(&text).ok_or_else(|| {
            Error::User(format!(
                "{} --version says no version of clang. {INSTALL}",
                path.display()
            ))
        })?;
        let major: u32 = version
            .split('.')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        if major < VERSION {
            return Err(Error::User(format!(
                "{} is version {version}; expected {VERSION} or later. {INSTALL}",
                path.display()
            )));
        }
        Ok(Some(Clang {
            path: path.to_path_buf(),
            version: version.to_string(),
        }))
    }

    fn compile(&self, source: &str, arch: &str) -> Result<Vec<u8>, Error> {
        let io = |e: std::io::Error| Error::User(format!("a temporary folder for {arch}: {e}"));
        let folder = tempfile::tempdir().map_err(io)?;
        std::fs::write(folder.path().join("kernels.hip"), source).map_err(io)?;
        let output = Command::new(&self.path)
            .current_dir(folder.path())
            .args(["-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output"])
            .args(["-nogpulib", "-nogpuinc", "-std=c++17", "-O3"])
            .arg(format!("--offload-arch={arch}"))
            // Nothing of the folder's name goes into the object.
            .arg("-fuse-cuid=none")
            // What the runner and the gate read.
            .args(["-mcode-object-version=5", "-fno-ident", "-Wl,--strip-all"])
            // Where a source says so, an operation is rounded on its own; elsewhere multiplications and additions fuse, as CUDA's do.
            .args(["-ffp-contract=fast-honor-pragmas", "-fno-exceptions"])
            // How far back a load looks for what it may be: a fifth of the time, for 2 of 71,657 instructions.
            .args(["-mllvm", "-memdep-block-scan-limit=10"])
            .args(["-mllvm", "-memdep-block-number-limit=20"])
            .args(["-Wno-pass-failed", "-o", "kernels.o", "kernels.hip"])
            .output()
            .map_err(|e| Error::User(format!("can't run {}: {e}", self.path.display())))?;
        if !output.status.success() {
            return Err(self.failed(&output));
        }
        std::fs::read(folder.path().join("kernels.o")).map_err(io)
    }

    fn failed(&self, output: &Output) -> Error {
        let text = String::from_utf8_lossy(&output.stderr);
        // The driver's words where the linker isn't installed.
        if text.contains("lld") && text.contains("doesn't exist") {
            return Error::User(format!(
                "{} has no linker: {}. {INSTALL}",
                self.path.display(),
                text.trim()
            ));
        }
        Error::Bug(format!("generated HIP code does not compile: {text}"))
    }
}

/// `19.1.7` of `Debian clang version 19.1.7 (3+b1)`.
fn version(text: &str) -> Option<&str> {
    let rest = text.split_once("clang version ")?.1;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Some(rest[..end].trim_end_matches('.')).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_compilers_say() {
        let debian = "Debian clang version 19.1.7 (3+b1)\nTarget: x86_64-pc-linux-gnu\n";
        assert_eq!(version(debian), Some("19.1.7"));
        let amd =
            "AMD clang version 18.0.0git (https://github.com/RadeonOpenCompute/llvm-project 2)";
        assert_eq!(version(amd), Some("18.0.0"));
        assert_eq!(version("gcc (Debian 12.2.0) 12.2.0"), None);
    }

    /// A program that says what a compiler's version is, and fails with some words otherwise.
    fn pretends(folder: &Path, version: &str, error: &str) -> OsString {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("clang");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'clang version {version}'; exit 0; fi\necho \"{error}\" >&2\nexit 1\n"
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.into_os_string()
    }

    #[test]
    fn what_is_missing_is_told_with_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let named =
            |path: OsString| Clang::find(move |name| (name == VARIABLE).then(|| path.clone()));
        let text = named(folder.path().join("none").into_os_string())
            .unwrap_err()
            .to_string();
        assert!(text.contains("can't be run"), "{text}");
        assert!(text.contains("apt-get install clang-19 lld-19"), "{text}");
        let text = named(pretends(folder.path(), "17.0.6", ""))
            .unwrap_err()
            .to_string();
        assert!(text.contains("version 17.0.6; expected 19"), "{text}");
        let words = "clang: error: unable to execute command: Executable 'lld' doesn't exist!";
        let clang = named(pretends(folder.path(), "19.1.7", words)).unwrap();
        assert_eq!(clang.version, "19.1.7");
        let text = clang.compile("", "gfx1151").unwrap_err().to_string();
        assert!(text.contains("has no linker"), "{text}");
        assert!(text.contains("lld-19"), "{text}");
    }

    #[test]
    fn code_that_does_not_compile_is_a_bug_with_the_compilers_words() {
        let text = compile("int f( { }", "gfx1151").err().unwrap().to_string();
        assert!(text.contains("kernels.hip:1"), "{text}");
    }
}
