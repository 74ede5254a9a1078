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
//! No code that a compiler makes uses tile registers, so they keep their values between these functions. That lets a step's
//! products be issued in [`PIECES`], with other work in between: a processor whose core serves two threads holds half the
//! instructions in flight, and tile instructions in a row, of many operations each, leave no room for those that could run beside them.
//!
//! Sums over more than 64 bytes of k stay in registers of results from product to product: those of one tile of activations with either of
//! two of weights. Their instructions are functions of their own ([`Tiles::add`]).

use std::arch::asm;

use crate::quant::BLOCK;

/// Bytes of a row of a tile of weights or of results.
const LINE: usize = 64;

/// Tiles of int32 that a step makes at most.
pub const RESULTS: usize = 4;

/// Pieces of a step's products.
pub const PIECES: usize = 3;

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

    /// Number `piece` of the [`PIECES`] of step `step`'s products, PLANES tiles of activations with WEIGHTS tiles of weights, which
    /// are SIGNED bytes or not. All pieces together, in ascending order, take the place of the products of step `step - sets(..)`.
    ///
    /// # Safety
    /// Tiles are configured; the configured number of tokens has the activations, `weights` points at tiles, of which the first
    /// WEIGHTS are read. Pieces of two steps do not mix.
    unsafe fn multiply<const SIGNED: bool, const PLANES: usize, const WEIGHTS: usize>(
        step: usize,
        piece: usize,
        x: Activations,
        weights: [*const u8; 2],
    );

    /// Stores the results of a step.
    ///
    /// # Safety
    /// Tiles are configured; `to` has room for PLANES * WEIGHTS tiles.
    unsafe fn store<const PLANES: usize, const WEIGHTS: usize>(step: usize, to: *mut Sums);

    /// Loads the activations to [add](Tiles::add) products of, of the configured depth.
    ///
    /// # Safety
    /// Tiles are configured; the configured number of tokens has the activations.
    unsafe fn load_activations(x: Activations);

    /// Loads tile W of the weights to add products of.
    ///
    /// # Safety
    /// Tiles are configured; `at` points at a line for each four bytes of the depth.
    unsafe fn load_weights<const W: usize>(at: *const u8);

    /// Has the sums with tile W of the weights begin at zero.
    ///
    /// # Safety
    /// Tiles are configured.
    unsafe fn begin<const W: usize>();

    /// Adds the products of the activations and tile W of the weights to their sums. Weights are SIGNED bytes or not.
    ///
    /// # Safety
    /// Tiles are configured.
    unsafe fn add<const SIGNED: bool, const W: usize>();

    /// Stores the sums with tile W of the weights, a line a token.
    ///
    /// # Safety
    /// Tiles are configured; `to` has room for so many lines.
    unsafe fn store_sums<const W: usize>(to: *mut [i32; 16]);

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

/// A tile operand is loaded from rows that are `$stride` bytes apart.
macro_rules! load {
    ($tile:expr, $at:expr, $stride:expr) => {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{at} + {stride}]",
                tile = const $tile,
                at = in(reg) $at,
                stride = in(reg) $stride,
                options(nostack, preserves_flags),
            )
        }
    };
}

/// Adds a product to what register `$r` holds, with instruction `$op`.
macro_rules! add {
    ($op:literal, $r:expr, $x:expr, $w:expr) => {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                concat!($op, " tmm{r}, tmm{x}, tmm{w}"),
                r = const $r,
                x = const $x,
                w = const $w,
                options(nostack, preserves_flags),
            )
        }
    };
}

/// A product in place of what register `$r` holds, with instruction `$op`.
macro_rules! product {
    ($op:literal, $r:expr, $x:expr, $w:expr) => {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilezero tmm{r}",
                concat!($op, " tmm{r}, tmm{x}, tmm{w}"),
                r = const $r,
                x = const $x,
                w = const $w,
                options(nostack, preserves_flags),
            )
        }
    };
}

