//! AMD's GPUs, Strix Halo above all: the kernel and its driver, the firmware of its scheduler, how much memory it may use.
//!
//! What is known to fail there is from the reports that fixed it: ROCm issues 5590, 5724 and 5991 (scheduler firmware 0x83,
//! CWSR), and the tested configurations of the amd-strix-halo-toolboxes project (kernels before 6.18.4).

use super::version::parse;
use super::{Finding, Needs, Part, Runtime, Tree, gib, room};

const PART: Part = Part::Amd;

/// AMD, as PCI numbers makers.
const VENDOR: u64 = 0x1002;

/// Strix Halo's GPU, as the compute driver writes gfx1151.
const STRIX_HALO: u64 = 110_501;

/// The first kernel that knows the chip, and the first without known failures of it.
const KNOWS: [u32; 3] = [6, 11, 0];
const STABLE: [u32; 3] = [6, 18, 4];

/// Firmware of the scheduler (MES) under which kernels fault or hang.
const BROKEN_MES: u64 = 0x83;

/// Share of the memory that the GPU should be able to use.
const SHARE: f64 = 0.7;

/// Looks where there is a GPU, or a bundle wants one.
pub fn examine(tree: &Tree, hip: &Runtime, needs: Option<&Needs>) -> Vec<Finding> {
    let card = card(tree);
    if card.is_none() && needs.is_none() {
        return vec![];
    }
    let Some(card) = card else {
        return vec![PART.problem(
            "the kernel's driver amdgpu sees no GPU",
            "the bundle is for one of AMD's",
            "boot without nomodeset; see dmesg for amdgpu; in a container, give it /dev/kfd and /dev/dri",
        )];
    };
    let chip = compute_chip(tree);
    let mut findings = vec![compute(tree, chip)];
    if chip == Some(STRIX_HALO) {
        let kernel = tree.text("/proc/sys/kernel/osrelease").unwrap_or_default();
        findings.extend(kernel_version(&kernel));
        findings.extend(scheduler(tree, &card));
        findings.extend(save_restore(tree, &kernel));
        findings.extend(io_mmu(tree));
        findings.extend(mappable(tree, &card));
    }
    match hip {
        Runtime::Fails(why) => findings.push(PART.problem(
            "HIP doesn't work",
            why.clone(),
            "mend the findings above; in a container, give it /dev/kfd and /dev/dri",
        )),
        Runtime::Works {
            version,
            gpu,
            chip,
            free,
        } => {
            findings.push(PART.good(format!("{version}, {gpu}")));
            if let Some(needs) = needs {
                if chip != needs.target.name() {
                    findings.push(PART.problem(
                        format!("the bundle is for {}, the GPU is {chip}", needs.target),
                        "kernels of one chip don't run on another",
                        format!("fastc compile MODEL.gguf --target {chip}, where fastc has that"),
                    ));
                }
                let more = "give the GPU a larger share (see the limits of mapped memory above)";
                findings.push(room(PART, *free, needs, more));
            }
        }
    }
    findings
}

