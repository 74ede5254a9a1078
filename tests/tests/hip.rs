//! The HIP device as it is shipped: `fastrun` loads a library with the entry points of AMD's runtime, packs arguments, launches,
//! and waits. The library is ours, and its GPU a simulator (tests/gfx11-hip); it fails where a variable asks it to.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use ::fastrun::Error;
use ::fastrun::device::gpu::{GpuDevice, GpuOptions};
use ::fastrun::device::{Device, Step, StepKv, TokenSource, Want};
use ::fastrun::load::Loaded;
use e2e::gpu::model::{compile_for, synth};
use e2e::gpu::{Machine, hip_library};
use e2e::{fail, fastrun, succeed};

/// A small model for gfx1151.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let folder = e2e::root().join("target/e2e");
        std::fs::create_dir_all(&folder).unwrap();
        let (gguf, path) = (folder.join("hip.gguf"), folder.join("hip.fib"));
        synth("tiny", "q4_0", 1, &gguf);
        compile_for(Machine::simulator(), &gguf, &path, &["--ctx", "512"]);
        path
    })
}

/// The logits after some tokens, in a process that has these variables.
fn logits(variables: &[(&str, &str)]) -> Command {
    logits_with("4M", variables)
}

/// Likewise, with so many bytes of KV pools.
fn logits_with(kv_memory: &str, variables: &[(&str, &str)]) -> Command {
    let path = bundle().to_str().unwrap();
    let mut command = fastrun(&["logits", path, "--tokens", "5,6,7,8,9", "--json"]);
    command.args(["--kv-memory", kv_memory]);
    command
        .env("FASTRUN_HIP", hip_library())
        .envs(variables.iter().copied());
    command
}

/// What is loaded is what is linked: the same kernels with the same arguments.
#[test]
fn the_loader_runs_what_the_library_has() {
    let text = succeed(logits(&[]));
    let found: Vec<(u32, f32)> = serde_json::from_str(&text).unwrap();
    let mut device = open(&GpuOptions {
        kv_bytes: Some(4 << 20),
        simulate: true,
        ..GpuOptions::default()
    })
    .unwrap();
    let ticket = device.submit(step()).unwrap();
    let outcome = loop {
        if let Some(outcome) = device.poll(ticket).unwrap() {
            break outcome;
        }
    };
    let expected = outcome.rows[0].logits.as_ref().unwrap();
    assert_eq!(found.len(), expected.len());
    for (id, logit) in found {
        assert_eq!(logit, expected[id as usize], "token {id}");
    }
}

fn open(options: &GpuOptions) -> Result<GpuDevice, Error> {
    GpuDevice::open(Arc::new(Loaded::open(bundle()).unwrap()), options)
}

/// The step of `logits`.
fn step() -> Step {
    let logits = Want {
        logits: true,
        ..Want::default()
    };
    Step {
        tokens: (5..10).map(TokenSource::Id).collect(),
        positions: (0..5).collect(),
        sequences: vec![0; 5],
        kv: vec![StepKv {
            slots: (0..5).collect(),
            tables: vec![[0].into()],
            copies: vec![],
        }],
        rows: vec![4],
        wants: vec![logits],
    }
}

#[test]
fn graphs_and_launches_one_by_one_give_the_same() {
    let graphs = succeed(logits(&[]));
    assert_eq!(graphs, succeed(logits(&[("GFX11_HIP_CAPTURE", "0")])));
    assert_eq!(
        graphs,
        succeed(logits(&[
            ("GFX11_HIP_CAPTURE", "0"),
            ("AMD_SERIALIZE_KERNEL", "3")
        ]))
    );
}

