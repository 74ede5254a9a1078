//! Products of int8 tiles.
//!
//! Of a step of 32 k there are up to two tiles of activations (the bytes of Q8, or the high and the low ones of Q11), T tokens by
//! 32 bytes, or one of T tokens by 64 bytes (both of Q11), as they lie in the rows; and up to two tiles of weights, words of 4 bytes of 16
//! features, as many as a row of activations has, as panels ([`super::panel`]) hold them. Each of the ones with each of the others
//! makes a tile of T by 16 int32, from zero. The processor multiplies a row of activations a cycle, whatever the other sizes.
//!
//! The eight tile registers are 0 to 3 for results, 4 and 5 for activations, 6 and 7 for weights. Results of a step stay in
//! their registers until they are stored, so there are as many *sets* of results as fit four: steps take turns with them, and
//! with registers of operands that a step leaves free. A store is issued when its product is long done, since loads behind a
//! store that waits, wait as well if the lower 12 bits of their addresses are the same: such is bound to happen with sixteen rows.
//!
//! No code that a compiler makes uses tile registers, so they keep their values between these functions.

use std::arch::asm;

use crate::quant::BLOCK;

/// Bytes of a row of a tile of weights or of results.
const LINE: usize = 64;

/// Tiles of int32 that a step makes at most.
pub const RESULTS: usize = 4;

/// A tile of results: tokens by features. Those of a step lie one behind the other: of weights `w` and activations `i` number `w *
/// PLANES + i`.
#[repr(C, align(64))]
pub struct Sums(pub [[i32; 16]; 16]);

/// Steps whose results registers hold.
pub const fn sets(planes: usize, weights: usize) -> usize {
    RESULTS / (planes * weights)
}

/// The activations of a step.
#[derive(Clone, Copy)]
pub struct Activations {
    /// The first token's bytes, the second tile's behind the first's.
    pub at: *const u8,
    /// Bytes from a token to the next.
    pub token: usize,
}

/// What multiplies tiles: the processor, or in tests its emulation.
pub trait Tiles {
    /// Sets the shapes of tiles of `tokens` (up to 16) tokens by `depth` (up to 64) bytes, before any product.
    ///
    /// # Safety
    /// The processor has the tiles.
    unsafe fn configure(tokens: usize, depth: usize);

    /// Step number `step`'s products of PLANES tiles of activations with WEIGHTS tiles of weights, which are SIGNED bytes or not.
    /// They take the place of those of step `step - sets(..)`.
    ///
    /// # Safety
    /// Tiles are configured; the configured number of tokens has the activations, `weights` points at tiles, of which the first
    /// WEIGHTS are read.
    unsafe fn multiply<const SIGNED: bool, const PLANES: usize, const WEIGHTS: usize>(
        step: usize,
        x: Activations,
        weights: [*const u8; 2],
    );

    /// Stores the results of a step.
    ///
    /// # Safety
    /// Tiles are configured; `to` has room for PLANES * WEIGHTS tiles.
    unsafe fn store<const PLANES: usize, const WEIGHTS: usize>(step: usize, to: *mut Sums);

    /// Gives the tiles back, so that the system need not save them.
    ///
    /// # Safety
    /// The processor has the tiles.
    unsafe fn release();
}

