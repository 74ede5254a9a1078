//! Constants that sources and plans share: sizes of blocks, shared memory and work. The sources check them.

use bundle_format::plan::{KvDType, KvGroup};

/// The constants of attention.cuh, for a shape; the source checks them.
pub struct Attention {
    pub pairs: u32,
    /// Floats of a partial result.
    pub partial: u32,
    /// Blocks of decoding that a processor runs at a time.
    pub decode_ctas: u32,
    pub decode_threads: u32,
    pub decode_shared: u32,
    pub prefill_rows: u32,
    pub prefill_threads: u32,
    pub prefill_shared: u32,
}

impl Attention {
    pub fn of(kv: &KvGroup, heads: u32, lean: bool) -> Attention {
        let dim = kv.head_dim;
        let shared_by = heads / kv.kv_heads;
        let groups = shared_by.div_ceil(8);
        let partial = shared_by.div_ceil(groups) * (dim + 4);
        let tiles = if dim <= 128 { 2 } else { 1 };
        let rows = 16 * tiles * 4;
        let few = if lean || kv.dtype == KvDType::Q8Rows {
            96
        } else {
            128
        };
        let keys = if dim <= few && dim != 112 { 64 } else { 32 };
        let pieces = dim / 8;
        let stride = 16
            * if pieces.is_multiple_of(8) {
                pieces
            } else {
                pieces | 1
            };
        let (q, tile, out) = (rows * dim * 2, keys * stride, dim + 8);
        let tiles_of_kv = match kv.dtype {
            KvDType::Q8Rows => 2 * tile + 2 * keys / 16 * kv.dtype.head_bytes(dim) as u32,
            _ => 4 * tile,
        };
        Attention {
            pairs: kv.kv_heads * groups,
            partial,
            decode_ctas: if dim <= 128 { 2 } else { 1 },
            decode_threads: 256,
            decode_shared: (8 * partial + 4) * 4 + dim.div_ceil(32) * 512,
            prefill_rows: rows,
            prefill_threads: 128,
            prefill_shared: (q + tiles_of_kv).max(rows * out * 4) + 16,
        }
    }
}
