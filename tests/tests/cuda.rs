//! `fastrun` with a driver of NVIDIA's that computes nothing (tests/fake-cuda): every way in which a GPU can be the wrong one is
//! an error that says what was expected, what was found and what to do; and what is loaded is what the bundle has.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use fastrun::load::Loaded;
use tempfile::TempDir;

/// Memory that `fastrun` leaves to the driver and others where KV pools take what is free.
const SPARE: u64 = 512 << 20;

/// SmolLM2 for an H100. Its weights are larger than the ring that they are read through.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let folder = e2e::root().join("target/e2e");
        fs::create_dir_all(&folder).expect("the target folder is ours");
        let path = folder.join("smollm2-sm_90.fib");
        let model = e2e::models::smollm2();
        e2e::compile(
            &model,
            &path,
            &["--target", "sm_90", "--ctx", "512", "--max-batch", "4"],
        );
        path
    })
}

/// A folder that has a driver's library and nothing else.
struct Driver {
    folder: TempDir,
}

impl Driver {
    fn new() -> Driver {
        Driver::of(&fs::read(library()).expect("it was built"))
    }

    fn of(bytes: &[u8]) -> Driver {
        let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
        // Under both names: the first is looked for first.
        for name in ["libcuda.so", "libcuda.so.1"] {
            fs::write(folder.path().join(name), bytes).expect("the folder is ours");
        }
        Driver { folder }
    }

    /// The library under which a function has another name.
    fn without(function: &str) -> Driver {
        let mut bytes = fs::read(library()).expect("it was built");
        let (name, mut other) = ([function.as_bytes(), b"\0"].concat(), function.to_owned());
        other.replace_range(function.len() - 1.., "?");
        let places: Vec<usize> = (0..bytes.len() - name.len())
            .filter(|&at| bytes[at..].starts_with(&name) && bytes[at - 1] == 0)
            .collect();
        assert!(!places.is_empty(), "{function} is exported");
        for at in places {
            bytes[at..at + function.len()].copy_from_slice(other.as_bytes());
        }
        Driver::of(&bytes)
    }

    /// One answer of four tokens.
    fn run(&self, settings: &[(&str, &str)], options: &[&str]) -> Command {
        let mut command = e2e::fastrun(&[]);
        command.arg(bundle());
        command.args(["--raw", "-p", "Once upon a time", "-n", "4", "--temp", "0"]);
        command.args(options);
        command.env("LD_LIBRARY_PATH", self.folder.path());
        command.envs(settings.iter().copied());
        command
    }

