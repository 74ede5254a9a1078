//! Random inputs, the same at every run.

use bundle_format::plan::{DType, Encoding, WeightLayout, row_bytes};
use half::{bf16, f16};
use kernels::pack;
use kernels::quant::{self, block_bytes};
use kernels::reference::{q8, q8k, q11, q14};

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
        // All bits set; Q8_0's bytes are -128 instead of -1.
        let fill = if encoding == Encoding::Q8_0 {
            0x80
        } else {
            0xff
        };
        bytes.fill(fill);
    }
    let block_len = block_bytes(encoding);
    if extreme && encoding == Encoding::Q6_K {
        // The largest products: quants of -32 with scales of -128.
        for block in bytes.chunks_exact_mut(block_len) {
            block.fill(0);
            block[192..208].fill(0x80);
        }
    }
    if extreme && encoding == Encoding::IQ4_XS {
        // -127 with -32.
        bytes.fill(0);
    }
    // Offsets of f16 factors, and their size: the larger the integers they multiply, the smaller.
    let (halves, size): (&[usize], f32) = match encoding {
        Encoding::F32 | Encoding::BF16 | Encoding::MXFP4 => (&[], 0.0),
        Encoding::F16 | Encoding::Q4_0 | Encoding::Q5_0 | Encoding::Q8_0 | Encoding::IQ4_NL => {
            (&[0], 0.1)
        }
        Encoding::Q4_1 | Encoding::Q5_1 => (&[0, 2], 0.1),
        Encoding::Q4_K | Encoding::Q5_K => (&[0, 2], 0.01),
        Encoding::IQ4_XS => (&[0], 0.01),
        Encoding::Q2_K => (&[80, 82], 0.01),
        Encoding::Q3_K => (&[108], 0.01),
        Encoding::Q6_K => (&[208], 0.01),
    };
    for block in bytes.chunks_exact_mut(block_len) {
        match encoding {
            Encoding::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            Encoding::BF16 => block.copy_from_slice(&bf16::from_f32(random.unit()).to_le_bytes()),
            // Around 1/16; the least ones are subnormal numbers.
            Encoding::MXFP4 => block[0] = [0, 1, 2, 120, 121, 122, 123, 124][random.below(8)],
            _ => {}
        }
        for &at in halves {
            let value = f16::from_f32(random.unit() * size);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

/// The packed bytes of row-major ones.
pub fn packed(
    encoding: Encoding,
    layout: WeightLayout,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> Vec<u8> {
    match layout {
        WeightLayout::Pairs8 => pack::pairs::pack(encoding, cols, bytes),
        _ => pack::pack(encoding, rows, cols, bytes),
    }
}

/// The numbers that a packed weight stands for, row-major f32.
pub fn numbers(encoding: Encoding, layout: WeightLayout, k: usize, weight: &[u8]) -> Vec<u8> {
    let row_len = quant::row_bytes(encoding, k as u64).unwrap() as usize;
    let mut row = vec![0.0; k];
    let rows = weight.chunks_exact(row_len).flat_map(|bytes| {
        quant::dequantise_row(encoding, bytes, &mut row);
        if layout == WeightLayout::Pairs8 {
            as_integers(&mut row);
        }
        row.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>()
    });
    rows.collect()
}

/// What pairs make of elements of 16 bits: multiples of a unit, for which all 32 in a row are below 2^13.
fn as_integers(weights: &mut [f32]) {
    for block in weights.chunks_exact_mut(32) {
        let largest = block.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let mut unit = 1.0f32;
        while largest > 0.0 && largest / unit >= 8192.0 {
            unit *= 2.0;
        }
        while largest > 0.0 && largest / unit < 4096.0 {
            unit /= 2.0;
        }
        for w in block {
            *w = (*w / unit).round_ties_even() * unit;
        }
    }
}

/// Rows of a type of activations, and the values that they stand for.
pub fn activation_rows(dtype: DType, x: &[f32], cols: usize) -> (Vec<u8>, Vec<f32>) {
    let (quantise, dequantise) = match dtype {
        DType::Q8 => (
            q8::quantise_row as fn(&[f32], &mut [u8]),
            q8::dequantise_row as fn(&[u8], &mut [f32]),
        ),
        DType::Q8K => (q8k::quantise_row as _, q8k::dequantise_row as _),
        DType::Q11 => (q11::quantise_row as _, q11::dequantise_row as _),
        DType::Q14 => (q14::quantise_row as _, q14::dequantise_row as _),
        DType::F32 => return (x.iter().flat_map(|x| x.to_le_bytes()).collect(), x.to_vec()),
        DType::U32 | DType::F16 => panic!("no activations of this device"),
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
