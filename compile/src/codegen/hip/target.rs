//! What code for an AMD chip depends on.

use bundle_format::target::Target;

/// A chip.
pub struct Chip {
    /// For the compiler: `gfx1151`.
    pub arch: &'static str,
    /// Compute units, of two vector units each.
    pub units: u32,
    /// Bytes of shared memory that a block may have.
    pub shared: u32,
}

impl Chip {
    /// The chip of a target; none for processors of other kinds.
    pub fn of(target: Target) -> Option<Chip> {
        match target {
            Target::Gfx1151 => Some(Chip {
                arch: "gfx1151",
                units: 40,
                shared: target.block_shared()?,
            }),
            _ => None,
        }
    }
}
