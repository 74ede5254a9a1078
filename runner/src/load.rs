//! Opens a bundle: maps the file, checks it, and checks that this machine and this build can run it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bundle_format::model::Manifest;
use bundle_format::plan::Plan;
use bundle_format::{Bundle, ErrorKind};
use memmap2::{Advice, Mmap, MmapOptions};

use crate::Error;

/// What a GGUF file starts with: the likeliest thing to be given instead of a bundle.
const GGUF: &[u8] = b"GGUF";

/// An opened bundle and the map of its file, which every device that runs it keeps alive.
///
/// Everything but the weights has been verified; whether this machine has what the bundle needs, [`Loaded::open`] checks.
#[derive(Debug)]
pub struct Loaded {
    /// Borrows from `map`; declared before it, so dropped before it.
    bundle: Bundle<'static>,
    map: Mmap,
    path: PathBuf,
}

impl Loaded {
    /// Opens the bundle at `path`.
    ///
    /// # Errors
    /// [`Error::User`] for a file that can't be read, is damaged or is no bundle; [`Error::Unsupported`] for one of another
    /// version, or for a target, a processor feature or a kernel ABI that isn't here. Each says what to do.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let loaded = Self::open_to_look(path)?;
        loaded.check_runnable()?;
        loaded.read_ahead();
        Ok(loaded)
    }

    /// Opens a bundle that may be for another machine, to look at it.
    ///
    /// # Errors
    /// As [`Loaded::open`], but for what this machine lacks.
    pub fn open_to_look(path: &Path) -> Result<Self, Error> {
        let named = |text: String| Error::User(format!("{}: {text}", path.display()));
        let file = File::open(path).map_err(|e| {
            let advice = match e.kind() {
                io::ErrorKind::NotFound => "; check the name, or make it with `fastc compile`",
                _ => "",
            };
            named(format!("can't open: {e}{advice}"))
        })?;
        let metadata = file
            .metadata()
            .map_err(|e| named(format!("can't read: {e}")))?;
        if !metadata.is_file() {
            return Err(named("not a file; give a bundle, a .fib file".into()));
        }
        if metadata.len() == 0 {
            return Err(named(
                "the file is empty; give a bundle that `fastc compile` wrote".into(),
            ));
        }
        // SAFETY: the map is read-only and private to no one: were another process to write to or cut the file while it is
        // mapped, what is read through it would change (or the process get SIGBUS). `fastc` never does so: it writes
        // bundles under another name and renames them, which leaves a mapped file as it is. What a change could reach is
        // kept small besides: manifest, plan and code are private copies that were checked after they were copied, so no
        // size, index or instruction comes from the map; weights are numbers, and any numbers may be multiplied.
        let map = unsafe { MmapOptions::new().map(&file) }
            .map_err(|e| named(format!("can't map: {e}")))?;
        if map.starts_with(GGUF) {
            return Err(named(
                "this is a GGUF model, not a bundle; compile it first: fastc compile MODEL.gguf -o MODEL.fib".into(),
            ));
        }
        let bundle = Bundle::open(&map).map_err(|e| match e.kind() {
            ErrorKind::Corrupt | ErrorKind::Io => named(e.to_string()),
            ErrorKind::Unsupported => Error::Unsupported(format!("{}: {e}", path.display())),
            ErrorKind::Caller => Error::Bug(format!("{}: {e}", path.display())),
        })?;
        // SAFETY: only the lifetime is changed. The bytes lie where they are until `map` is dropped, which is after the
        // bundle is, and `bundle()` hands the bundle out with the lifetime of `self`.
        let bundle = unsafe { std::mem::transmute::<Bundle<'_>, Bundle<'static>>(bundle) };
        Ok(Self {
            bundle,
            map,
            path: path.to_owned(),
        })
    }

    /// Whether this machine has what the bundle needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it hasn't.
    pub fn check_runnable(&self) -> Result<(), Error> {
        check_runnable(self.manifest(), &MACHINE)
            .map_err(|text| Error::Unsupported(format!("{}: {text}", self.path.display())))
    }

    /// Tells the system to read the weights from the disk while this process gets ready.
    fn read_ahead(&self) {
        let weights = self.bundle.weights_range();
        // Advice only: where the system doesn't take it, pages come when they are touched. In large pages where Linux reads the
        // file now; one that it has in its cache stays as it is.
        #[cfg(target_os = "linux")]
        let _ = self
            .map
            .advise_range(Advice::HugePage, weights.start, weights.len());
        let _ = self
            .map
            .advise_range(Advice::WillNeed, weights.start, weights.len());
    }

    /// Checks every chunk of the weights, on all processors; `progress` is called with the bytes of each.
    ///
    /// # Errors
    /// [`Error::User`] about the first damaged chunk that was found.
    pub fn verify_weights(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
        let chunks = self.bundle.chunk_count();
        let next = AtomicU64::new(0);
        let work = || {
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return Ok(());
                }
                match self.bundle.verify_chunk(chunk) {
                    Ok(len) => progress(len),
                    Err(error) => {
                        // Nobody need go on.
                        next.store(chunks, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<_> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            handles.into_iter().map(|handle| handle.join()).collect()
        });
        for result in results {
            result
                .map_err(|_| Error::Bug("a thread that verified weights panicked".into()))?
                .map_err(|e| Error::User(format!("{}: {e}", self.path.display())))?;
        }
        Ok(())
    }

    /// The bundle, with its tokenizer and weights in the map.
    pub fn bundle(&self) -> &Bundle<'_> {
        &self.bundle
    }

    pub fn manifest(&self) -> &Manifest {
        self.bundle.manifest()
    }

    pub fn plan(&self) -> &Plan {
        self.bundle.plan()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.map.len() as u64
    }
}

