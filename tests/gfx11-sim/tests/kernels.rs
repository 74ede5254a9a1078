//! Whole kernels of clang, against the host's arithmetic.

mod common;

use common::{Arg, Gpu, Random, compile, pack};
use gfx11_sim::{Fault, FaultKind, Options, launch};
use half::f16;

#[test]
fn vector_add() {
    let gpu = Gpu::new(&compile(
        "KERNEL vadd(const float* a, const float* b, float* c, int n) {
           int i = bid() * bdim() + tid();
           if (i < n) c[i] = a[i] + b[i];
         }",
    ));
    let mut random = Random::new(1);
    let n = 1000;
    let (a, b) = (random.floats(n), random.floats(n));
    let (pa, pb, pc) = (
        gpu.upload(&a),
        gpu.upload(&b),
        gpu.memory.alloc(4 * n as u64),
    );
    let stats = gpu.run(
        "vadd",
        8,
        128,
        &[Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(pc), Arg::Int(n as i32)],
    );
    let c: Vec<f32> = gpu.download(pc, n);
    for i in 0..n {
        assert_eq!(c[i], a[i] + b[i], "element {i}");
    }
    assert_eq!((stats.workgroups, stats.waves), (8, 32));
    assert_eq!((stats.bytes_loaded, stats.bytes_stored), (8000, 4000));
}

fn sample() -> Gpu {
    Gpu::new(&compile(include_str!("kernels/sample.hip")))
}

fn close(ours: f32, exact: f64, tolerance: f64) -> bool {
    (f64::from(ours) - exact).abs() <= tolerance * exact.abs().max(1.0)
}

#[test]
fn reduction_over_lanes_and_waves() {
    let gpu = sample();
    let (rows, n) = (5, 1000);
    let x = Random::new(2).floats(rows * n);
    let (px, py) = (gpu.upload(&x), gpu.memory.alloc(4 * rows as u64));
    let args = [Arg::Ptr(px), Arg::Ptr(py), Arg::Int(n as i32)];
    let stats = gpu.run("row_sum", rows as u32, 256, &args);
    for (row, sum) in gpu.download::<f32>(py, rows).into_iter().enumerate() {
        let exact: f64 = x[row * n..][..n].iter().map(|&x| f64::from(x)).sum();
        assert!(close(sum, exact, 1e-5), "row {row}: {sum} {exact}");
    }
    assert_eq!(stats.classes.barriers, 5 * 8);
}

#[test]
fn softmax() {
    let gpu = sample();
    let (rows, n) = (3, 77);
    let x: Vec<f32> = Random::new(3)
        .floats(rows * n)
        .into_iter()
        .map(|x| 9.0 * x)
        .collect();
    let (px, py) = (gpu.upload(&x), gpu.memory.alloc(4 * (rows * n) as u64));
    gpu.run(
        "softmax",
        rows as u32,
        32,
        &[Arg::Ptr(px), Arg::Ptr(py), Arg::Int(n as i32)],
    );
    let y: Vec<f32> = gpu.download(py, rows * n);
    for row in 0..rows {
        let x: Vec<f64> = x[row * n..][..n].iter().map(|&x| f64::from(x)).collect();
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
        for i in 0..n {
            let exact = (x[i] - max).exp() / sum;
            assert!(close(y[row * n + i], exact, 1e-6), "row {row}, {i}");
        }
    }
}

#[test]
fn matrices_through_lds() {
    let gpu = sample();
    let (m, n, k) = (48, 32, 80);
    let mut random = Random::new(4);
    let mut halves = |count: usize| -> Vec<f16> {
        random
            .floats(count)
            .into_iter()
            .map(f16::from_f32)
            .collect()
    };
    let (a, b) = (halves(m * k), halves(n * k));
    let (pa, pb, pc) = (
        gpu.upload(&a),
        gpu.upload(&b),
        gpu.memory.alloc(4 * (m * n) as u64),
    );
    let args = pack(&[
        Arg::Ptr(pa),
        Arg::Ptr(pb),
        Arg::Ptr(pc),
        Arg::Int(n as i32),
        Arg::Int(k as i32),
    ]);
    let grid = [n as u32 / 16, m as u32 / 16, 1];
    let stats = launch(
        &gpu.memory,
        gpu.kernel("gemm"),
        grid,
        [32, 1, 1],
        0,
        &args,
        &Options::strict(),
    )
    .unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(stats.classes.wmma as usize, m / 16 * n / 16 * k / 16);
    let c: Vec<f32> = gpu.download(pc, m * n);
    for i in 0..m {
        for j in 0..n {
            let exact: f64 = (0..k)
                .map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l]))
                .sum();
            assert!(
                close(c[i * n + j], exact, 1e-5),
                "({i}, {j}): {} {exact}",
                c[i * n + j]
            );
        }
    }
}

