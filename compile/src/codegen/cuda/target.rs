//! What code for an NVIDIA chip depends on.

use bundle_format::target::Target;

/// A chip.
pub struct Chip {
    /// For the compiler: `sm_90a`.
    pub arch: &'static str,
    /// Processors that grids are cut for. A card with more or fewer runs the same code.
    pub processors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared: u32,
    /// Whether products of many rows use Hopper's matrix instructions and bulk copies; others work on every chip.
    pub hopper: bool,
}

impl Chip {
    /// The chip of a target; none for processors of other kinds. With `portable` set, its kernels are those that every chip
    /// could have.
    pub fn of(target: Target, portable: bool) -> Option<Chip> {
        let (arch, processors, hopper) = match target {
            Target::X86_64V3 | Target::X86_64V4 | Target::Gfx1151 => return None,
            Target::Sm80 => ("sm_80", 108, false),
            Target::Sm86 => ("sm_86", 84, false),
            Target::Sm89 => ("sm_89", 128, false),
            Target::Sm90a => ("sm_90a", 132, true),
            Target::Sm100a => ("sm_100a", 148, false),
            Target::Sm120a => ("sm_120a", 170, false),
        };
        Some(Chip {
            arch,
            processors,
            shared: target.block_shared()?,
            hopper: hopper && !portable,
        })
    }
}
