//! Attention over paged pools whose unseen parts hold NaN, and whose unseen blocks are not in the table.

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};
use bundle_format::region::KvPart;
use half::f16;
use kernels::abi::{AttentionArgs, MicroFn};
use kernels::cpu::MicroKernel;
use kernels::reference::kv_q8_0::{self, Place};
use kernels::reference::{self, Attention, KvSource};

use crate::data::{Random, bits};

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: KvDType,
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    position: usize,
    tokens: usize,
    window: Option<usize>,
}

pub fn check(kernel: &MicroKernel, dtype: KvDType) {
    let case = |head_dim, kv_heads, group, position, tokens, window| Case {
        dtype,
        head_dim,
        kv_heads,
        group,
        position,
        tokens,
        window,
    };
    // Head sizes, with all group sizes.
    let head_dims = [32, 40, 64, 80, 96, 128, 256];
    let block = dtype.block() as usize;
    for head_dim in head_dims.into_iter().filter(|dim| dim % block == 0) {
        for (kv_heads, group) in [(2, 1), (1, 3), (2, 4), (1, 8)] {
            check_case(kernel, case(head_dim, kv_heads, group, 61, 5, None));
        }
    }
    // Positions around the borders of blocks and tiles.
    for position in [
        0, 1, 7, 14, 15, 16, 31, 47, 48, 62, 63, 64, 65, 127, 128, 200,
    ] {
        for tokens in [1, 2, 17] {
            check_case(kernel, case(32, 1, 3, position, tokens, None));
        }
    }
    check_case(kernel, case(32, 2, 3, 0, 70, None));
    // Windows, around the same borders.
    for window in [1, 2, 15, 16, 17, 50, 63, 64, 65, 100] {
        for position in [0, 40, 63, 64, 130, 191] {
            for tokens in [1, 20] {
                check_case(kernel, case(32, 1, 3, position, tokens, Some(window)));
            }
        }
    }
    check_case(kernel, case(32, 1, 1, 3, 90, Some(9)));
    // Counts of queries around those that are taken together.
    for tokens in [3, 4, 5, 6, 7, 8, 11, 12, 13, 18, 23, 24, 25] {
        check_case(kernel, case(32, 1, 1, 57, tokens, None));
        check_case(kernel, case(64, 1, 1, 120, tokens, Some(67)));
    }
    // Calls as a prefill has them.
    for (head_dim, group, window) in [(64, 8, None), (64, 3, None), (256, 4, Some(70))] {
        for position in [0, 48, 144] {
            check_case(kernel, case(head_dim, 1, group, position, 16, window));
        }
    }
    if dtype == KvDType::F16 {
        for head_dim in [8, 16, 24, 72, 136, 248] {
            for (group, window) in [(1, None), (3, Some(20)), (8, None)] {
                check_case(kernel, case(head_dim, 1, group, 50, 16, window));
            }
        }
        for (group, tokens) in [(1, 1), (2, 1), (3, 1), (5, 1), (1, 20), (8, 16)] {
            check_nan(kernel, case(64, 1, group, 150, tokens, None));
        }
    }
}

/// Keys that are NaN, whose positions then count nothing, wherever they are in a vector.
fn check_nan(kernel: &MicroKernel, case: Case) {
    for first in 0..9 {
        let mut data = Data::new(case);
        let width = case.kv_heads * case.head_dim;
        for position in (first..case.position + case.tokens).step_by(9) {
            data.keys[position * width] = f32::NAN;
        }
        let heads = case.kv_heads * case.group;
        let found = data.run(kernel, 0, case.tokens, 0, heads);
        assert!(found.iter().all(|x| x.is_finite()), "{case:?}");
        assert_eq!(
            bits(&found),
            bits(&data.run(crate::scalar(kernel), 0, case.tokens, 0, heads)),
            "{} ({}) {case:?}: NaN from {first} on: not as the scalar kernel",
            kernel.name,
            kernel.level.name()
        );
    }
}