#[test]
fn matrices_of_bytes() {
    let gpu = sample();
    let mut random = Random::new(5);
    let a: Vec<i8> = (0..256).map(|_| random.bits() as i8).collect();
    let b: Vec<u8> = (0..256).map(|_| random.bits() as u8).collect();
    let (pa, pb, pc) = (gpu.upload(&a), gpu.upload(&b), gpu.memory.alloc(1024));
    gpu.run(
        "gemm_i8",
        1,
        32,
        &[Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(pc)],
    );
    let c: Vec<i32> = gpu.download(pc, 256);
    for i in 0..16 {
        for j in 0..16 {
            let sum: i32 = (0..16)
                .map(|k| i32::from(a[16 * i + k]) * i32::from(b[16 * j + k]))
                .sum();
            // C holds v + 1 in register v: rows 2 v and 2 v + 1.
            assert_eq!(c[16 * i + j], sum + i as i32 / 2 + 1, "({i}, {j})");
        }
    }
}

#[test]
fn integer_dot_products() {
    let gpu = sample();
    let mut random = Random::new(6);
    let a: Vec<u32> = (0..64).map(|_| random.bits()).collect();
    let b: Vec<u32> = (0..64).map(|_| random.bits()).collect();
    let (pa, pb, po) = (gpu.upload(&a), gpu.upload(&b), gpu.memory.alloc(256));
    gpu.run("dots", 2, 32, &[Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(po)]);
    for (i, ours) in gpu.download::<i32>(po, 64).into_iter().enumerate() {
        let (x, y) = (a[i].to_le_bytes(), b[i].to_le_bytes());
        let signed: i32 = (0..4)
            .map(|k| i32::from(x[k] as i8) * i32::from(y[k] as i8))
            .sum();
        let mixed: i32 = (0..4)
            .map(|k| i32::from(x[k]) * i32::from(y[k] as i8))
            .sum();
        let fours: i32 = (0..8)
            .map(|k| ((a[i] << (28 - 4 * k)) as i32 >> 28) * (b[i] >> (4 * k) & 15) as i32)
            .sum();
        assert_eq!(ours, signed + 5 + 3 * mixed + 7 * fours, "lane {i}");
    }
}

#[test]
fn atomics_of_lds_and_of_memory() {
    let gpu = sample();
    let mut random = Random::new(7);
    let x: Vec<u32> = (0..5000).map(|_| random.bits()).collect();
    let (px, pb) = (gpu.upload(&x), gpu.upload(&[0u32; 16]));
    gpu.run(
        "counts",
        4,
        96,
        &[Arg::Ptr(px), Arg::Ptr(pb), Arg::Int(5000)],
    );
    let bins: Vec<u32> = gpu.download(pb, 16);
    for (bin, count) in bins.into_iter().enumerate() {
        assert_eq!(
            count as usize,
            x.iter().filter(|&&x| x as usize & 15 == bin).count(),
            "bin {bin}"
        );
    }
}

/// clang's divisions and square roots are correctly rounded: so must what executes them be, from the smallest denormal on.
#[test]
fn divisions_are_correctly_rounded() {
    let gpu = sample();
    let mut random = Random::new(8);
    let special = [
        0.0,
        1.0,
        -1.0,
        3.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-45,
        f32::INFINITY,
        f32::NAN,
        1e-38,
        7e37,
        -0.0,
    ];
    let mut pairs: Vec<(f32, f32)> = special
        .iter()
        .flat_map(|&a| special.map(|b| (a, b)))
        .collect();
    pairs.extend((0..4000).map(|_| (f32::from_bits(random.bits()), f32::from_bits(random.bits()))));
    let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    let n = pairs.len();
    let (pa, pb) = (gpu.upload(&a), gpu.upload(&b));
    let (pq, pr, pd) = (
        gpu.memory.alloc(4 * n as u64),
        gpu.memory.alloc(4 * n as u64),
        gpu.memory.alloc(8 * n as u64),
    );
    let args = [
        Arg::Ptr(pa),
        Arg::Ptr(pb),
        Arg::Ptr(pq),
        Arg::Ptr(pr),
        Arg::Ptr(pd),
        Arg::Int(n as i32),
    ];
    gpu.run("divisions", n.div_ceil(64) as u32, 64, &args);
    let (q, r, d): (Vec<f32>, Vec<f32>, Vec<f64>) = (
        gpu.download(pq, n),
        gpu.download(pr, n),
        gpu.download(pd, n),
    );
    for i in 0..n {
        let (a, b) = pairs[i];
        let same = |x: f32, y: f32| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
        assert!(
            same(q[i], a / b),
            "{a:e} / {b:e}: {:e}, expected {:e}",
            q[i],
            a / b
        );
        assert!(same(r[i], a.abs().sqrt()), "sqrt {a:e}: {:e}", r[i]);
        let exact = f64::from(a) / f64::from(b);
        assert!(
            d[i] == exact || d[i].is_nan() && exact.is_nan(),
            "f64 {a:e} / {b:e}: {:e}",
            d[i]
        );
    }
}