/// The first GPU of AMD's: `/sys/class/drm/card1/device`.
fn card(tree: &Tree) -> Option<String> {
    let cards = tree.names("/sys/class/drm").into_iter();
    let mut devices = cards
        .filter(|name| {
            name.strip_prefix("card")
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|name| format!("/sys/class/drm/{name}/device"));
    devices.find(|device| tree.number(&format!("{device}/vendor")) == Some(VENDOR))
}

/// What the compute driver says the GPU is: major, minor and stepping in two digits each. Processors have 0.
fn compute_chip(tree: &Tree) -> Option<u64> {
    let nodes = "/sys/class/kfd/kfd/topology/nodes";
    let chips = tree.names(nodes).into_iter().filter_map(|node| {
        let text = tree.text(&format!("{nodes}/{node}/properties"))?;
        let line = text.lines().find(|l| l.starts_with("gfx_target_version"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    });
    chips.into_iter().find(|&chip| chip != 0)
}

fn compute(tree: &Tree, chip: Option<u64>) -> Finding {
    let Some(chip) = chip else {
        return PART.problem(
            "the kernel's compute driver (amdkfd) sees no GPU",
            "HIP reaches the GPU through it",
            "use a kernel with CONFIG_HSA_AMD and the chip's firmware (linux-firmware); see dmesg for kfd",
        );
    };
    let name = format!("gfx{}{}{:x}", chip / 10_000, chip / 100 % 100, chip % 100);
    if !tree.exists("/dev/kfd") {
        return PART.problem(
            format!("{name}, but no /dev/kfd"),
            "HIP opens it",
            "in a container, give it /dev/kfd and /dev/dri; otherwise load amdgpu",
        );
    }
    if !tree.opens("/dev/kfd") {
        return PART.problem(
            format!("{name}, but /dev/kfd is not for this user"),
            "HIP opens it",
            "usermod -aG render,video \"$USER\", then log in again",
        );
    }
    PART.good(format!("{name}, /dev/kfd opens"))
}

fn kernel_version(release: &str) -> Option<Finding> {
    let version = parse(release)?;
    let what = format!("Linux {release}");
    Some(if version < KNOWS {
        PART.problem(
            what,
            "kernels before 6.11 don't know this GPU",
            "install Linux 6.18.4 or later",
        )
    } else if version < STABLE {
        PART.problem(
            what,
            "kernels before 6.18.4 are known to fault and hang on gfx1151 under compute load",
            "install Linux 6.18.4 or later; until then compile with --stability strict",
        )
    } else {
        PART.good(format!("{what}: no known failures of gfx1151"))
    })
}

/// The firmware of the scheduler, which the kernel tells everybody in one place and root in another.
fn scheduler(tree: &Tree, card: &str) -> Option<Finding> {
    let public = tree.number(&format!("{card}/fw_version/mes_fw_version"));
    let found = public.or_else(|| {
        let dri = "/sys/kernel/debug/dri";
        let texts = tree.names(dri).into_iter();
        let mut texts = texts.filter_map(|n| tree.text(&format!("{dri}/{n}/amdgpu_firmware_info")));
        let text = texts.find(|t| t.contains("MES feature version"))?;
        let line = text
            .lines()
            .find(|l| l.trim_start().starts_with("MES feature version"))?;
        let hex = line.rsplit("0x").next()?;
        u64::from_str_radix(hex.trim(), 16).ok()
    });
    let Some(version) = found else {
        return Some(PART.advice(
            "the version of the scheduler's firmware (MES) can't be read",
            format!("version {BROKEN_MES:#x} faults and hangs"),
            "as root: grep MES /sys/kernel/debug/dri/*/amdgpu_firmware_info",
        ));
    };
    // The low bits are the version, as the kernel masks them.
    let version = version & 0xfff;
    Some(match version == BROKEN_MES {
        true => PART.problem(
            format!("scheduler firmware (MES) {version:#x}"),
            "this version, of linux-firmware 20251125, was withdrawn: it ends in memory access faults and hangs",
            "install linux-firmware 20260110 or later, or 20251111; remove amdgpu-dkms-firmware; make the initramfs anew; restart",
        ),
        false => PART.good(format!("scheduler firmware (MES) {version:#x}")),
    })
}

/// Saving and restoring waves, which the driver does to take the GPU from one program for another.
fn save_restore(tree: &Tree, release: &str) -> Option<Finding> {
    let enabled = tree.number("/sys/module/amdgpu/parameters/cwsr_enable")?;
    let old = parse(release).is_some_and(|version| version < [6, 18, 0]);
    Some(match enabled != 0 && old {
        true => PART.problem(
            "amdgpu.cwsr_enable is 1",
            "before Linux 6.18 the driver reserves too little memory for saving the waves of this GPU, and the scheduler hangs",
            "boot with amdgpu.cwsr_enable=0, or install Linux 6.18.4 or later",
        ),
        false => PART.good(format!("amdgpu.cwsr_enable is {enabled}")),
    })
}

fn io_mmu(tree: &Tree) -> Option<Finding> {
    let line = tree.text("/proc/cmdline").unwrap_or_default();
    let has = |word: &str| line.split_whitespace().any(|w| w == word);
    let translates = !tree.names("/sys/class/iommu").is_empty();
    let passes = has("iommu=pt") || has("iommu.passthrough=1");
    Some(if !translates {
        PART.good("the IOMMU is off")
    } else if passes {
        PART.good("the IOMMU passes addresses through")
    } else {
        PART.advice(
            "the IOMMU translates each address of the GPU",
            "reads of weights take longer, up to a tenth",
            "boot with iommu=pt (amd_iommu=off where no virtual machine needs it)",
        )
    })
}

/// How much of the memory the GPU may use: what the firmware set aside for it, and what the driver may map beside that.
fn mappable(tree: &Tree, card: &str) -> Vec<Finding> {
    let aside = tree
        .number(&format!("{card}/mem_info_vram_total"))
        .unwrap_or(0);
    let Some(mapped) = tree.number(&format!("{card}/mem_info_gtt_total")) else {
        return vec![];
    };
    let memory = tree.text("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let total = kib.unwrap_or(0) << 10;
    // Pages of 4 KiB that all drivers of this kind together may take.
    let pages = tree.number("/sys/module/ttm/parameters/pages_limit");
    let limit = pages.map_or(mapped, |pages| mapped.min(pages.saturating_mul(4096)));
    let what = format!(
        "{} set aside for the GPU, {} more can be mapped (GTT {}{})",
        gib(aside),
        gib(limit),
        gib(mapped),
        pages.map_or(String::new(), |pages| format!(
            ", ttm.pages_limit {}",
            gib(pages.saturating_mul(4096))
        ))
    );
    let all = aside + total;
    // What is left is for the system.
    let goal = (SHARE * all as f64) as u64;
    let mut findings = vec![];
    if aside.max(limit) < goal {
        let bytes = all.saturating_sub(8 << 30).max(goal);
        findings.push(PART.advice(
            what,
            format!(
                "of {} in this machine, models larger than that don't fit",
                gib(all)
            ),
            format!(
                "boot with ttm.pages_limit={} amdgpu.gttsize={}, and set the firmware's share to its least",
                bytes / 4096,
                bytes >> 20
            ),
        ));
    } else {
        findings.push(PART.good(what));
    }
    findings
}