/// The processor's tiles.
pub enum Hardware {}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The products of a step, with instruction `$op`, in tile registers that depend on the step's `$turn`.
macro_rules! multiply {
    ($op:literal, $turn:literal, $x:ident, $weights:ident) => {
        // SAFETY of all: the caller's promise.
        match (PLANES, WEIGHTS) {
            (1, 1) => unsafe {
                asm!(
                    "tileloadd tmm{w}, [{w_at} + {line}]",
                    "tileloadd tmm{x}, [{x_at} + {token}]",
                    "tilezero tmm{r}",
                    concat!($op, " tmm{r}, tmm{x}, tmm{w}"),
                    x = const 4 + $turn % 2,
                    w = const 6 + $turn % 2,
                    r = const $turn,
                    x_at = in(reg) $x.at,
                    token = in(reg) $x.token,
                    w_at = in(reg) $weights[0],
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                )
            },
            (2, 1) => unsafe {
                asm!(
                    "tileloadd tmm{w}, [{w_at} + {line}]",
                    "tileloadd tmm4, [{x_at} + {token}]",
                    "tilezero tmm{r}",
                    concat!($op, " tmm{r}, tmm4, tmm{w}"),
                    "tileloadd tmm5, [{y_at} + {token}]",
                    "tilezero tmm{s}",
                    concat!($op, " tmm{s}, tmm5, tmm{w}"),
                    w = const 6 + $turn % 2,
                    r = const $turn % 2 * 2,
                    s = const $turn % 2 * 2 + 1,
                    x_at = in(reg) $x.at,
                    y_at = in(reg) $x.at.wrapping_add(BLOCK),
                    token = in(reg) $x.token,
                    w_at = in(reg) $weights[0],
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                )
            },
            (1, _) => unsafe {
                asm!(
                    "tileloadd tmm{x}, [{x_at} + {token}]",
                    "tileloadd tmm6, [{w_at} + {line}]",
                    "tilezero tmm{r}",
                    concat!($op, " tmm{r}, tmm{x}, tmm6"),
                    "tileloadd tmm7, [{v_at} + {line}]",
                    "tilezero tmm{s}",
                    concat!($op, " tmm{s}, tmm{x}, tmm7"),
                    x = const 4 + $turn % 2,
                    r = const $turn % 2 * 2,
                    s = const $turn % 2 * 2 + 1,
                    x_at = in(reg) $x.at,
                    token = in(reg) $x.token,
                    w_at = in(reg) $weights[0],
                    v_at = in(reg) $weights[1],
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                )
            },
            _ => unsafe {
                asm!(
                    "tileloadd tmm4, [{x_at} + {token}]",
                    "tileloadd tmm6, [{w_at} + {line}]",
                    "tilezero tmm0",
                    concat!($op, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{y_at} + {token}]",
                    "tilezero tmm1",
                    concat!($op, " tmm1, tmm5, tmm6"),
                    "tileloadd tmm7, [{v_at} + {line}]",
                    "tilezero tmm2",
                    concat!($op, " tmm2, tmm4, tmm7"),
                    "tilezero tmm3",
                    concat!($op, " tmm3, tmm5, tmm7"),
                    x_at = in(reg) $x.at,
                    y_at = in(reg) $x.at.wrapping_add(BLOCK),
                    token = in(reg) $x.token,
                    w_at = in(reg) $weights[0],
                    v_at = in(reg) $weights[1],
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                )
            },
        }
    };
}

/// Stores tile registers one behind the other.
macro_rules! store {
    ($to:ident, $($tile:literal at $offset:literal),*) => {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                $(concat!("tilestored [{to} + {line} + ", $offset, "], tmm", $tile),)*
                to = in(reg) $to,
                line = in(reg) LINE,
                options(nostack, preserves_flags),
            )
        }
    };
}

impl Tiles for Hardware {
    #[inline]
    unsafe fn configure(tokens: usize, depth: usize) {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        for tile in 0..8 {
            (row_bytes[tile], rows[tile]) = match tile {
                0..4 => (LINE as u16, tokens as u8),
                4..6 => (depth as u16, tokens as u8),
                _ => (LINE as u16, (depth / 4) as u8),
            };
        }
        let shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes,
            rows,
        };
        // SAFETY: the caller's promise; these shapes are within palette 1's 16 rows of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &shapes,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline]
    unsafe fn multiply<const SIGNED: bool, const PLANES: usize, const WEIGHTS: usize>(
        step: usize,
        x: Activations,
        weights: [*const u8; 2],
    ) {
        match (SIGNED, step % 4) {
            (false, 0) => multiply!("tdpbsud", 0, x, weights),
            (false, 1) => multiply!("tdpbsud", 1, x, weights),
            (false, 2) => multiply!("tdpbsud", 2, x, weights),
            (false, _) => multiply!("tdpbsud", 3, x, weights),
            (true, 0) => multiply!("tdpbssd", 0, x, weights),
            (true, 1) => multiply!("tdpbssd", 1, x, weights),
            (true, 2) => multiply!("tdpbssd", 2, x, weights),
            (true, _) => multiply!("tdpbssd", 3, x, weights),
        }
    }