/// Every workgroup spins until all have arrived: none may keep the others from running.
#[test]
fn workgroups_wait_for_each_other() {
    let gpu = sample();
    let (arrived, out) = (gpu.upload(&[0u32]), gpu.memory.alloc(24 * 64 * 4));
    gpu.run("meet", 24, 64, &[Arg::Ptr(arrived), Arg::Ptr(out)]);
    assert!(
        gpu.download::<u32>(out, 24 * 64)
            .into_iter()
            .all(|n| n == 24)
    );
}

fn fault(gpu: &Gpu, name: &str, block: u32, args: &[Arg]) -> Box<Fault> {
    gpu.try_run(name, 1, block, args, &Options::default())
        .expect_err("the kernel is wrong")
}

#[test]
fn a_missing_barrier_is_a_race() {
    let gpu = sample();
    let (x, y) = (gpu.upload(&[1f32; 64]), gpu.memory.alloc(256));
    let args = [Arg::Ptr(x), Arg::Ptr(y)];
    let found = fault(&gpu, "no_barrier", 64, &args);
    // The first wave reads what the second has not written yet, or after: either order is a fault.
    let expected = matches!(
        found.kind,
        FaultKind::LdsRace { .. } | FaultKind::UnwrittenLds { .. }
    );
    assert!(expected, "{found}");
    let races = Options {
        check_unwritten_memory: false,
        ..Options::default()
    };
    let found = gpu
        .try_run("no_barrier", 1, 64, &args, &races)
        .expect_err("a race");
    assert!(matches!(found.kind, FaultKind::LdsRace { .. }), "{found}");
    gpu.run("reverse", 1, 64, &args);
}

#[test]
fn one_byte_beyond_an_allocation_is_a_fault() {
    let gpu = sample();
    let (x, y) = (gpu.upload(&[1f32; 64]), gpu.memory.alloc(255));
    let found = fault(&gpu, "reverse", 64, &[Arg::Ptr(x), Arg::Ptr(y)]);
    assert_eq!(
        found.kind,
        FaultKind::GlobalOutOfBounds {
            write: true,
            bytes: 4
        },
        "{found}"
    );
    assert_eq!(
        (found.lane, found.wave, found.address),
        (Some(31), 1, Some(y + 252))
    );
    assert_eq!(found.work_item, Some([63, 0, 0]));
    assert_eq!(
        found.nearest.as_ref().map(|n| (n.base, n.len)),
        Some((y, 255))
    );
    assert!(found.instruction.starts_with("global_store_b32"), "{found}");
}

#[test]
fn lds_out_of_range_and_unwritten_memory_are_faults() {
    let gpu = sample();
    let y = gpu.memory.alloc(256);
    let at = gpu.upload(&[64i32]);
    let found = fault(&gpu, "lds_at", 64, &[Arg::Ptr(at), Arg::Ptr(y)]);
    assert_eq!(
        found.kind,
        FaultKind::LdsOutOfRange {
            write: false,
            bytes: 4,
            lds: 256
        },
        "{found}"
    );
    let fresh = gpu.memory.alloc(256);
    let found = fault(&gpu, "reverse", 64, &[Arg::Ptr(fresh), Arg::Ptr(y)]);
    assert_eq!(
        found.kind,
        FaultKind::UnwrittenGlobal { bytes: 4 },
        "{found}"
    );
    let found = fault(&gpu, "reverse", 64, &[Arg::Ptr(0), Arg::Ptr(y)]);
    assert_eq!(
        found.kind,
        FaultKind::GlobalOutOfBounds {
            write: false,
            bytes: 4
        },
        "{found}"
    );
}

#[test]
fn unknown_instructions_and_wrong_launches_are_named() {
    let gpu = Gpu::new(&compile(
        "KERNEL odd(int* x) { asm volatile(\".long 0xbf8f0001\"); *x = 1; }
         KERNEL stop() { __builtin_trap(); }",
    ));
    let x = gpu.memory.alloc(4);
    let found = fault(&gpu, "odd", 1, &[Arg::Ptr(x)]);
    assert_eq!(
        (found.kind.clone(), &found.words[..]),
        (FaultKind::UnknownInstruction, &[0xbf8f_0001][..]),
        "{found}"
    );
    assert_eq!(found.function.as_ref().map(|f| f.0.as_str()), Some("odd"));
    let found = fault(&gpu, "odd", 1, &[]);
    assert!(
        matches!(&found.kind, FaultKind::BadLaunch(why) if why.contains("expected 8")),
        "{found}"
    );
    let found = fault(&gpu, "odd", 2000, &[Arg::Ptr(x)]);
    assert!(matches!(found.kind, FaultKind::BadLaunch(_)), "{found}");
    let found = fault(&gpu, "stop", 1, &[]);
    assert!(matches!(found.kind, FaultKind::Trap(_)), "{found}");
}