fn check_case(kernel: &MicroKernel, case: Case) {
    let what = format!("{} ({}) {case:?}", kernel.name, kernel.level.name());
    let data = Data::new(case);
    let heads = case.kv_heads * case.group;
    let found = data.run(kernel, 0, case.tokens, 0, heads);

    let op = Attention {
        heads,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        window: case.window,
        scale: SCALE,
    };
    let width = heads * case.head_dim;
    let mut expected = vec![0.0; width];
    for t in 0..case.tokens {
        let q = &data.q[t * width..][..width];
        reference::attention(&op, q, case.position + t, &data, &mut expected);
        // Queries and weights of 15 bits add an error of their own.
        let tolerance = match case.dtype {
            KvDType::F16 => 1e-5,
            KvDType::Q8_0 => 3e-4,
            other => panic!("{other:?} is for GPUs"),
        };
        for (i, (found, expected)) in found[t * width..].iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= tolerance,
                "{what}: token {t} column {i}: {found}, expected {expected}"
            );
        }
    }

    let scalar = data.run(crate::scalar(kernel), 0, case.tokens, 0, heads);
    assert_eq!(
        bits(&found),
        bits(&scalar),
        "{what}: not as the scalar kernel"
    );

    for t in 0..case.tokens {
        let alone = data.run(kernel, t, 1, 0, heads);
        assert_eq!(
            bits(&found[t * width..][..width]),
            bits(&alone),
            "{what}: token {t} differs when alone"
        );
    }
    // Some heads only, across the border of KV heads where there is one.
    let (head0, count) = (heads / 3, (heads - heads / 3).min(2));
    let some = data.run(kernel, 0, case.tokens, head0, count);
    for t in 0..case.tokens {
        let from = t * width + head0 * case.head_dim;
        assert_eq!(
            bits(&found[from..][..count * case.head_dim]),
            bits(&some[t * count * case.head_dim..][..count * case.head_dim]),
            "{what}: heads {head0}+{count} differ when alone"
        );
    }
}

const SCALE: f32 = 0.35;

struct Data {
    case: Case,
    /// `[tokens][heads * head_dim]`
    q: Vec<f32>,
    /// `[position][kv_head * head_dim]`, values that the pool's type holds.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Data {
    fn new(case: Case) -> Data {
        let mut random = Random((case.head_dim * 7 + case.position * 3 + case.tokens) as u64);
        let width = case.kv_heads * case.head_dim;
        let end = case.position + case.tokens;
        let mut stored = |factor: f32| -> Vec<f32> {
            let x: Vec<f32> = random.vec(end * width).iter().map(|x| x * factor).collect();
            match case.dtype {
                KvDType::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
                KvDType::Q8_0 => {
                    let blocks = x.as_chunks::<Q8_BLOCK>().0.iter();
                    let stored = |x| {
                        let (quants, scale) = kv_q8_0::quantise(x);
                        quants.map(|quant| quant as f32 * scale.to_f32())
                    };
                    blocks.flat_map(stored).collect()
                }
                other => panic!("{other:?} is for GPUs"),
            }
        };
        let (keys, values) = (stored(2.0), stored(1.0));
        Data {
            case,
            q: random.vec(case.tokens * width * case.group),
            keys,
            values,
        }
    }

    /// Tokens `first .. first + tokens` and some heads, with pools that hold only what these tokens see.
    fn run(
        &self,
        kernel: &MicroKernel,
        first: usize,
        tokens: usize,
        head0: usize,
        heads: usize,
    ) -> Vec<f32> {
        let MicroFn::Attention(func) = kernel.func else {
            panic!("{} is no attention", kernel.name)
        };
        let case = self.case;
        let width = case.kv_heads * case.group * case.head_dim;
        let position = case.position + first;
        let seen_from = match case.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        let pools = Pools::new(self, seen_from, position + tokens);
        let stride = heads * case.head_dim;
        let mut out = vec![f32::NAN; tokens * stride];
        let args = AttentionArgs {
            q: self.q[first * width..].as_ptr(),
            q_stride: width as u64,
            out: out.as_mut_ptr(),
            out_stride: stride as u64,
            keys: pools.keys.as_ptr(),
            values: pools.values.as_ptr(),
            block_stride: pools.block as u64,
            table: pools.table.as_ptr(),
            position: position as u64,
            tokens: tokens as u64,
            head0: head0 as u64,
            heads: heads as u64,
            group_size: case.group as u64,
            head_dim: case.head_dim as u64,
            window: case.window.map_or(u64::MAX, |w| w as u64),
            scale: SCALE,
        };
        // SAFETY: buffers of these sizes, the table names blocks of what is seen, and the level is available.
        unsafe { func(&args) };
        out
    }
}

