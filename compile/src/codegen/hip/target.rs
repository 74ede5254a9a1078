//! What code for an AMD chip depends on.

use bundle_format::stability::{Profiles, Stability};
use bundle_format::target::Target;

/// A chip.
pub struct Chip {
    /// For the compiler: `gfx1151`.
    pub arch: &'static str,
    /// Compute units, of two vector units each.
    pub units: u32,
    /// Bytes of shared memory that a block may have.
    pub shared: u32,
    /// The profile that kernels are chosen for, beside all stricter ones.
    pub stability: Stability,
}

impl Chip {
    /// The chip of a target; none for processors of other kinds.
    pub fn of(target: Target, stability: Stability) -> Option<Chip> {
        match target {
            Target::Gfx1151 => Some(Chip {
                arch: "gfx1151",
                units: 40,
                shared: target.block_shared()?,
                stability,
            }),
            _ => None,
        }
    }

    /// The profiles that there are kernels for.
    pub fn profiles(&self) -> Profiles {
        let all = Stability::ALL.into_iter();
        all.filter(|&s| s >= self.stability).collect()
    }
}
