//! Matrices: D = A B + C of 16 by 16 by 16, held by the whole wave whatever EXEC says.
//!
//! Lane l holds row l % 16 of A and column l % 16 of B: 16 values of k in ascending order, in both halves of the wave
//! alike (where the halves differ, each output reads the lower half's copy, and it is the program's bug). Register v of
//! C and D holds in lane l the element of row 2 v + l / 16 and column l % 16. 16-bit elements of C and D lie in half a
//! register each; `op_sel` of source 2 chooses which, and the other half is left.

use super::for_each_lane;
use crate::fault::{Exec, Trap};
use crate::float::{f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::isa::{Packed, Src, Vop3p};
use crate::wave::{Lanes, Wave};

/// Executes a `v_wmma`.
pub(super) fn execute(wave: &mut Wave, inst: &Packed) -> Exec {
    if wave.exec() != u32::MAX {
        return Trap::unsupported(format!(
            "{} with EXEC {:#010x}: it must be all ones",
            inst.op.name(),
            wave.exec()
        ));
    }
    match inst.op {
        Vop3p::WmmaI3216x16x16Iu8 | Vop3p::WmmaI3216x16x16Iu4 => integer(wave, inst),
        _ => float(wave, inst),
    }
    Ok(())
}

/// First register of a source that must be a group of registers.
fn registers(src: Src) -> Option<usize> {
    match src {
        Src::V(n) => Some(usize::from(n)),
        _ => None,
    }
}

for_each_lane! {
    fn float(wave: &mut Wave, inst: &Packed) {
        let bf16 = matches!(inst.op, Vop3p::WmmaF3216x16x16Bf16 | Vop3p::WmmaBf1616x16x16Bf16);
        let wide = matches!(inst.op, Vop3p::WmmaF3216x16x16F16 | Vop3p::WmmaF3216x16x16Bf16);
        // a[k][row], b[k][column]: lanes of a register are neighbours.
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 16]; 16];
        for (n, matrix) in [&mut a, &mut b].into_iter().enumerate() {
            let negate = (u32::from(inst.neg_lo >> n & 1) << 15, u32::from(inst.neg_hi >> n & 1) << 15);
            for i in 0..8 {
                let from: Lanes = match registers(inst.src[n]) {
                    Some(first) => wave.v[first + i],
                    None => [wave.scalar16(inst.src[n]); 32],
                };
                for lane in 0..16 {
                    let (low, high) = (from[lane] & 0xffff ^ negate.0, from[lane] >> 16 ^ negate.1);
                    let widen = |x: u32| if bf16 { f32::from_bits(x << 16) } else { f16_to_f32(x) };
                    matrix[2 * i][lane] = widen(low);
                    matrix[2 * i + 1][lane] = widen(high);
                }
            }
        }
        let c = registers(inst.src[2]);
        let constant = if wide { wave.scalar(inst.src[2]) } else { wave.scalar16(inst.src[2]) };
        let shift = if inst.op_sel & 4 != 0 { 16 } else { 0 };
        let (negate, keep) = (u32::from(inst.neg_lo >> 2 & 1) << 31, !(u32::from(inst.neg_hi >> 2 & 1) << 31));
        // Four rows at a time: as many sums as keep the multipliers of the host busy.
        for pair in 0..4 {
            let mut sums = [[0f32; 16]; 4];
            for (r, sum) in sums.iter_mut().enumerate() {
                let (v, half) = (2 * pair + r / 2, r % 2);
                let from: Lanes = c.map_or([constant; 32], |first| wave.v[first + v]);
                for (column, sum) in sum.iter_mut().enumerate() {
                    let x = from[16 * half + column];
                    let x = match (wide, bf16) {
                        (true, _) => x,
                        (false, true) => x >> shift << 16,
                        (false, false) => f16_to_f32(x >> shift).to_bits(),
                    };
                    *sum = f32::from_bits(x & keep ^ negate);
                }
            }
            for k in 0..16 {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let left = a[k][4 * pair + r];
                    for column in 0..16 {
                        sum[column] = left.mul_add(b[k][column], sum[column]);
                    }
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let (v, half) = (2 * pair + r / 2, r % 2);
                let to = &mut wave.v[usize::from(inst.dst) + v];
                for (column, sum) in sum.into_iter().enumerate() {
                    let to = &mut to[16 * half + column];
                    match (wide, bf16) {
                        (true, _) => *to = sum.to_bits(),
                        (false, true) => *to = *to & !(0xffff << shift) | (f32_to_bf16(sum) & 0xffff) << shift,
                        (false, false) => *to = *to & !(0xffff << shift) | (f32_to_f16(sum) & 0xffff) << shift,
                    }
                }
            }
        }
    }
}

for_each_lane! {
    fn integer(wave: &mut Wave, inst: &Packed) {
        let bits = if inst.op == Vop3p::WmmaI3216x16x16Iu8 { 8 } else { 4 };
        let per_register = 32 / bits;
        let mut a = [[0i32; 16]; 16];
        let mut b = [[0i32; 16]; 16];
        for (n, matrix) in [&mut a, &mut b].into_iter().enumerate() {
            let signed = inst.neg_lo >> n & 1 != 0;
            for i in 0..16 / per_register {
                let from: Lanes = match registers(inst.src[n]) {
                    Some(first) => wave.v[first + i],
                    None => [wave.scalar(inst.src[n]); 32],
                };
                for j in 0..per_register {
                    for lane in 0..16 {
                        let top = from[lane] << (32 - bits * (j + 1));
                        matrix[i * per_register + j][lane] =
                            if signed { top as i32 >> (32 - bits) } else { (top >> (32 - bits)) as i32 };
                    }
                }
            }
        }
        let c = registers(inst.src[2]);
        let constant = wave.scalar(inst.src[2]);
        for v in 0..8 {
            let from: Lanes = c.map_or([constant; 32], |first| wave.v[first + v]);
            let mut out: Lanes = [0; 32];
            for half in 0..2 {
                let row = 2 * v + half;
                // 16 products of 17 bits: their sum is exact.
                let mut sum = [0i32; 16];
                for k in 0..16 {
                    for column in 0..16 {
                        sum[column] += a[k][row] * b[k][column];
                    }
                }
                for column in 0..16 {
                    let c = from[16 * half + column] as i32;
                    let (sum, clamp) = (sum[column], inst.clamp);
                    out[16 * half + column] = if clamp { sum.saturating_add(c) } else { sum.wrapping_add(c) } as u32;
                }
            }
            wave.v[usize::from(inst.dst) + v] = out;
        }
    }
}