impl KvSource for Data {
    fn key(&self, position: usize, kv_head: usize, out: &mut [f32]) {
        let at = (position * self.case.kv_heads + kv_head) * out.len();
        out.copy_from_slice(&self.keys[at..at + out.len()]);
    }

    fn value(&self, position: usize, kv_head: usize, out: &mut [f32]) {
        let at = (position * self.case.kv_heads + kv_head) * out.len();
        out.copy_from_slice(&self.values[at..at + out.len()]);
    }
}

/// Paged pools. Everything but the given positions is NaN; blocks lie in another order than positions.
struct Pools {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Bytes of a block.
    block: usize,
    table: Vec<u32>,
}

impl Pools {
    fn new(data: &Data, from: usize, to: usize) -> Pools {
        let Case {
            dtype,
            head_dim,
            kv_heads,
            ..
        } = data.case;
        let blocks = to.div_ceil(KV_BLOCK);
        let block = kv_heads * dtype.head_bytes(head_dim as u32) as usize;
        // Slot of block b: a permutation of a pool with room to spare. Blocks of no seen position are not in the pool.
        let slot = |b: usize| (blocks - 1 - b) * 2 + 1;
        let table = (0..blocks)
            .map(|b| match (b + 1) * KV_BLOCK <= from {
                true => u32::MAX,
                false => slot(b) as u32,
            })
            .collect();
        // An f16 of ones alone is NaN.
        let mut pools = Pools {
            keys: vec![0xff; block * blocks * 2],
            values: vec![0xff; block * blocks * 2],
            block,
            table,
        };
        for position in from..to {
            let base = slot(position / KV_BLOCK) * block;
            for kv_head in 0..kv_heads {
                let at = (position * kv_heads + kv_head) * head_dim;
                let place = |part| Place {
                    part,
                    head_dim,
                    kv_head,
                    position: position % KV_BLOCK,
                    dim: 0,
                };
                let key = &data.keys[at..at + head_dim];
                store(
                    dtype,
                    place(KvPart::Key),
                    key,
                    &mut pools.keys[base..][..block],
                );
                let value = &data.values[at..at + head_dim];
                store(
                    dtype,
                    place(KvPart::Value),
                    value,
                    &mut pools.values[base..][..block],
                );
            }
        }
        pools
    }
}

/// Stores a head's elements of a position to a block.
fn store(dtype: KvDType, first: Place, x: &[f32], block: &mut [u8]) {
    match dtype {
        KvDType::F16 => {
            let Place {
                head_dim,
                kv_head,
                position,
                ..
            } = first;
            for (d, x) in x.iter().enumerate() {
                let at = match first.part {
                    KvPart::Key => (kv_head * head_dim + d) * KV_BLOCK + position,
                    KvPart::Value => (kv_head * KV_BLOCK + position) * head_dim + d,
                };
                block[2 * at..][..2].copy_from_slice(&f16::from_f32(*x).to_le_bytes());
            }
        }
        // Quantising what was stored before gives the same: to within a rounding of its scale, which is f16.
        KvDType::Q8_0 => {
            for (b, x) in x.as_chunks::<Q8_BLOCK>().0.iter().enumerate() {
                let dim = b * Q8_BLOCK;
                Place { dim, ..first }.write(x, block);
            }
        }
        other => panic!("{other:?} is for GPUs"),
    }
}