#[test]
fn a_missing_library_is_named() {
    let text = fail(logits(&[("FASTRUN_HIP", "/nowhere/libamdhip64.so")]));
    for part in ["/nowhere/libamdhip64.so", "ROCm 6", "FASTRUN_HIP"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// What is shipped has no simulator in it, and says how to get one that has.
#[test]
fn the_simulator_is_a_feature() {
    let mut command = logits(&[]);
    let text = fail({
        command.args(["--device", "sim"]);
        command
    });
    assert!(text.contains("--features sim"), "{text}");
}

#[test]
fn another_library_is_named_with_what_it_lacks() {
    let text = fail(logits(&[("FASTRUN_HIP", "libc.so.6")]));
    assert!(
        text.contains("libc.so.6") && text.contains("hipInit"),
        "{text}"
    );
}

#[test]
fn too_little_memory_is_told_with_numbers() {
    let text = fail(logits(&[("GFX11_HIP_MEMORY", "537000000")]));
    // All but what is left to the driver and others.
    let left = 537_000_000 - (512 << 20);
    assert!(text.contains(&format!("{left} bytes free")), "{text}");
    // Pools never take more than all sequences can fill: asked for too much, where all but them has room.
    let fixed = text.split("buffers take ").nth(1).expect(&text);
    let fixed: u64 = fixed.split([';', ' ']).next().unwrap().parse().unwrap();
    let memory = ((512 << 20) + fixed + 1).to_string();
    let text = fail(logits_with("2G", &[("GFX11_HIP_MEMORY", &memory)]));
    for part in [(2u64 << 30).to_string(), format!("of {fixed} bytes")] {
        assert!(text.contains(&part), "{part}: {text}");
    }
}

/// On a runtime that runs each launch before it returns, the launch that failed is known.
#[test]
fn a_fault_names_its_launch_where_launches_are_serialised() {
    let serial = [
        ("GFX11_HIP_CAPTURE", "0"),
        ("AMD_SERIALIZE_KERNEL", "3"),
        ("GFX11_HIP_FAULT_AT", "3"),
    ];
    let text = fail_with_a_fault(&serial);
    assert!(
        text.contains("launch ") && text.contains("illegal memory access"),
        "{text}"
    );
    let plan = Loaded::open(bundle()).unwrap();
    let known = plan
        .plan()
        .launches
        .iter()
        .any(|l| text.contains(&format!("launch {}: ", l.name)));
    assert!(known, "{text}");
}

#[test]
fn a_fault_is_told_where_nothing_is_serialised() {
    let text = fail_with_a_fault(&[("GFX11_HIP_FAULT_AT", "3")]);
    assert!(text.contains("illegal memory access"), "{text}");
}

/// What `fastrun` says of a fault of its device, for which it has an exit code of its own or the common one.
fn fail_with_a_fault(variables: &[(&str, &str)]) -> String {
    let output = logits(variables).output().unwrap();
    assert!(!output.status.success());
    let text = e2e::stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// In one process with the simulator the error says kernel and instruction, and the device is lost for good.
#[test]
fn a_fault_of_the_simulator_is_an_error_that_names_the_kernel() {
    const ALONE: &str = "FASTINFER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // A device that is lost is lost to all of a process.
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "a_fault_of_the_simulator_is_an_error_that_names_the_kernel";
        command
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1");
        succeed(command);
        return;
    }
    let mut device = open(&GpuOptions {
        kv_bytes: Some(4 << 20),
        simulate: true,
        ..GpuOptions::default()
    })
    .unwrap();
    gfx11_hip::fail_launch(2);
    let ticket = device.submit(step()).unwrap();
    let error = loop {
        match device.poll(ticket) {
            Ok(None) => {}
            Ok(Some(_)) => panic!("the second launch was to fail"),
            Err(error) => break error,
        }
    };
    let Error::Fault(text) = error else {
        panic!("{error}");
    };
    let loaded = Loaded::open(bundle()).unwrap();
    let named = loaded
        .plan()
        .kernels()
        .any(|kernel| text.contains(&kernel.symbol));
    assert!(named, "{text}");
    assert!(matches!(device.submit(step()), Err(Error::Fault(_))));
}

/// A server, which ends with its test.
struct Server {
    process: Child,
    address: String,
    /// What it writes to standard error.
    log: PathBuf,
}

impl Server {
    fn start(folder: &Path, variables: &[(&str, &str)]) -> Server {
        let log = folder.join("log");
        let mut command = fastrun(&["serve", bundle().to_str().unwrap(), "--port", "0"]);
        command.args(["--kv-memory", "4M"]);
        command
            .env("FASTRUN_HIP", hip_library())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().to_string();
        Server {
            process,
            address,
            log,
        }
    }

    /// The answer to a request for so many tokens.
    fn complete(&self, tokens: u32) -> serde_json::Value {
        let body = serde_json::json!({
            "prompt": "Once", "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
        });
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A worker whose GPU fails is followed by one that runs by the next stricter profile, and goes on with the same request.
#[test]
fn a_server_goes_on_by_a_stricter_profile_after_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("failed");
    // A dozen tokens or so in: a step has some twenty launches.
    let variables = [
        ("GFX11_HIP_FAULT_AT", "250"),
        ("GFX11_HIP_FAULT_ONCE", once.to_str().unwrap()),
    ];
    let server = Server::start(folder.path(), &variables);
    let answer = server.complete(40);
    assert_eq!(answer["usage"]["completion_tokens"], 40, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
    assert!(once.exists(), "no launch failed");
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(log.contains("illegal memory access"), "{log}");
    assert!(
        log.contains("the next worker runs by the profile strict"),
        "{log}"
    );
}
