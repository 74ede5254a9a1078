//! Values that cross lanes, or leave vector registers.

use crate::fault::{Exec, Trap};
use crate::isa::{Src, Vector, Vop, sreg};
use crate::wave::{REGISTERS, Wave};

/// Executes an operation of `Unit::Lanes`.
#[inline(never)]
pub(super) fn execute(wave: &mut Wave, inst: &Vector) -> Exec {
    match inst.op {
        Vop::ReadfirstlaneB32 => {
            let exec = wave.exec();
            // Lane 0 when none is active.
            let lane = if exec == 0 {
                0
            } else {
                exec.trailing_zeros() as usize
            };
            let value = in_lane(wave, inst.src[0], lane);
            wave.set_s(inst.dst, value);
        }
        Vop::ReadlaneB32 => {
            let lane = wave.scalar(inst.src[1]) as usize & 31;
            let value = in_lane(wave, inst.src[0], lane);
            wave.set_s(inst.dst, value);
        }
        Vop::WritelaneB32 => {
            let lane = wave.scalar(inst.src[1]) as usize & 31;
            wave.v[usize::from(inst.dst)][lane] = wave.scalar(inst.src[0]);
        }
        Vop::Permlane16B32 => permlane(wave, inst, 0),
        Vop::Permlanex16B32 => permlane(wave, inst, 16),
        // Halves of 32 lanes are exchanged: a wave of 32 has one.
        Vop::Permlane64B32 => {}
        Vop::SwapB32 => {
            let Src::V(other) = inst.src[0] else {
                return Trap::unsupported("v_swap_b32 of a scalar");
            };
            let (a, b) = (usize::from(inst.dst), usize::from(other));
            for lane in Wave::lanes(wave.active) {
                let (x, y) = (wave.v[a][lane], wave.v[b][lane]);
                (wave.v[a][lane], wave.v[b][lane]) = (y, x);
            }
        }
        Vop::MovreldB32 | Vop::MovrelsB32 | Vop::MovrelsdB32 => {
            let offset = wave.s[usize::from(sreg::M0)] as usize;
            let (from_moves, to_moves) = (inst.op != Vop::MovreldB32, inst.op != Vop::MovrelsB32);
            let from = wave.operand(inst.src[0], 0);
            let from = if from_moves {
                from.wrapping_add(offset)
            } else {
                from
            };
            let to = usize::from(inst.dst).wrapping_add(if to_moves { offset } else { 0 });
            if from >= REGISTERS || to >= 256 {
                return Trap::unsupported(format!(
                    "{} beyond the registers: M0 is {offset}",
                    inst.op.name()
                ));
            }
            let value = wave.v[from];
            wave.put(to as u8, &value);
        }
        op => unreachable!("{op:?} belongs to another unit"),
    }
    Ok(())
}

fn in_lane(wave: &Wave, src: Src, lane: usize) -> u32 {
    match src {
        Src::V(register) => wave.v[usize::from(register)][lane],
        _ => wave.scalar(src),
    }
}

/// Each lane of a row of 16 takes any lane of its own row, or (`cross` 16) of the other one. Four bits a lane choose, in
/// sources 1 (lanes 0 to 7) and 2. The first two bits of `op_sel` are "fetch inactive" and "bound control".
fn permlane(wave: &mut Wave, inst: &Vector, cross: usize) {
    let at = wave.operand(inst.src[0], 0);
    let from = wave.v[at];
    let select = u64::from(wave.scalar(inst.src[1])) | u64::from(wave.scalar(inst.src[2])) << 32;
    let (fetch_inactive, bound_ctrl) = (inst.mods.high & 1 != 0, inst.mods.high & 2 != 0);
    let exec = wave.exec();
    let to = &mut wave.v[usize::from(inst.dst)];
    for lane in Wave::lanes(wave.active) {
        let row = lane & 16 ^ cross;
        let source = row + (select >> (4 * (lane & 15)) & 15) as usize;
        if fetch_inactive || exec >> source & 1 != 0 {
            to[lane] = from[source];
        } else if bound_ctrl {
            to[lane] = 0;
        }
    }
}
