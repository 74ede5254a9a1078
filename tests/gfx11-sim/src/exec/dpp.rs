//! Data-parallel primitives: source 0 comes from other lanes.

use crate::fault::{Exec, Trap};
use crate::isa::{Dpp, Src};
use crate::wave::{Lanes, REARRANGED, WAVE, Wave};

/// Puts the rearranged source into a register of its own and narrows `Wave::active` to the lanes that are written.
#[inline(never)]
pub(super) fn rearrange(wave: &mut Wave, source: Src, dpp: Dpp) -> Exec<Src> {
    let exec = wave.exec();
    let from = match source {
        Src::V(n) => wave.v[usize::from(n)],
        _ => return Trap::unsupported("DPP of a scalar"),
    };
    let mut out: Lanes = [0; WAVE];
    match dpp {
        Dpp::Eight {
            lanes,
            fetch_inactive,
        } => {
            for (lane, out) in out.iter_mut().enumerate() {
                let source = lane & !7 | (lanes >> (3 * (lane & 7)) & 7) as usize;
                // An inactive source reads zero.
                *out = if fetch_inactive || exec >> source & 1 != 0 {
                    from[source]
                } else {
                    0
                };
            }
        }
        Dpp::Row {
            control,
            row_mask,
            bank_mask,
            bound_ctrl,
            fetch_inactive,
        } => {
            let mut writes = 0u32;
            for (lane, out) in out.iter_mut().enumerate() {
                if row_mask >> (lane / 16) & 1 == 0 || bank_mask >> (lane / 4 % 4) & 1 == 0 {
                    continue;
                }
                let source = source_lane(control, lane)?;
                match source.filter(|&source| fetch_inactive || exec >> source & 1 != 0) {
                    Some(source) => *out = from[source],
                    None if bound_ctrl => {}
                    None => continue,
                }
                writes |= 1 << lane;
            }
            wave.active &= writes;
        }
    }
    wave.v[usize::from(REARRANGED)] = out;
    Ok(Src::V(REARRANGED))
}

/// Where a lane's value comes from; None beyond its row.
fn source_lane(control: u16, lane: usize) -> Exec<Option<usize>> {
    let (row, in_row, n) = (lane & !15, lane & 15, usize::from(control & 15));
    Ok(Some(match control {
        0..=0xff => lane & !3 | usize::from(control >> (2 * (lane & 3)) & 3),
        0x101..=0x10f if in_row + n < 16 => lane + n,
        0x111..=0x11f if in_row >= n => lane - n,
        0x101..=0x10f | 0x111..=0x11f => return Ok(None),
        0x121..=0x12f => row | (in_row + 16 - n) & 15,
        0x140 => row | (15 - in_row),
        0x141 => lane & !7 | (7 - (lane & 7)),
        0x150..=0x15f => row | n,
        0x160..=0x16f => lane ^ n,
        _ => {
            return Trap::unsupported(format!(
                "DPP control {control:#x}, which this chip doesn't have"
            ));
        }
    }))
}
