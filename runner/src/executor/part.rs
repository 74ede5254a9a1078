//! A thread's part of a launch: of its rows, which every op that has no more than those divides alike.

use std::ops::Range;

use super::partition::{even, parts_each};
use super::program::pieces;
use super::team::Member;

/// A thread's part of a launch over `rows` rows, of which there is at least one.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub member: Member<'a>,
    /// The launch's number among all of all steps ([`super::claims`]).
    pub round: u64,
    pub rows: usize,
    pub tile: *mut f32,
}

impl Part<'_> {
    /// This thread's share of equal units.
    pub fn even(&self, units: usize) -> Range<usize> {
        even(units, self.member.index, self.member.of)
    }

    /// The rows of this part, in pieces of a tile; each has some elements.
    pub fn row_pieces(
        &self,
        tile_rows: usize,
        elements: u64,
    ) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let (rows, of) = (self.rows, self.member.of);
        let each = parts_each(rows as u64 * elements, of as u64, ELEMENTS_PART);
        let parts = self.member.parts(self.round, each);
        parts.flat_map(move |part| pieces(even(rows, part as usize, of * each as usize), tile_rows))
    }
}

/// Elements of rows that are worth a part of their own: some 10 us.
const ELEMENTS_PART: u64 = 16 * 1024;