/// A piece of a step's products, with instruction `$op`, in tile registers that depend on the step's `$turn`.
macro_rules! multiply {
    ($op:literal, $turn:literal, $piece:ident, $x:ident, $weights:ident) => {{
        let (y, token) = ($x.at.wrapping_add(BLOCK), $x.token);
        match (PLANES, WEIGHTS, $piece) {
            (1, 1, 0) => load!(6 + $turn % 2, $weights[0], LINE),
            (1, 1, 1) => load!(4 + $turn % 2, $x.at, token),
            (1, 1, _) => product!($op, $turn, 4 + $turn % 2, 6 + $turn % 2),
            (2, 1, 0) => load!(6 + $turn % 2, $weights[0], LINE),
            (2, 1, 1) => {
                load!(4, $x.at, token);
                product!($op, $turn % 2 * 2, 4, 6 + $turn % 2);
            }
            (2, 1, _) => {
                load!(5, y, token);
                product!($op, $turn % 2 * 2 + 1, 5, 6 + $turn % 2);
            }
            (_, _, 0) => {
                load!(4, $x.at, token);
                load!(6, $weights[0], LINE);
                product!($op, 0, 4, 6);
            }
            (_, _, 1) => {
                load!(5, y, token);
                product!($op, 1, 5, 6);
            }
            _ => {
                load!(7, $weights[1], LINE);
                product!($op, 2, 4, 7);
                product!($op, 3, 5, 7);
            }
        }
    }};
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
        piece: usize,
        x: Activations,
        weights: [*const u8; 2],
    ) {
        match (SIGNED, step % 4) {
            (false, 0) => multiply!("tdpbsud", 0, piece, x, weights),
            (false, 1) => multiply!("tdpbsud", 1, piece, x, weights),
            (false, 2) => multiply!("tdpbsud", 2, piece, x, weights),
            (false, _) => multiply!("tdpbsud", 3, piece, x, weights),
            (true, 0) => multiply!("tdpbssd", 0, piece, x, weights),
            (true, 1) => multiply!("tdpbssd", 1, piece, x, weights),
            (true, 2) => multiply!("tdpbssd", 2, piece, x, weights),
            (true, _) => multiply!("tdpbssd", 3, piece, x, weights),
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
    unsafe fn load_activations(x: Activations) {
        load!(4, x.at, x.token);
    }

    #[inline]
    unsafe fn load_weights<const W: usize>(at: *const u8) {
        load!(6 + W, at, LINE);
    }

    #[inline]
    unsafe fn begin<const W: usize>() {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tilezero tmm{r}", r = const W, options(nostack, preserves_flags));
        }
    }

    #[inline]
    unsafe fn add<const SIGNED: bool, const W: usize>() {
        match SIGNED {
            false => add!("tdpbsud", W, 4, 6 + W),
            true => add!("tdpbssd", W, 4, 6 + W),
        }
    }

    #[inline]
    unsafe fn store_sums<const W: usize>(to: *mut [i32; 16]) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {line}], tmm{r}",
                to = in(reg) to,
                line = in(reg) LINE,
                r = const W,
                options(nostack, preserves_flags),
            );
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

    use super::{Activations, BLOCK, LINE, PIECES, RESULTS, Sums, Tiles, sets};

    pub enum Emulated {}

    thread_local! {
        /// The configured numbers of tokens and of bytes of each; 0: no tiles.
        static SHAPE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };

        /// The step and the piece that come next.
        static NEXT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };

        /// The registers of results, and the step that each is of.
        static REGISTERS: RefCell<[(usize, [[i32; 16]; 16]); RESULTS]> =
            const { RefCell::new([(usize::MAX, [[0; 16]; 16]); RESULTS]) };

        /// The operands of sums: activations, and two tiles of weights.
        static OPERANDS: RefCell<[[[u8; LINE]; 16]; 3]> =
            const { RefCell::new([[[0; LINE]; 16]; 3]) };
    }

    /// Loads some rows of `bytes`, `distance` apart, to an operand. The rest is zero.
    unsafe fn load_operand(
        operand: usize,
        at: *const u8,
        distance: usize,
        rows: usize,
        bytes: usize,
    ) {
        let mut lines = [[0; LINE]; 16];
        for (i, line) in lines.iter_mut().take(rows).enumerate() {
            for (j, byte) in line.iter_mut().take(bytes).enumerate() {
                // SAFETY: the caller's promise.
                *byte = unsafe { at.add(i * distance + j).read() };
            }
        }
        OPERANDS.with_borrow_mut(|all| all[operand] = lines);
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
            piece: usize,
            x: Activations,
            weights: [*const u8; 2],
        ) {
            let expected = NEXT.replace(match piece + 1 {
                PIECES => (step + 1, 0),
                next => (step, next),
            });
            // A call's first steps begin anew.
            assert!(expected == (step, piece) || (step, piece) == (0, 0));
            // All of it at once, with the last piece: results are not looked at before.
            if piece + 1 < PIECES {
                return;
            }
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

        unsafe fn load_activations(x: Activations) {
            let (tokens, depth) = SHAPE.get();
            // SAFETY: the caller's promise.
            unsafe { load_operand(0, x.at, x.token, tokens, depth) };
        }

        unsafe fn load_weights<const W: usize>(at: *const u8) {
            let (_, depth) = SHAPE.get();
            // SAFETY: the caller's promise.
            unsafe { load_operand(1 + W, at, LINE, depth / 4, LINE) };
        }

        unsafe fn begin<const W: usize>() {
            REGISTERS.with_borrow_mut(|all| all[W] = (usize::MAX, [[0; 16]; 16]));
        }

        unsafe fn add<const SIGNED: bool, const W: usize>() {
            let (tokens, depth) = SHAPE.get();
            assert!(tokens > 0, "tiles are not configured");
            let [x, w] = OPERANDS.with_borrow(|all| [all[0], all[1 + W]]);
            REGISTERS.with_borrow_mut(|all| {
                let (_, sums) = &mut all[W];
                for (x, row) in x.iter().zip(sums.iter_mut()).take(tokens) {
                    for (n, sum) in row.iter_mut().enumerate() {
                        for (k, x) in x.iter().take(depth).enumerate() {
                            let w = w[k / 4][4 * n + k % 4];
                            let w = if SIGNED { i32::from(w as i8) } else { w.into() };
                            *sum += i32::from(*x as i8) * w;
                        }
                    }
                }
            });
        }

        unsafe fn store_sums<const W: usize>(to: *mut [i32; 16]) {
            let (tokens, _) = SHAPE.get();
            let (_, sums) = REGISTERS.with_borrow(|all| all[W]);
            for (i, sums) in sums.into_iter().take(tokens).enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.add(i).write(sums) };
            }
        }

        unsafe fn release() {
            SHAPE.set((0, 0));
        }
    }
}
