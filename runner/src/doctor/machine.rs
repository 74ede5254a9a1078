//! The kernel, the processor, and memory.

use bundle_format::target::Target;

use super::{Finding, Needs, Part, Tree, gib};

const PART: Part = Part::Machine;

pub fn examine(tree: &Tree, needs: Option<&Needs>) -> Vec<Finding> {
    let mut findings = vec![kernel(tree), processor(tree, needs)];
    let on_cpu = needs.is_none_or(|n| !n.target.is_gpu());
    findings.extend(memory(tree, needs.filter(|_| on_cpu)));
    if on_cpu {
        findings.extend(quota(tree));
        findings.extend(governor(tree));
    }
    findings
}

fn kernel(tree: &Tree) -> Finding {
    match tree.text("/proc/sys/kernel/osrelease") {
        Some(release) => PART.good(format!("Linux {release}")),
        None => PART.advice(
            "a kernel without /proc/sys/kernel/osrelease",
            "what depends on its version can't be told",
            "mount /proc",
        ),
    }
}

/// Fields of /proc/cpuinfo of the first processor.
fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut found = lines.filter(|(key, _)| key.trim() == name);
    found.next().map(|(_, value)| value.trim().to_string())
}

fn processor(tree: &Tree, needs: Option<&Needs>) -> Finding {
    let cpuinfo = tree.text("/proc/cpuinfo").unwrap_or_default();
    let name = field(&cpuinfo, "model name").unwrap_or("an unnamed processor".into());
    let flags = field(&cpuinfo, "flags").unwrap_or_default();
    let has = |feature: &str| {
        // The kernel writes some names otherwise.
        let name = match feature {
            "avx512vnni" => "avx512_vnni",
            "avxvnni" => "avx_vnni",
            "amx-int8" => "amx_int8",
            "amx-tile" => "amx_tile",
            other => other,
        };
        flags.split_whitespace().any(|flag| flag == name)
    };
    let threads = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let required = match needs {
        Some(needs) => needs.target.required_features(),
        None => Target::X86_64V3.required_features(),
    };
    let missing: Vec<&str> = required.iter().copied().filter(|f| !has(f)).collect();
    if !missing.is_empty() {
        let target = needs.map_or(Target::X86_64V3, |n| n.target);
        return PART.problem(
            format!("{name} lacks {}", missing.join(", ")),
            format!("code for {target} uses them"),
            match target {
                Target::X86_64V4 => {
                    "compile the model for --target x86-64-v3, which runs as fast where the processor allows"
                }
                _ => "run on a processor with AVX2 (Intel from 2013 on, AMD from 2015 on), or on a GPU",
            },
        );
    }
    let level = if has("amx-int8") {
        "AMX, AVX-512 VNNI"
    } else if has("avx512vnni") && has("avx512bw") && has("avx512vl") {
        "AVX-512 VNNI"
    } else if has("avxvnni") {
        "AVX2, AVX-VNNI"
    } else {
        "AVX2"
    };
    PART.good(format!("{name}, {threads} threads, {level}"))
}

/// A number of /proc/meminfo, in bytes.
fn meminfo(tree: &Tree, name: &str) -> Option<u64> {
    let text = tree.text("/proc/meminfo")?;
    let line = text
        .lines()
        .find(|l| l.split(':').next().is_some_and(|n| n.trim() == name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn memory(tree: &Tree, needs: Option<&Needs>) -> Vec<Finding> {
    let (Some(total), Some(available)) = (meminfo(tree, "MemTotal"), meminfo(tree, "MemAvailable"))
    else {
        return vec![];
    };
    // A container may have less.
    let limit = tree.number("/sys/fs/cgroup/memory.max");
    let used = tree.number("/sys/fs/cgroup/memory.current");
    let available = match limit {
        Some(limit) => available.min(limit.saturating_sub(used.unwrap_or(0))),
        None => available,
    };
    let what = format!("{} of {} memory available", gib(available), gib(total));
    let Some(needs) = needs else {
        return vec![PART.good(what)];
    };
    if available < needs.bytes {
        return vec![PART.problem(
            format!("{what}; the bundle takes {}", gib(needs.bytes)),
            "weights that don't fit are read from the disk again for each token",
            "end other programs, or take a smaller model or a finer quantisation",
        )];
    }
    let rest = available - needs.bytes;
    match rest < needs.sequence_bytes {
        true => vec![PART.advice(
            format!(
                "{what}; the bundle takes {}, and one sequence of its full context {} more",
                gib(needs.bytes),
                gib(needs.sequence_bytes)
            ),
            "long sequences end early, with the reason `length`",
            "compile with a smaller --ctx or --kv q8_0",
        )],
        false => vec![PART.good(format!("{what}; the bundle takes {}", gib(needs.bytes)))],
    }
}

/// What a container's share of the processors is.
fn quota(tree: &Tree) -> Option<Finding> {
    let text = tree.text("/sys/fs/cgroup/cpu.max")?;
    let (quota, period) = text.split_once(' ')?;
    let quota: f64 = quota.parse().ok()?;
    let period: f64 = period.parse().ok().filter(|&p| p > 0.0)?;
    let cpuinfo = tree.text("/proc/cpuinfo").unwrap_or_default();
    let threads = cpuinfo.lines().filter(|l| l.starts_with("processor"));
    let (threads, share) = (threads.count() as f64, quota / period);
    (share < threads).then(|| {
        PART.advice(
            format!("this container may use {share:.1} of {threads} processors"),
            "threads that wait for one another are stopped in turns",
            format!("give --threads {}", share.floor().max(1.0)),
        )
    })
}

fn governor(tree: &Tree) -> Option<Finding> {
    let governor = tree.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    let driver = tree
        .text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver")
        .unwrap_or_default();
    // These drivers choose by load under that name, too.
    let by_load = ["intel_pstate", "amd-pstate-epp"].contains(&driver.as_str());
    (governor == "powersave" && !by_load).then(|| {
        PART.advice(
            "the frequency governor is powersave",
            "processors stay at their lowest frequency",
            "cpupower frequency-set -g performance",
        )
    })
}
