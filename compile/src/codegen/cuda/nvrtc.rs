//! The run-time compiler of CUDA C++, a library that is loaded where there is code to compile with it. It needs no GPU.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

use libloading::Library;

use crate::error::Error;

/// Names the folder of the libraries, instead of the usual places.
const VARIABLE: &str = "FASTC_NVRTC";

/// The version that code is generated with: kernels are tuned to a compiler, and the same input gives the same bytes.
const LIBRARY: &str = "libnvrtc.so.13";
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";
const VERSION: (c_int, c_int) = (13, 0);

/// What came of a compilation.
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// What compiler and assembler said, resources of each kernel included.
    pub log: String,
    /// `nvrtc 13.0`
    pub version: String,
}

type Program = *mut c_void;

/// Compiles a source for a chip, `sm_90a`.
///
/// # Errors
/// [`Error::User`] where the library isn't there or has another version; [`Error::Bug`] for code that doesn't compile.
pub fn compile(source: &str, arch: &str) -> Result<Compiled, Error> {
    let nvrtc = Nvrtc::load(&places(|name| std::env::var_os(name)))?;
    let options = [
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_string(),
        "--device-as-default-execution-space".to_string(),
        "--ptxas-options=-v".to_string(),
        // What comes from the cache comes without the assembler's words, which the gate reads.
        "--no-cache".to_string(),
        "--diag-suppress=177".to_string(),
    ];
    let no_nul = |text: &str| {
        CString::new(text).map_err(|_| Error::Bug("a source with a NUL character".to_string()))
    };
    let source = no_nul(source)?;
    let options: Vec<CString> = options
        .iter()
        .map(|o| no_nul(o))
        .collect::<Result<_, _>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program: Program = ptr::null_mut();
    // SAFETY: the functions are NVRTC's, with the signatures of its header (`Nvrtc::load`); strings end in NUL and outlive
    // the calls, and what is written is written to memory of the size that the library told.
    unsafe {
        let created = (nvrtc.create)(
            &mut program,
            source.as_ptr(),
            c"kernels.cu".as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        );
        nvrtc.check(created, "nvrtcCreateProgram")?;
        let result = (nvrtc.compile)(program, pointers.len() as c_int, pointers.as_ptr());
        let log = nvrtc.bytes(program, nvrtc.log_size, nvrtc.log, "the log")?;
        let log = String::from_utf8_lossy(&log)
            .trim_end_matches('\0')
            .to_string();
        if result != 0 {
            return Err(Error::Bug(format!(
                "generated CUDA code does not compile: {log}"
            )));
        }
        let cubin = nvrtc.bytes(program, nvrtc.cubin_size, nvrtc.cubin, "the cubin")?;
        // Nothing is done with it any more.
        (nvrtc.destroy)(&mut program);
        Ok(Compiled {
            cubin,
            log,
            version: format!("nvrtc {}.{}", VERSION.0, VERSION.1),
        })
    }
}

type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

fn missing(places: &[PathBuf], why: &str) -> Error {
    let looked: Vec<String> = places
        .iter()
        .map(|place| match place.as_os_str().is_empty() {
            true => "where the system looks".to_string(),
            false => place.display().to_string(),
        })
        .collect();
    Error::User(format!(
        "no compiler for NVIDIA targets: {LIBRARY}: {why} ({}). Install NVRTC 13.0, which needs no GPU: python3 -m pip install \
         --target ~/.cache/fastinfer/nvrtc nvidia-cuda-nvrtc==13.0.88; or name the folder that has it in {VARIABLE}",
        looked.join(", ")
    ))
}

/// The library's functions.
struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: Size,
    log: Get,
    cubin_size: Size,
    cubin: Get,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    /// The functions are in them.
    _libraries: [Library; 2],
}