    #[inline]
    unsafe fn store<const PLANES: usize, const WEIGHTS: usize>(step: usize, to: *mut Sums) {
        match (PLANES * WEIGHTS, step % 4) {
            (1, 0) => store!(to, 0 at 0),
            (1, 1) => store!(to, 1 at 0),
            (1, 2) => store!(to, 2 at 0),
            (1, _) => store!(to, 3 at 0),
            (2, 0 | 2) => store!(to, 0 at 0, 1 at 1024),
            (2, _) => store!(to, 2 at 0, 3 at 1024),
            _ => store!(to, 0 at 0, 1 at 1024, 2 at 2048, 3 at 3072),
        }
    }

    #[inline]
    unsafe fn release() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(test)]
pub mod emulation {
    //! What the instructions do, in plain Rust.

    use std::cell::{Cell, RefCell};

    use super::{Activations, BLOCK, LINE, RESULTS, Sums, Tiles, sets};

    pub enum Emulated {}

    thread_local! {
        /// The configured numbers of tokens and of bytes of each; 0: no tiles.
        static SHAPE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };

        /// The registers of results, and the step that each is of.
        static REGISTERS: RefCell<[(usize, [[i32; 16]; 16]); RESULTS]> =
            const { RefCell::new([(usize::MAX, [[0; 16]; 16]); RESULTS]) };
    }

    /// The first register of a step's results.
    fn first(step: usize, planes: usize, weights: usize) -> usize {
        step % sets(planes, weights) * planes * weights
    }

    impl Tiles for Emulated {
        unsafe fn configure(tokens: usize, depth: usize) {
            assert!((1..=16).contains(&tokens) && (4..=64).contains(&depth));
            assert!(depth.is_multiple_of(4));
            SHAPE.set((tokens, depth));
        }

        unsafe fn multiply<const SIGNED: bool, const PLANES: usize, const WEIGHTS: usize>(
            step: usize,
            x: Activations,
            weights: [*const u8; 2],
        ) {
            let byte = |at: *const u8, i: usize| unsafe { at.add(i).read() };
            let (tokens, depth) = SHAPE.get();
            assert!(tokens > 0, "tiles are not configured");
            for (w, weights) in weights.into_iter().take(WEIGHTS).enumerate() {
                for i in 0..PLANES {
                    let x_at = x.at.wrapping_add(i * BLOCK);
                    // What the instruction leaves alone must not matter.
                    let mut sums = [[i32::MIN; 16]; 16];
                    for (m, row) in sums.iter_mut().take(tokens).enumerate() {
                        for (n, sum) in row.iter_mut().enumerate() {
                            let product = |k: usize| {
                                let x = byte(x_at, m * x.token + k) as i8;
                                let w = byte(weights, k / 4 * LINE + 4 * n + k % 4);
                                let w = if SIGNED { i32::from(w as i8) } else { w.into() };
                                i32::from(x) * w
                            };
                            *sum = (0..depth).map(product).sum();
                        }
                    }
                    let register = first(step, PLANES, WEIGHTS) + w * PLANES + i;
                    REGISTERS.with_borrow_mut(|all| all[register] = (step, sums));
                }
            }
        }

        unsafe fn store<const PLANES: usize, const WEIGHTS: usize>(step: usize, to: *mut Sums) {
            for i in 0..PLANES * WEIGHTS {
                let register = first(step, PLANES, WEIGHTS) + i;
                let (of, sums) = REGISTERS.with_borrow(|all| all[register]);
                assert_eq!(of, step, "another step took register {register}");
                unsafe { to.add(i).write(Sums(sums)) };
            }
        }

        unsafe fn release() {
            SHAPE.set((0, 0));
        }
    }
}
