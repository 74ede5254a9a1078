//! NVIDIA's GPUs: the kernel module, the device files, the driver's library.

use super::version::parse;
use super::{Finding, Needs, Part, Runtime, Tree, room};

const PART: Part = Part::Nvidia;

/// The first driver for CUDA 13, which bundles' kernels are made with (CUDA 13.0 release notes).
const DRIVER: u32 = 580;

/// Looks where there is a GPU, or a bundle wants one.
pub fn examine(tree: &Tree, cuda: &Runtime, needs: Option<&Needs>) -> Vec<Finding> {
    let module = tree.text("/proc/driver/nvidia/version");
    if module.is_none() && needs.is_none() {
        return vec![];
    }
    let mut findings = vec![kernel_module(module.as_deref())];
    if module.is_some() {
        findings.extend(files(tree));
    }
    match cuda {
        Runtime::Fails(why) => findings.push(PART.problem(
            "CUDA doesn't work",
            why.clone(),
            "mend the findings above; in a container, start it with --gpus all",
        )),
        Runtime::Works {
            version,
            gpu,
            chip,
            free,
        } => {
            findings.push(PART.good(format!("{version}, {gpu}")));
            if let Some(needs) = needs {
                findings.extend(chips(chip, needs));
                findings.push(room(PART, *free, needs, "use a GPU with more"));
            }
        }
    }
    findings
}

fn kernel_module(text: Option<&str>) -> Finding {
    let Some(text) = text else {
        return PART.problem(
            "NVIDIA's kernel module isn't loaded",
            "without it there is no GPU to run on",
            "install NVIDIA's driver 580 or later, then restart",
        );
    };
    // NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 …
    let version = text
        .split_whitespace()
        .find(|word| word.contains('.') && parse(word).is_some());
    let number = version.and_then(parse);
    let name = format!(
        "NVIDIA's driver {}",
        version.unwrap_or("of unknown version")
    );
    match number {
        Some([major, ..]) if major < DRIVER => PART.problem(
            name,
            format!("bundles' kernels are for CUDA 13, which comes with driver {DRIVER}"),
            format!("install driver {DRIVER} or later"),
        ),
        Some(_) => PART.good(name),
        None => PART.advice(
            name,
            format!("driver {DRIVER} or later is needed"),
            "see what nvidia-smi says",
        ),
    }
}

fn files(tree: &Tree) -> Vec<Finding> {
    let names = ["/dev/nvidiactl", "/dev/nvidia-uvm"];
    let gpus = tree.names("/dev").into_iter().filter(|name| {
        name.strip_prefix("nvidia")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    let all = names.map(String::from).into_iter();
    let all = all.chain(gpus.map(|name| format!("/dev/{name}")));
    all.filter(|path| !tree.opens(path))
        .map(|path| {
            let (what, remedy) = match tree.exists(&path) {
                true => (
                    format!("{path} is not for this user"),
                    format!("chmod a+rw {path}, or NVreg_DeviceFileMode in the module's options"),
                ),
                false => (
                    format!("{path} is missing"),
                    "nvidia-modprobe -u -c 0; in a container, start it with --gpus all".to_string(),
                ),
            };
            PART.problem(what, "the driver's library opens it", remedy)
        })
        .collect()
}

fn chips(chip: &str, needs: &Needs) -> Option<Finding> {
    let target = needs.target.name();
    // Whether a bundle for one chip runs on another of its generation, opening it tells.
    let generation = |name: &str| -> Option<u32> {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        Some(digits.parse::<u32>().ok()? / 10)
    };
    (generation(chip) != generation(target)).then(|| {
        PART.problem(
            format!("the bundle is for {target}, the GPU is {chip}"),
            "kernels of one generation don't run on another",
            format!("fastc compile MODEL.gguf --target {chip}"),
        )
    })
}
