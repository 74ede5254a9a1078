//! One wave outside of any kernel, for tests of single instructions.

use crate::code::Code;
use crate::exec::{Checks, Env, step};
use crate::fault::FaultKind;
use crate::lds::Lds;
use crate::memory::Memory;
use crate::wave::{Mode, State, WAVE, Wave};

/// A wave of 32 lanes with all registers zero and every lane active, and memory that it can reach.
pub struct Probe {
    wave: Wave,
    lds: Lds,
    /// Global memory.
    pub memory: Memory,
}

impl Default for Probe {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Probe {
    /// With so many bytes of LDS, which are zero.
    pub fn new(lds: usize) -> Self {
        let mut wave = Wave::new(false, 0);
        wave.s[usize::from(crate::isa::sreg::EXEC)] = u32::MAX;
        // Denormals are kept, as clang has them; NaNs as IEEE 754; clamping turns NaN into zero.
        wave.mode = Mode(0x3f0);
        Self {
            wave,
            lds: Lds::new(lds, false, false),
            memory: Memory::new(),
        }
    }

    /// The MODE register.
    pub fn mode(&mut self) -> &mut u32 {
        &mut self.wave.mode.0
    }

    /// A vector register.
    pub fn v(&mut self, register: u8) -> &mut [u32; WAVE] {
        &mut self.wave.v[usize::from(register)]
    }

    /// A scalar register by its number in an operand: VCC is 106, M0 125, EXEC 126.
    pub fn s(&mut self, register: u8) -> &mut u32 {
        &mut self.wave.s[usize::from(register & 127)]
    }

    /// The scalar condition.
    pub fn scc(&mut self) -> &mut bool {
        &mut self.wave.scc
    }

    /// Four bytes of LDS.
    pub fn lds(&self, at: usize) -> u32 {
        self.lds.load_u32(at)
    }

    /// Sets four bytes of LDS.
    pub fn set_lds(&mut self, at: usize, value: u32) {
        self.lds.store_u32(at, value);
    }

    /// Executes instructions up to the last, or to a branch behind it, and gives the number of dwords that they went to.
    pub fn run(&mut self, text: &[u32]) -> Result<usize, FaultKind> {
        let bytes: Vec<u8> = text.iter().flat_map(|word| word.to_le_bytes()).collect();
        let code = Code::decode(&bytes, 0, &[]);
        let regions = self.memory.snapshot();
        let mut env = Env {
            code: &code,
            regions: &regions,
            lds: &mut self.lds,
            checks: Checks {
                unwritten_memory: false,
                races: false,
            },
        };
        let wave = &mut self.wave;
        (wave.pc, wave.state) = (0, State::Running);
        while wave.state == State::Running
            && let Some(inst) = code.insts().get(wave.pc)
        {
            wave.pc += 1;
            step(wave, &mut env, inst).map_err(|trap| trap.kind)?;
        }
        let at = code.insts().get(wave.pc).map(|inst| inst.at as usize);
        Ok(at.unwrap_or(text.len()))
    }
}
