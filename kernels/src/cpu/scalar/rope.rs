//! The rotary table.

use std::slice;

use crate::abi::RopeTableArgs;
use crate::cpu::math::cos_sin;

/// Cosines and sines of each position.
///
/// # Safety
/// `positions` has `rows` elements, `freqs` `n`, and every row of `out` `2 n`.
pub unsafe fn rope_table(args: &RopeTableArgs) {
    // SAFETY: the caller's promise.
    unsafe { rope(args) }
}

/// The body, which other levels inline and so compile for their instruction set.
///
/// # Safety
/// As [`rope_table`].
#[inline(always)]
pub unsafe fn rope(args: &RopeTableArgs) {
    let (rows, n) = (args.rows as usize, args.n as usize);
    // SAFETY: the caller promises `rows` positions and `n` frequencies.
    let (positions, freqs) = unsafe {
        (
            slice::from_raw_parts(args.positions, rows),
            slice::from_raw_parts(args.freqs, n),
        )
    };
    for (row, position) in positions.iter().enumerate() {
        // SAFETY: the caller promises rows of 2 n elements, `out_stride` apart.
        let out = unsafe {
            slice::from_raw_parts_mut(args.out.add(row * args.out_stride as usize), 2 * n)
        };
        let (cosines, sines) = out.split_at_mut(n);
        for ((freq, cosine_out), sine_out) in freqs.iter().zip(cosines).zip(sines) {
            let (cosine, sine) = cos_sin(f64::from(*position) * f64::from(*freq));
            *cosine_out = args.mscale * cosine as f32;
            *sine_out = args.mscale * sine as f32;
        }
    }
}
