//! `Op::Attention`: plain softmax over all cached positions that a token sees.

/// Where keys and values of one sequence and layer come from: f32 of the oracle, or the f16 of a real pool.
pub trait KvSource {
    /// The key of a position and KV head: `out.len()` is the head size.
    fn key(&self, position: usize, kv_head: usize, out: &mut [f32]);
    /// The value of a position and KV head.
    fn value(&self, position: usize, kv_head: usize, out: &mut [f32]);
}

/// Sizes and factors of an attention op.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions that a query sees, itself included; none: all.
    pub window: Option<usize>,
    pub scale: f32,
}

/// Attention of one token at `position`. `q` and `out` are `[heads * head_dim]`; query head h reads KV head
/// `h / (heads / kv_heads)`.
///
/// # Panics
/// Where a length disagrees with the op.
pub fn attention(op: &Attention, q: &[f32], position: usize, kv: &impl KvSource, out: &mut [f32]) {
    let dim = op.head_dim;
    assert_eq!(q.len(), op.heads * dim, "q is [heads * head_dim]");
    assert_eq!(out.len(), op.heads * dim, "out is [heads * head_dim]");
    let first = match op.window {
        Some(window) => (position + 1).saturating_sub(window),
        None => 0,
    };

    let mut row = vec![0.0; dim];
    let mut scores = vec![0.0f32; position + 1 - first];
    let group = op.heads / op.kv_heads;
    for (head, (q, out)) in q
        .chunks_exact(dim)
        .zip(out.chunks_exact_mut(dim))
        .enumerate()
    {
        let kv_head = head / group;
        for (i, score) in scores.iter_mut().enumerate() {
            kv.key(first + i, kv_head, &mut row);
            *score = op.scale * q.iter().zip(&row).map(|(q, k)| q * k).sum::<f32>();
        }
        softmax(&mut scores);
        out.fill(0.0);
        for (i, p) in scores.iter().enumerate() {
            kv.value(first + i, kv_head, &mut row);
            for (out, v) in out.iter_mut().zip(&row) {
                *out += p * v;
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for s in scores.iter_mut() {
        *s = (*s - max).exp();
        sum += f64::from(*s);
    }
    for s in scores {
        *s = (f64::from(*s) / sum) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys are all alike, so that the weights are equal; values tell position and head.
    struct Flat;

    impl KvSource for Flat {
        fn key(&self, _: usize, _: usize, out: &mut [f32]) {
            out.fill(1.0);
        }
        fn value(&self, position: usize, kv_head: usize, out: &mut [f32]) {
            out.fill(position as f32 + 100.0 * kv_head as f32);
        }
    }

    #[test]
    fn equal_scores_average_the_values_seen() {
        let mut op = Attention {
            heads: 4,
            kv_heads: 2,
            head_dim: 2,
            window: None,
            scale: 0.5,
        };
        let mut out = [f32::NAN; 8];
        attention(&op, &[1.0; 8], 4, &Flat, &mut out);
        assert_eq!(out, [2.0, 2.0, 2.0, 2.0, 102.0, 102.0, 102.0, 102.0]);
        op.window = Some(3);
        attention(&op, &[1.0; 8], 4, &Flat, &mut out);
        assert_eq!(out[0], 3.0);
    }
}