    /// What it says where it must fail.
    fn error(&self, settings: &[(&str, &str)], options: &[&str]) -> String {
        // Messages are wrapped at the end of a line.
        let text = e2e::fail(self.run(settings, options));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The lines of the log of what must succeed.
    fn log(&self, settings: &[(&str, &str)], options: &[&str]) -> Vec<(String, u64)> {
        let log = self.folder.path().join("log");
        let mut command = self.run(settings, options);
        command.env("FAKE_CUDA_LOG", &log);
        e2e::succeed(command);
        let text = fs::read_to_string(&log).expect("there was something to log");
        fs::remove_file(log).expect("the folder is ours");
        let line = |line: &str| match line.split_once(' ') {
            Some((what, count)) => (what.to_owned(), count.parse().expect("a number")),
            None => (line.to_owned(), 1),
        };
        text.lines().map(line).collect()
    }
}

fn library() -> PathBuf {
    e2e::library("libfake_cuda.so")
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn counts(lines: &[(String, u64)], what: &str) -> Vec<u64> {
    let of = lines.iter().filter(|(name, _)| name == what);
    of.map(|(_, count)| *count).collect()
}

#[test]
fn a_library_that_does_not_load_is_named_with_the_reason() {
    let driver = Driver::of(b"\x7fELF, but no more than that");
    let text = driver.error(&[], &[]);
    let what_to_do = "fastc compile --target cpu";
    contains(
        &text,
        &[
            "libcuda.so.1",
            "can't be loaded",
            "file too short",
            what_to_do,
        ],
    );
}

#[test]
fn a_machine_without_the_driver_is_told_so() {
    let nothing = Driver {
        folder: tempfile::tempdir().expect("the system has a folder for temporary files"),
    };
    if Path::new("/proc/driver/nvidia/version").exists() {
        return; // This machine has one.
    }
    let text = nothing.error(&[], &[]);
    contains(
        &text,
        &["libcuda.so.1", "No such file", "install NVIDIA's driver"],
    );
}

#[test]
fn another_library_of_that_name_is_not_taken_for_the_driver() {
    let text = Driver::without("cuInit").error(&[], &[]);
    contains(
        &text,
        &[
            "not NVIDIA's driver",
            "no function cuInit",
            "LD_LIBRARY_PATH",
        ],
    );
}

#[test]
fn a_function_that_the_driver_lacks_is_named() {
    let driver = Driver::without("cuLaunchKernelEx");
    let text = driver.error(&[], &[]);
    contains(
        &text,
        &[
            "CUDA 13.0",
            "lacks the function cuLaunchKernelEx",
            "install the driver again",
        ],
    );
    // An old driver may lack it, too; that it is old says more.
    let text = driver.error(&[("FAKE_CUDA_DRIVER", "11040")], &[]);
    contains(&text, &["CUDA 11.4", "expected 13.0 or later", "update"]);
}

#[test]
fn a_driver_that_is_too_old_is_told_with_both_versions() {
    let text = Driver::new().error(&[("FAKE_CUDA_DRIVER", "12080")], &[]);
    contains(&text, &["CUDA 12.8", "expected 13.0 or later", "update it"]);
}

#[test]
fn a_driver_without_a_gpu_is_told_so() {
    let driver = Driver::new();
    for (status, said) in [
        ("100", "no CUDA-capable device"),
        ("803", "unsupported display driver"),
    ] {
        let text = driver.error(&[("FAKE_CUDA_INIT", status)], &[]);
        contains(&text, &["none can be used here", "cuInit", said, status]);
    }
    let text = driver.error(&[("FAKE_CUDA_DEVICES", "0")], &[]);
    contains(&text, &["for an NVIDIA GPU", "this machine has none"]);
}

#[test]
fn another_gpu_is_named_with_what_to_compile_for() {
    let driver = Driver::new();
    for (capability, name, chip) in [
        ("80", "NVIDIA A100", "sm_80"),
        ("120", "NVIDIA GeForce RTX 5090", "sm_120"),
    ] {
        let settings = [
            ("FAKE_CUDA_CAPABILITY", capability),
            ("FAKE_CUDA_NAME", name),
        ];
        let text = driver.error(&settings, &[]);
        let remedy = format!("fastc compile --target {chip}");
        contains(
            &text,
            &[
                "the bundle is for sm_90a",
                name,
                &format!("({chip})"),
                &remedy,
            ],
        );
    }
}

#[test]
fn too_little_memory_is_told_with_numbers() {
    let driver = Driver::new();
    let loaded = Loaded::open(bundle()).expect("the bundle is whole");
    let block: u64 = loaded.plan().kv.iter().map(|kv| kv.block_bytes()).sum();
    let asked = (5 * block).to_string();
    let lines = driver.log(&[], &["--kv-memory", &asked]);
    let [all] = counts(&lines, "memory")[..] else {
        panic!("everything is in one piece: {lines:?}");
    };
    let fixed = all - 5 * block;
    let error = |free: u64, options: &[&str]| {
        let memory = (SPARE + free).to_string();
        driver.error(&[("FAKE_CUDA_MEMORY", &memory)], options)
    };
    let text = error(5000, &[]);
    contains(
        &text,
        &[
            "has 5000 bytes free",
            &fixed.to_string(),
            "free some of its memory",
        ],
    );
    // Weights and buffers fit, but no block.
    let free = fixed + block - 1;
    let text = error(free, &[]);
    contains(
        &text,
        &[&free.to_string(), &fixed.to_string(), &block.to_string()],
    );
    let text = error(fixed + 2 * block, &["--kv-memory", &asked]);
    let told = format!("{asked} bytes of KV memory are asked for");
    contains(
        &text,
        &[&told, &format!("{} left", 2 * block), "ask for less"],
    );
    let text = error(1 << 30, &["--kv-memory", "100"]);
    let least = format!("at least {block} bytes");
    contains(
        &text,
        &["100 bytes of KV memory hold no block of 16", &least],
    );
}

#[test]
fn weights_arrive_as_they_are_in_the_bundle() {
    const CHUNK: u64 = 4 << 20;
    let driver = Driver::new();
    let dump = driver.folder.path().join("dump");
    let settings = [(
        "FAKE_CUDA_DUMP",
        dump.to_str().expect("the folder's name is text"),
    )];
    let lines = driver.log(&settings, &["--kv-memory", "2M"]);
    let memory = fs::read(&dump).expect("something was launched");
    let loaded = Loaded::open(bundle()).expect("the bundle is whole");
    let file = fs::read(bundle()).expect("the bundle is whole");
    let weights = &file[loaded.bundle().weights_range()];
    let len = weights.len() as u64;
    // Eight threads, each with two pieces of the ring; inputs and results of two steps come later.
    let pinned = counts(&lines, "host");
    assert_eq!(pinned.len(), 16 + 4, "{pinned:?}");
    assert_eq!(pinned[..16], [CHUNK; 16]);
    assert!(len > 16 * CHUNK, "the ring goes round: {len} bytes");
    assert!(
        memory[..weights.len()] == *weights,
        "the bytes are the file's"
    );
    let uploads = counts(&lines, "upload");
    let chunks = len.div_ceil(CHUNK) as usize;
    assert_eq!(uploads[..chunks].iter().sum::<u64>(), len);
    assert!(uploads[..chunks].iter().all(|&bytes| bytes <= CHUNK));
    // Then the inputs of steps: all alike.
    let inputs = &uploads[chunks..];
    assert!(!inputs.is_empty() && inputs.iter().all(|&bytes| bytes == inputs[0]));
}

#[test]
fn kv_pools_are_what_was_asked_for_or_what_is_free() {
    let driver = Driver::new();
    let loaded = Loaded::open(bundle()).expect("the bundle is whole");
    let plan = loaded.plan();
    let block: u64 = plan.kv.iter().map(|kv| kv.block_bytes()).sum();
    let taken = |memory: u64, options: &[&str]| {
        let memory = memory.to_string();
        let lines = driver.log(&[("FAKE_CUDA_MEMORY", &memory)], options);
        counts(&lines, "memory")[0]
    };
    let asked = |bytes: u64| taken(4 << 30, &["--kv-memory", &bytes.to_string()]);
    let fixed = asked(block) - block;
    for blocks in [2, 50] {
        assert_eq!(asked(blocks * block + 1), fixed + blocks * block);
    }
    // What is free, in whole blocks: a part of what the plan's sequences could fill, all of it, never more.
    let free = fixed + 20 * block + block / 2;
    assert_eq!(taken(SPARE + free, &[]), fixed + 20 * block);
    let most = u64::from(plan.limits.context.div_ceil(16) * plan.limits.max_seqs);
    assert_eq!(
        taken(SPARE + fixed + most * block, &[]),
        fixed + most * block
    );
    assert_eq!(taken(8 << 30, &[]), fixed + most * block);
}

#[test]
fn a_fault_says_at_which_call_and_that_the_gpu_failed() {
    let driver = Driver::new();
    // By the graph, and by launches one by one, where streams can't be captured.
    for capture in ["1", "0"] {
        let settings = [("FAKE_CUDA_FAULT_AT", "7"), ("FAKE_CUDA_CAPTURE", capture)];
        let text = driver.error(&settings, &["--kv-memory", "2M"]);
        contains(
            &text,
            &["CUDA", "an illegal memory access was encountered (700)"],
        );
    }
}

#[test]
fn a_driver_that_captures_no_streams_is_given_launches_one_by_one() {
    let driver = Driver::new();
    let launches = |capture| {
        let settings = [("FAKE_CUDA_CAPTURE", capture)];
        let lines = driver.log(&settings, &["--kv-memory", "2M"]);
        counts(&lines, "launch").len()
    };
    assert_eq!(launches("0"), launches("1"), "the same, in graphs or not");
}
