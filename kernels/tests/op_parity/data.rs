//! Random inputs, the same at every run.

use bundle_format::plan::{DType, Encoding, row_bytes};
use half::f16;
use kernels::pack;
use kernels::quant::{self, block_bytes};
use kernels::reference::{q8, q16};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// Row-major bytes of a random weight. `extreme`: all quants at the ends of their range.
pub fn weight_bytes(
    random: &mut Random,
    encoding: Encoding,
    rows: usize,
    cols: usize,
    extreme: bool,
) -> Vec<u8> {
    let len = rows * quant::row_bytes(encoding, cols as u64).expect("whole blocks") as usize;
    let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    if extreme {
        // Nibbles of 15, bytes of -1 or -128.
        let fill = if encoding == Encoding::Q8_0 {
            0x80
        } else {
            0xff
        };
        bytes.fill(fill);
    }
    for block in bytes.chunks_exact_mut(block_bytes(encoding)) {
        let mut half = |at: usize| {
            let value = f16::from_f32(random.unit() * 0.1);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match encoding {
            Encoding::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            Encoding::F16 | Encoding::Q4_0 | Encoding::Q8_0 => half(0),
            Encoding::Q4_1 => {
                half(0);
                half(2);
            }
        }
    }
    bytes
}

/// The packed bytes of row-major ones.
pub fn packed(encoding: Encoding, rows: usize, cols: usize, bytes: &[u8]) -> Vec<u8> {
    pack::pack(encoding, rows, cols, bytes)
}

/// Rows of a type of activations, and the values that they stand for.
pub fn activation_rows(dtype: DType, x: &[f32], cols: usize) -> (Vec<u8>, Vec<f32>) {
    let (quantise, dequantise) = match dtype {
        DType::Q8 => (
            q8::quantise_row as fn(&[f32], &mut [u8]),
            q8::dequantise_row as fn(&[u8], &mut [f32]),
        ),
        DType::Q16 => (q16::quantise_row as _, q16::dequantise_row as _),
        DType::F32 => return (x.iter().flat_map(|x| x.to_le_bytes()).collect(), x.to_vec()),
        DType::U32 => panic!("no activations"),
    };
    let stride = row_bytes(dtype, cols as u32) as usize;
    let mut bytes = vec![0xa5; stride * (x.len() / cols)];
    let mut values = vec![0.0; x.len()];
    let rows = bytes.chunks_exact_mut(stride).zip(x.chunks_exact(cols));
    for ((row, x), values) in rows.zip(values.chunks_exact_mut(cols)) {
        quantise(x, row);
        dequantise(row, values);
    }
    (bytes, values)
}

/// Bits, so that comparisons see the sign of zero and NaN.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
