//! What atomics do to the old value.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::float::{max_f32, min_f32};
use crate::memory_op::{Atomic, AtomicOp};
use crate::wave::Wave;

/// A lane's data: the value, and what compare-and-swap compares with.
pub(super) fn data(wave: &Wave, first: usize, op: Atomic, lane: usize) -> (u64, u64) {
    let word = |i: usize| u64::from(wave.v[first + i][lane]);
    match op.wide {
        true => (word(0) | word(1) << 32, word(2) | word(3) << 32),
        false => (word(0), word(1)),
    }
}

/// The new value. `old`, `value` and `compare` have 32 bits unless the atomic is wide.
pub(crate) fn combine(op: Atomic, old: u64, value: u64, compare: u64) -> u64 {
    let max = if op.wide {
        u64::MAX
    } else {
        u64::from(u32::MAX)
    };
    let signed = |x: u64| {
        if op.wide {
            x as i64
        } else {
            i64::from(x as u32 as i32)
        }
    };
    let same_float = || {
        if op.wide {
            f64::from_bits(old) == f64::from_bits(compare)
        } else {
            f32::from_bits(old as u32) == f32::from_bits(compare as u32)
        }
    };
    let new = match op.op {
        AtomicOp::Swap => value,
        AtomicOp::CompareSwap => {
            if old == compare {
                value
            } else {
                old
            }
        }
        AtomicOp::CompareSwapFloat => {
            if same_float() {
                value
            } else {
                old
            }
        }
        AtomicOp::Add => old.wrapping_add(value),
        AtomicOp::Sub => old.wrapping_sub(value),
        AtomicOp::ReverseSub => value.wrapping_sub(old),
        AtomicOp::ClampedSub => old.saturating_sub(value),
        AtomicOp::MinSigned => signed(old).min(signed(value)) as u64,
        AtomicOp::MaxSigned => signed(old).max(signed(value)) as u64,
        AtomicOp::MinUnsigned => old.min(value),
        AtomicOp::MaxUnsigned => old.max(value),
        AtomicOp::And => old & value,
        AtomicOp::Or => old | value,
        AtomicOp::Xor => old ^ value,
        // Up to the value, then around; down from it.
        AtomicOp::Inc => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Dec => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        AtomicOp::AddFloat => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(value as u32)).to_bits())
        }
        AtomicOp::MinFloat | AtomicOp::MaxFloat if op.wide => {
            let (a, b) = (f64::from_bits(old), f64::from_bits(value));
            (if op.op == AtomicOp::MinFloat {
                a.min(b)
            } else {
                a.max(b)
            })
            .to_bits()
        }
        AtomicOp::MinFloat => u64::from(min_f32(old as u32, value as u32, false)),
        AtomicOp::MaxFloat => u64::from(max_f32(old as u32, value as u32, false)),
    };
    new & max
}

/// Applies an atomic to memory that other threads share, and gives what was there.
pub(super) fn update_u32(cell: &AtomicU32, op: Atomic, value: u64, compare: u64) -> u32 {
    let mut old = cell.load(Ordering::SeqCst);
    loop {
        let new = combine(op, u64::from(old), value, compare) as u32;
        match cell.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}

/// As `update_u32`.
pub(super) fn update_u64(cell: &AtomicU64, op: Atomic, value: u64, compare: u64) -> u64 {
    let mut old = cell.load(Ordering::SeqCst);
    loop {
        let new = combine(op, old, value, compare);
        match cell.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}
