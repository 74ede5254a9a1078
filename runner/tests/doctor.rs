//! What `fastrun doctor` finds on recorded machines. Each `doctor/NAME.tree` holds the files that it looks at; the findings are
//! in `doctor/NAME.txt`, which `BLESS=1 cargo test -p fastrun --test doctor` writes anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bundle_format::target::Target;
use fastrun::doctor::{Finding, Grade, Needs, Runtime, Runtimes, Tree, examine};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doctor")
}

/// Lays a recorded machine out in a folder: `== PATH`, then the file's text; `== PATH/` is a folder.
fn unpack(name: &str) -> tempfile::TempDir {
    let text = fs::read_to_string(folder().join(format!("{name}.tree"))).unwrap();
    let root = tempfile::tempdir().unwrap();
    for part in text.split("== /").skip(1) {
        let (path, content) = part.split_once('\n').unwrap_or((part, ""));
        let to = root.path().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(to).unwrap();
        } else {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, content).unwrap();
        }
    }
    root
}

fn found(name: &str, runtimes: &Runtimes, needs: Option<&Needs>) -> Vec<Finding> {
    let root = unpack(name);
    examine(&Tree::at(root.path()), runtimes, needs)
}

fn check(name: &str, findings: &[Finding]) {
    let mut text = String::new();
    for f in findings {
        let _ = writeln!(text, "{:?} {:?}: {}", f.part, f.grade, f.what);
        // What is wrong says why, and what to do.
        assert_eq!(f.grade == Grade::Good, f.why.is_empty(), "{f:?}");
        assert_eq!(f.grade == Grade::Good, f.remedy.is_empty(), "{f:?}");
        if f.grade != Grade::Good {
            let _ = writeln!(text, "  {}\n  {}", f.why, f.remedy);
        }
    }
    let path = folder().join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
        return;
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "{name}");
}

fn none() -> Runtimes {
    Runtimes {
        hip: Runtime::Fails("libamdhip64.so is not here".into()),
        cuda: Runtime::Fails("libcuda.so.1 is not here".into()),
    }
}

fn works(chip: &str, free: u64) -> Runtimes {
    let runtime = Runtime::Works {
        version: "HIP 7.1".into(),
        gpu: format!("AMD Radeon 8060S ({chip})"),
        chip: chip.into(),
        free,
    };
    Runtimes {
        hip: runtime.clone(),
        cuda: runtime,
    }
}

const GIB: u64 = 1 << 30;

fn needs(target: Target, bytes: u64) -> Needs {
    Needs {
        target,
        bytes,
        sequence_bytes: 2 * GIB,
    }
}

#[test]
fn a_well_kept_strix_halo_has_nothing_to_mend() {
    let findings = found("strix-halo", &works("gfx1151", 120 * GIB), None);
    assert!(findings.iter().all(|f| f.grade == Grade::Good));
    check("strix-halo", &findings);
}

#[test]
fn what_makes_a_strix_halo_fault_is_named() {
    let findings = found("strix-halo-faulting", &works("gfx1151", 60 * GIB), None);
    check("strix-halo-faulting", &findings);
}

#[test]
fn a_container_without_the_device_says_so() {
    check(
        "strix-halo-container",
        &found("strix-halo-container", &none(), None),
    );
}

#[test]
fn a_user_without_the_group_says_so() {
    check(
        "strix-halo-other-user",
        &found("strix-halo-other-user", &none(), None),
    );
}

#[test]
fn advice_for_strix_halo_is_not_given_to_other_gpus() {
    let findings = found("radeon-7900", &works("gfx1100", 20 * GIB), None);
    check("radeon-7900", &findings);
}

#[test]
fn an_h100_has_nothing_to_mend() {
    let runtimes = Runtimes {
        cuda: Runtime::Works {
            version: "CUDA 13.0".into(),
            gpu: "NVIDIA H100 80GB HBM3 (sm_90)".into(),
            chip: "sm_90".into(),
            free: 78 * GIB,
        },
        ..none()
    };
    let findings = found("h100", &runtimes, Some(&needs(Target::Sm90a, 40 * GIB)));
    assert!(findings.iter().all(|f| f.grade == Grade::Good));
    check("h100", &findings);
}

#[test]
fn an_old_driver_and_closed_files_are_problems() {
    check(
        "nvidia-old-driver",
        &found("nvidia-old-driver", &none(), None),
    );
}

#[test]
fn a_processor_without_avx2_is_a_problem() {
    check("old-laptop", &found("old-laptop", &none(), None));
}

#[test]
fn a_bundle_is_measured_against_the_machine() {
    let grades = |name: &str, runtimes: &Runtimes, needs: Needs| -> Vec<(Grade, String)> {
        let findings = found(name, runtimes, Some(&needs));
        findings.into_iter().map(|f| (f.grade, f.what)).collect()
    };
    let worst = |all: &[(Grade, String)]| all.iter().map(|f| f.0).max().unwrap();
    // On the processor: 1 GiB is free.
    let cpu = |bytes| grades("old-laptop", &none(), needs(Target::X86_64V3, bytes));
    assert!(
        cpu(2 * GIB)
            .iter()
            .any(|(g, w)| *g == Grade::Problem && w.contains("takes 2.0 GiB"))
    );
    assert!(
        cpu(GIB / 2)
            .iter()
            .any(|(g, w)| *g == Grade::Advice && w.contains("2.0 GiB more"))
    );
    // The machine has the processor's features, so only memory counts.
    let cpu = |bytes| grades("strix-halo", &none(), needs(Target::X86_64V4, bytes));
    assert_eq!(worst(&cpu(50 * GIB)), Grade::Good);
    assert_eq!(worst(&cpu(120 * GIB)), Grade::Problem);
    // A GPU bundle is not about the processor's memory, and the other maker's GPUs are left alone.
    let nvidia = |runtimes: &Runtimes| grades("strix-halo", runtimes, needs(Target::Sm90a, GIB));
    assert!(
        nvidia(&none())
            .iter()
            .any(|(g, w)| *g == Grade::Problem && w.contains("kernel module"))
    );
    assert!(!nvidia(&none()).iter().any(|(_, w)| w.contains("MES")));
    let all = nvidia(&works("sm_80", 40 * GIB));
    assert!(
        all.iter()
            .any(|(g, w)| *g == Grade::Problem && w.contains("sm_90a, the GPU is sm_80"))
    );
}
