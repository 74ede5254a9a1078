//! An attention at a level, and its inputs: three heads of one KV head.

use bundle_format::plan::{KV_BLOCK, KvDType};
use kernels::abi::{AttentionArgs, MicroFn, id};
use kernels::cpu::{self, Level};

use super::{Line, words};

/// Query heads.
const HEADS: usize = 3;

/// What is measured: a chunk of 64 tokens behind 448, and a lone token behind 2047; name, head size, position, tokens.
pub const ATTENTIONS: [(&str, usize, usize, usize); 4] = [
    ("prefill/64", 64, 448, 64),
    ("prefill/128", 128, 448, 64),
    ("decode/64", 64, 2047, 1),
    ("decode/128", 128, 2047, 1),
];

pub struct Attention {
    args: AttentionArgs,
    func: unsafe fn(&AttentionArgs),
    _buffers: (Vec<Line>, Vec<u32>, Vec<f32>, Vec<f32>),
}

impl Attention {
    pub fn new(
        level: Level,
        dtype: KvDType,
        head_dim: usize,
        position: usize,
        tokens: usize,
    ) -> Attention {
        let MicroFn::Attention(func) = id::attention(dtype)
            .and_then(|id| cpu::lookup_at(level, id))
            .expect("in the table")
            .func
        else {
            panic!("not an attention")
        };
        let blocks = (position + tokens).div_ceil(KV_BLOCK);
        let block = dtype.head_bytes(head_dim as u32) as usize;
        let pool = words(blocks * block);
        let table: Vec<u32> = (0..blocks as u32).collect();
        let q = vec![0.01f32; tokens * HEADS * head_dim];
        let mut out = vec![0.0f32; q.len()];
        let args = AttentionArgs {
            q: q.as_ptr(),
            q_stride: (HEADS * head_dim) as u64,
            out: out.as_mut_ptr(),
            out_stride: (HEADS * head_dim) as u64,
            keys: pool.as_ptr().cast(),
            values: pool.as_ptr().cast(),
            block_stride: block as u64,
            table: table.as_ptr(),
            position: position as u64,
            tokens: tokens as u64,
            head0: 0,
            heads: HEADS as u64,
            group_size: HEADS as u64,
            head_dim: head_dim as u64,
            window: u64::MAX,
            scale: 0.125,
        };
        Attention {
            args,
            func,
            _buffers: (pool, table, q, out),
        }
    }

    pub fn call(&self) {
        // SAFETY: `new` made buffers of the sizes in `args`.
        unsafe { (self.func)(&self.args) }
    }

    /// Multiplications of a call.
    pub fn macs(&self) -> f64 {
        let end = self.args.position + self.args.tokens;
        let pairs: u64 = (self.args.position + 1..=end).sum();
        (pairs * HEADS as u64 * self.args.head_dim * 2) as f64
    }
}
