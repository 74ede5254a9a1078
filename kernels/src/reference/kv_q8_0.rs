//! Quantised KV blocks (`bundle_format::plan::KvDType::Q8_0`): where elements lie, quantisation and back.

use bundle_format::plan::{KV_BLOCK, KvDType, Q8_BLOCK};
use bundle_format::region::KvPart;
use half::f16;

/// An element's place in a block.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub part: KvPart,
    pub head_dim: usize,
    pub kv_head: usize,
    /// In the block, below 16.
    pub position: usize,
    pub dim: usize,
}

impl Place {
    fn head(&self) -> usize {
        self.kv_head * KvDType::Q8_0.head_bytes(self.head_dim as u32) as usize
    }

    /// The byte of its quant.
    pub fn quant(&self) -> usize {
        let Place { position, dim, .. } = *self;
        self.head()
            + match self.part {
                KvPart::Key => (dim / 2 * KV_BLOCK + position) * 2 + dim % 2,
                KvPart::Value => (position / 2 * self.head_dim + dim) * 2 + position % 2,
            }
    }

    /// The first of the two bytes of its scale.
    pub fn scale(&self) -> usize {
        let quants = self.head_dim * KV_BLOCK;
        self.head() + quants + (self.dim / Q8_BLOCK * KV_BLOCK + self.position) * 2
    }

    /// The element in the bytes of a block.
    pub fn read(&self, block: &[u8]) -> f32 {
        let scale = [block[self.scale()], block[self.scale() + 1]];
        block[self.quant()] as i8 as f32 * f16::from_le_bytes(scale).to_f32()
    }

    /// Quantises the 32 elements from this one on, whose dimension is a multiple of 32, into the bytes of a block.
    pub fn write(&self, x: &[f32; Q8_BLOCK], block: &mut [u8]) {
        let (quants, scale) = quantise(x);
        for (i, quant) in quants.into_iter().enumerate() {
            let place = Place {
                dim: self.dim + i,
                ..*self
            };
            block[place.quant()] = quant as u8;
        }
        block[self.scale()..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}

/// Quants and scale of 32 elements.
pub fn quantise(x: &[f32; Q8_BLOCK]) -> ([i8; Q8_BLOCK], f16) {
    let block = super::q8::quantise_block(x);
    (block.quants, f16::from_f32(block.scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_is_of_one_element_or_scale() {
        for part in [KvPart::Key, KvPart::Value] {
            let (head_dim, kv_heads) = (96, 3);
            let len = kv_heads * KvDType::Q8_0.head_bytes(head_dim as u32) as usize;
            let mut users = vec![0; len];
            for kv_head in 0..kv_heads {
                for position in 0..KV_BLOCK {
                    for dim in 0..head_dim {
                        let place = Place {
                            part,
                            head_dim,
                            kv_head,
                            position,
                            dim,
                        };
                        users[place.quant()] += 1;
                        if dim % Q8_BLOCK == 0 {
                            users[place.scale()] += 1;
                            users[place.scale() + 1] += 1;
                        }
                    }
                }
            }
            assert!(users.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn elements_come_back_to_within_half_a_step() {
        let x: [f32; Q8_BLOCK] = std::array::from_fn(|i| (i as f32 * 1.7).sin() * 3.0);
        let place = Place {
            part: KvPart::Value,
            head_dim: 64,
            kv_head: 1,
            position: 5,
            dim: 32,
        };
        let mut block = vec![0; 2 * 17 * 64];
        place.write(&x, &mut block);
        for (i, x) in x.into_iter().enumerate() {
            let dim = 32 + i;
            let found = Place { dim, ..place }.read(&block);
            // Half a step of 3 / 127, and the scale's own rounding.
            assert!((found - x).abs() <= 3.0 / 127.0 * 0.5 + 3.0 / 2048.0);
        }
    }
}