/// What a machine has.
struct Machine {
    arch: &'static str,
    kernel_abi: u32,
    /// Whether the processor has a feature; none where the name isn't known.
    has: fn(&str) -> Option<bool>,
}

const MACHINE: Machine = Machine {
    arch: std::env::consts::ARCH,
    kernel_abi: kernels::abi::VERSION,
    has: kernels::cpu::has_feature,
};

/// Says what a bundle needs that the machine lacks.
fn check_runnable(manifest: &Manifest, machine: &Machine) -> Result<(), String> {
    let target = manifest.target;
    if let Some(arch) = target.arch().filter(|&arch| arch != machine.arch) {
        return Err(format!(
            "the bundle is for {target}, which runs on {arch} processors, but this one is {}; compile the model for this \
             machine (fastc compile --target cpu)",
            machine.arch
        ));
    }
    if manifest.kernel_abi != machine.kernel_abi {
        return Err(format!(
            "the bundle needs kernel ABI {}, but this runner has {}; compile the model again with the fastc of this \
             runner's version, or use a runner of the compiler's ({})",
            manifest.kernel_abi, machine.kernel_abi, manifest.compiler
        ));
    }
    let required = target.required_features().iter().copied();
    for name in required.chain(manifest.features.iter().map(String::as_str)) {
        match (machine.has)(name) {
            Some(true) => {}
            Some(false) => {
                return Err(format!(
                    "this processor lacks {name}, which the bundle's code needs; run it on a processor that has it, or \
                     compile the model for this one (fastc compile --target cpu)"
                ));
            }
            None => {
                return Err(format!(
                    "the bundle needs the processor feature {name}, which this runner doesn't know; use a runner of the \
                     compiler's version ({})",
                    manifest.compiler
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::model::Model;
    use bundle_format::target::Target;

    fn manifest() -> Manifest {
        Manifest {
            compiler: "fastc 0.1.0".into(),
            toolchain: vec![],
            zstd: String::new(),
            source_hash: [0; 32],
            target: Target::X86_64V3,
            features: vec!["avx2".into(), "fma".into()],
            kernel_abi: 1,
            options: vec![],
            model: Model {
                arch: "llama".into(),
                name: String::new(),
                quantisation: String::new(),
                parameters: 0,
                layers: 1,
                embedding: 1,
                vocab: 1,
                trained_context: 1,
            },
        }
    }

    const ABLE: Machine = Machine {
        arch: "x86_64",
        kernel_abi: 1,
        has: |name| (name != "flying").then_some(true),
    };

    #[test]
    fn an_able_machine_is_accepted() {
        assert_eq!(check_runnable(&manifest(), &ABLE), Ok(()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let lacking = Machine {
            has: |name| Some(name != "f16c"),
            ..ABLE
        };
        let text = check_runnable(&manifest(), &lacking).unwrap_err();
        assert!(text.contains("lacks f16c"), "{text}");

        let mut flying = manifest();
        flying.features.push("flying".into());
        let text = check_runnable(&flying, &ABLE).unwrap_err();
        assert!(text.contains("feature flying"), "{text}");

        let arm = Machine {
            arch: "aarch64",
            ..ABLE
        };
        let text = check_runnable(&manifest(), &arm).unwrap_err();
        assert!(text.contains("x86-64-v3") && text.contains("aarch64"));

        let newer = Machine {
            kernel_abi: 2,
            ..ABLE
        };
        let text = check_runnable(&manifest(), &newer).unwrap_err();
        assert!(text.contains("kernel ABI 1") && text.contains("has 2"));
    }

    /// AVX-512 without VNNI is the psABI's fourth level, but not enough.
    #[test]
    fn each_missing_feature_of_a_target_is_named() {
        static MISSING: std::sync::Mutex<&str> = std::sync::Mutex::new("");
        let lacking = Machine {
            has: |name| Some(name != *MISSING.lock().unwrap()),
            ..ABLE
        };
        for target in Target::ALL {
            let manifest = Manifest {
                target: *target,
                features: vec![],
                ..manifest()
            };
            for name in target.required_features() {
                *MISSING.lock().unwrap() = name;
                let text = check_runnable(&manifest, &lacking).unwrap_err();
                assert!(text.contains(&format!("lacks {name},")), "{target}: {text}");
            }
        }
        assert!(Target::X86_64V4.required_features().contains(&"avx512vnni"));
    }

    #[test]
    fn unreadable_files_are_named() {
        let folder = std::env::temp_dir();
        for (path, what) in [
            (folder.join("fastrun-no-such-file.fib"), "can't open"),
            (folder.clone(), "not a file"),
        ] {
            let error = Loaded::open(&path).unwrap_err();
            assert!(matches!(error, Error::User(_)));
            let text = error.to_string();
            assert!(text.contains(what), "{text}");
            assert!(text.contains(&*path.to_string_lossy()), "{text}");
        }
    }
}