impl Nvrtc {
    /// Loads the libraries from the first place that has them.
    fn load(places: &[PathBuf]) -> Result<Nvrtc, Error> {
        let has = |place: &&PathBuf| place.as_os_str().is_empty() || place.join(LIBRARY).is_file();
        let Some(place) = places.iter().find(has) else {
            return Err(missing(places, "no such file"));
        };
        let open = |name: &str| {
            let path = place.join(name);
            // SAFETY: loading runs the library's initialisers; NVIDIA's only set up its own state.
            unsafe { Library::new(&path) }.map_err(|e| match place.as_os_str().is_empty() {
                true => missing(places, "no such file"),
                false => Error::User(format!("can't load {}: {e}", path.display())),
            })
        };
        // NVRTC looks for its builtins by name alone: they must be there already.
        let builtins = open(BUILTINS)?;
        let library = open(LIBRARY)?;
        let nvrtc = {
            macro_rules! function {
                ($name:literal) => {
                    // SAFETY: the type is that of the function in nvrtc.h, version 13.
                    *unsafe { library.get($name) }
                        .map_err(|e| Error::User(format!("{LIBRARY} is no NVRTC: {e}")))?
                };
            }
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                function!(b"nvrtcVersion");
            let (mut major, mut minor) = (0, 0);
            // SAFETY: it writes two integers.
            unsafe { version(&mut major, &mut minor) };
            if (major, minor) != VERSION {
                return Err(Error::User(format!(
                    "{}: NVRTC has version {major}.{minor}; expected {}.{}, with which the kernels are tuned: install \
                     nvidia-cuda-nvrtc==13.0.88",
                    place.join(LIBRARY).display(),
                    VERSION.0,
                    VERSION.1
                )));
            }
            Nvrtc {
                create: function!(b"nvrtcCreateProgram"),
                compile: function!(b"nvrtcCompileProgram"),
                destroy: function!(b"nvrtcDestroyProgram"),
                log_size: function!(b"nvrtcGetProgramLogSize"),
                log: function!(b"nvrtcGetProgramLog"),
                cubin_size: function!(b"nvrtcGetCUBINSize"),
                cubin: function!(b"nvrtcGetCUBIN"),
                error: function!(b"nvrtcGetErrorString"),
                _libraries: [library, builtins],
            }
        };
        Ok(nvrtc)
    }

    fn check(&self, result: c_int, what: &str) -> Result<(), Error> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a static string for any number.
        let text = unsafe { CStr::from_ptr((self.error)(result)) };
        Err(Error::Bug(format!("{what}: {}", text.to_string_lossy())))
    }

    /// Bytes of a program that one function tells the number of and another one gives.
    ///
    /// # Safety
    /// `program` is one of the library's.
    unsafe fn bytes(
        &self,
        program: Program,
        size: Size,
        get: Get,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let mut len = 0;
        // SAFETY: the caller's promise; `get` writes as many bytes as `size` told.
        unsafe {
            self.check(size(program, &mut len), what)?;
            let mut bytes = vec![0u8; len];
            self.check(get(program, bytes.as_mut_ptr().cast()), what)?;
            Ok(bytes)
        }
    }
}

/// Where the libraries are looked for, the first that has them: the folder that the variable names, where
/// `examples/setup.sh` puts them, where CUDA is installed, and wherever the system's loader looks (an empty path).
fn places(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    // Who names a folder means that one.
    if let Some(named) = set(VARIABLE) {
        return vec![named];
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let own = cache.map(|cache| cache.join("fastinfer/nvrtc/nvidia/cu13/lib"));
    let cuda = set("CUDA_HOME").or_else(|| set("CUDA_PATH"));
    let installed = cuda.unwrap_or_else(|| PathBuf::from("/usr/local/cuda"));
    own.into_iter()
        .chain([installed.join("lib64"), PathBuf::new()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_folder_is_the_only_place() {
        let home = |name: &str| (name == "HOME").then(|| OsString::from("/home/a"));
        let own = "fastinfer/nvrtc/nvidia/cu13/lib";
        let expected = [
            &format!("/home/a/.cache/{own}"),
            "/usr/local/cuda/lib64",
            "",
        ];
        assert_eq!(places(home), expected.map(PathBuf::from));
        let other = |name: &str| match name {
            "XDG_CACHE_HOME" => Some("/cache".into()),
            "CUDA_HOME" => Some("/cuda".into()),
            _ => home(name),
        };
        let expected = [&format!("/cache/{own}"), "/cuda/lib64", ""];
        assert_eq!(places(other), expected.map(PathBuf::from));
        let named = |name: &str| (name == VARIABLE).then(|| OsString::from("/named"));
        assert_eq!(places(named), [PathBuf::from("/named")]);
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().to_path_buf();
        let text = Nvrtc::load(std::slice::from_ref(&place))
            .err()
            .unwrap()
            .to_string();
        assert!(text.contains("pip install --target"), "{text}");
        assert!(text.contains(&*place.to_string_lossy()), "{text}");
        std::fs::write(place.join(LIBRARY), "no library").unwrap();
        std::fs::write(place.join(BUILTINS), "no library").unwrap();
        let text = Nvrtc::load(&[place]).err().unwrap().to_string();
        assert!(text.contains("can't load"), "{text}");
    }
}
