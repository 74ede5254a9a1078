//! The state of a wave, and how operands become lanes.

use crate::isa::{Src, sreg};

/// Lanes of a wave.
pub(crate) const WAVE: usize = 32;
/// One vector register.
pub(crate) type Lanes = [u32; WAVE];

/// Vector registers: those that instructions can name (and the last one's successors, for groups of 16), then those that
/// hold operands which are no registers: broadcast scalars, modified or rearranged sources.
pub(crate) const REGISTERS: usize = 280;
/// Where operand `i` is put when it is no register.
pub(crate) const TEMPORARY: usize = 273;
/// Where a source rearranged by DPP is put.
pub(crate) const REARRANGED: u16 = 279;

pub(crate) struct Wave {
    pub v: Box<[Lanes; REGISTERS]>,
    /// SGPRs, VCC at 106, TTMPs, NULL at 124 (always zero), M0 at 125, EXEC at 126.
    pub s: [u32; 128],
    pub scc: bool,
    /// Number of the next instruction.
    pub pc: usize,
    pub mode: Mode,
    /// Lanes that the instruction at hand writes: EXEC but for DPP.
    pub active: u32,
    /// The wave's number in its workgroup.
    pub id: u32,
    /// Barriers passed.
    pub barriers: u32,
    pub state: State,
    /// Instructions executed.
    pub executed: u64,
    /// Private memory: one stretch a lane.
    pub scratch: Vec<u8>,
    /// A bit for each lane of each register that was written (checked runs).
    pub written: Option<Box<Written>>,
    /// The last region of memory that was accessed, a likely one for the next access.
    pub region: usize,
    /// The processor has the features that `for_each_lane` asks for.
    pub simd: bool,
    /// The wave sleeps: others first.
    pub yields: bool,
    /// Bytes of global memory loaded and stored by active lanes.
    pub traffic: [u64; 2],
}

/// What was written of a wave's registers.
pub(crate) struct Written {
    pub v: [u32; REGISTERS],
    /// A bit a scalar register.
    pub s: u128,
    /// A bit for each byte of scratch.
    pub scratch: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    AtBarrier,
    Ended,
}

/// The MODE register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode(pub u32);

impl Mode {
    /// Sources of f32 that are denormal count as zero.
    #[inline(always)]
    pub fn flush_in_32(self) -> bool {
        self.0 >> 4 & 1 == 0
    }

    /// Results of f32 that are denormal become zero.
    #[inline(always)]
    pub fn flush_out_32(self) -> bool {
        self.0 >> 5 & 1 == 0
    }

    /// As `flush_in_32`, for f16 and f64.
    #[inline(always)]
    pub fn flush_in_16(self) -> bool {
        self.0 >> 6 & 1 == 0
    }

    /// As `flush_out_32`, for f16 and f64.
    #[inline(always)]
    pub fn flush_out_16(self) -> bool {
        self.0 >> 7 & 1 == 0
    }

    /// Clamping turns NaN into zero.
    #[inline(always)]
    pub fn dx10_clamp(self) -> bool {
        self.0 >> 8 & 1 != 0
    }

    /// Signalling NaNs come out quiet from minimum and maximum; output modifiers are ignored.
    #[inline(always)]
    pub fn ieee(self) -> bool {
        self.0 >> 9 & 1 != 0
    }

    /// Rounding of f32, and of f16 and f64: 0 to nearest even, 1 up, 2 down, 3 to zero.
    pub fn round(self) -> (u32, u32) {
        (self.0 & 3, self.0 >> 2 & 3)
    }
}

impl Wave {
    pub fn new(checked: bool, scratch: usize) -> Self {
        let v: Box<[Lanes; REGISTERS]> = vec![[0; WAVE]; REGISTERS]
            .try_into()
            .expect("as many registers as asked for");
        let written = checked.then(|| {
            Box::new(Written {
                v: [0; REGISTERS],
                s: 0,
                scratch: vec![0; scratch.div_ceil(64)],
            })
        });
        Self {
            v,
            s: [0; 128],
            scc: false,
            pc: 0,
            mode: Mode(0),
            active: 0,
            id: 0,
            barriers: 0,
            state: State::Running,
            executed: 0,
            scratch: vec![0; scratch],
            written,
            region: 0,
            simd: simd(),
            yields: false,
            traffic: [0; 2],
        }
    }

    /// As new, for the next workgroup: registers hold what no kernel should use, NaNs.
    pub fn reset(&mut self, id: u32, registers: usize) {
        self.v[..registers.min(256)].fill([UNDEFINED; WAVE]);
        self.s.fill(UNDEFINED);
        self.s[usize::from(sreg::NULL)] = 0;
        self.scc = false;
        self.id = id;
        self.barriers = 0;
        self.state = State::Running;
        self.executed = 0;
        self.yields = false;
        self.traffic = [0; 2];
        self.scratch.fill(0xff);
        if let Some(written) = &mut self.written {
            written.v.fill(0);
            written.s = 0;
            written.scratch.fill(0);
        }
    }

    #[inline(always)]
    pub fn exec(&self) -> u32 {
        self.s[sreg::EXEC as usize]
    }

    /// Writes a scalar register; NULL stays zero.
    #[inline(always)]
    pub fn set_s(&mut self, register: u8, value: u32) {
        self.s[usize::from(register & 127)] = value;
        self.s[sreg::NULL as usize] = 0;
    }

    /// Writes a pair. Its second half of NULL is no register.
    #[inline(always)]
    pub fn set_s64(&mut self, register: u8, value: u64) {
        self.set_s(register, value as u32);
        if register != sreg::NULL {
            self.set_s(register + 1, (value >> 32) as u32);
        }
    }

    /// A source that is the same in all lanes, as 32 bits.
    #[inline(always)]
    pub fn scalar(&self, src: Src) -> u32 {
        match src {
            Src::S(n) => self.s[usize::from(n & 127)],
            Src::Int(n) => i32::from(n) as u32,
            Src::Literal(n) => n,
            Src::Float(n) => FLOATS_32[usize::from(n)],
            Src::Special(n) => self.special(n),
            // The first lane, which `v_readfirstlane` handles itself.
            Src::V(n) => self.v[usize::from(n)][0],
            Src::None => 0,
        }
    }

    fn special(&self, n: u8) -> u32 {
        match n {
            // Bases of the apertures are 64-bit values whose low half is zero; as 32 bits they read as the high half.
            235 => (LDS_APERTURE >> 32) as u32,
            236 => u32::MAX,
            237 => (SCRATCH_APERTURE >> 32) as u32,
            238 => u32::MAX,
            251 => u32::from(self.s[sreg::VCC as usize] == 0),
            252 => u32::from(self.exec() == 0),
            _ => u32::from(self.scc),
        }
    }

    /// A scalar source of 64 bits. Integers are extended, floats are f64, literals are `literal`'s.
    #[inline(always)]
    pub fn scalar64(&self, src: Src, literal: Literal) -> u64 {
        match src {
            Src::S(sreg::NULL) => 0,
            Src::S(n) => {
                let n = usize::from(n & 127);
                u64::from(self.s[n]) | u64::from(self.s[(n + 1) & 127]) << 32
            }
            Src::Int(n) => i64::from(n) as u64,
            Src::Float(n) => FLOATS_64[usize::from(n)],
            Src::Literal(n) => match literal {
                Literal::High => u64::from(n) << 32,
                Literal::Signed => i64::from(n as i32) as u64,
                Literal::Unsigned => u64::from(n),
            },
            Src::Special(235) => LDS_APERTURE,
            Src::Special(237) => SCRATCH_APERTURE,
            Src::Special(n) => u64::from(self.special(n)),
            Src::V(n) => {
                u64::from(self.v[usize::from(n)][0])
                    | u64::from(self.v[usize::from(n) + 1][0]) << 32
            }
            Src::None => 0,
        }
    }

    /// The register that holds source `i` as 32-bit lanes, a temporary one if it is none itself.
    #[inline(always)]
    pub fn operand(&mut self, src: Src, i: usize) -> usize {
        match src {
            Src::V(n) => usize::from(n),
            _ => {
                let value = self.scalar(src);
                self.v[TEMPORARY + i] = [value; WAVE];
                TEMPORARY + i
            }
        }
    }

    /// The register that holds source `i` as 16 bits in the low half of each lane (what is above is arbitrary).
    #[inline(always)]
    pub fn operand16(&mut self, src: Src, i: usize, high: bool) -> usize {
        match src {
            Src::V(n) if !high => usize::from(n),
            Src::V(n) => {
                let from = self.v[usize::from(n)];
                let to = &mut self.v[TEMPORARY + i];
                for lane in 0..WAVE {
                    to[lane] = from[lane] >> 16;
                }
                TEMPORARY + i
            }
            _ => {
                let value = self.scalar16(src)
                    >> if high && !matches!(src, Src::Int(_) | Src::Float(_)) {
                        16
                    } else {
                        0
                    };
                self.v[TEMPORARY + i] = [value; WAVE];
                TEMPORARY + i
            }
        }
    }

    /// A scalar source of a 16-bit operand; the upper half is what the register or literal has there.
    #[inline(always)]
    pub fn scalar16(&self, src: Src) -> u32 {
        match src {
            Src::Float(n) => u32::from(FLOATS_16[usize::from(n)]),
            _ => self.scalar(src),
        }
    }

    /// All lanes of a 64-bit source.
    pub fn operand64(&self, src: Src, literal: Literal) -> [u64; WAVE] {
        match src {
            Src::V(n) => {
                let (low, high) = (&self.v[usize::from(n)], &self.v[usize::from(n) + 1]);
                std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32)
            }
            _ => [self.scalar64(src, literal); WAVE],
        }
    }

    /// Writes the active lanes of a register.
    #[inline(always)]
    pub fn put(&mut self, register: u8, value: &Lanes) {
        let active = self.active;
        let to = &mut self.v[usize::from(register)];
        if active == u32::MAX {
            *to = *value;
        } else {
            for lane in 0..WAVE {
                let mask = 0u32.wrapping_sub(active >> lane & 1);
                to[lane] = value[lane] & mask | to[lane] & !mask;
            }
        }
    }

    /// Writes half of the active lanes of a register and leaves the other half.
    #[inline(always)]
    pub fn put16(&mut self, register: u8, value: &Lanes, high: bool) {
        let active = self.active;
        let (shift, keep) = if high { (16, 0xffff) } else { (0, 0xffff_0000) };
        let to = &mut self.v[usize::from(register)];
        for lane in 0..WAVE {
            let mask = 0u32.wrapping_sub(active >> lane & 1) & !keep;
            to[lane] = value[lane] << shift & mask | to[lane] & !mask;
        }
    }

    /// Writes the active lanes of a pair.
    pub fn put64(&mut self, register: u8, value: &[u64; WAVE]) {
        self.put(register, &value.map(|n| n as u32));
        let high = value.map(|n| (n >> 32) as u32);
        let active = self.active;
        let to = &mut self.v[usize::from(register) + 1];
        for lane in 0..WAVE {
            if active >> lane & 1 != 0 {
                to[lane] = high[lane];
            }
        }
    }

    /// Lanes in EXEC, ascending.
    #[inline(always)]
    pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
        let mut rest = mask;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let lane = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                lane
            })
        })
    }
}

/// What registers hold before they are written.
const UNDEFINED: u32 = 0x7fc0_dead;

#[cfg(target_arch = "x86_64")]
fn simd() -> bool {
    let has = [
        std::arch::is_x86_feature_detected!("avx2"),
        std::arch::is_x86_feature_detected!("fma"),
        std::arch::is_x86_feature_detected!("f16c"),
        std::arch::is_x86_feature_detected!("bmi1"),
        std::arch::is_x86_feature_detected!("bmi2"),
    ];
    has.into_iter().all(|has| has)
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> bool {
    false
}

/// How a 32-bit literal becomes a 64-bit operand.
#[derive(Clone, Copy)]
pub(crate) enum Literal {
    /// The high half of an f64.
    High,
    Signed,
    Unsigned,
}

/// Flat addresses with these upper halves are LDS and scratch.
pub(crate) const LDS_APERTURE: u64 = 0x0001_0000_0000_0000;
pub(crate) const SCRATCH_APERTURE: u64 = 0x0002_0000_0000_0000;

const FLOATS_32: [u32; 9] = [
    0x3f00_0000,
    0xbf00_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x4000_0000,
    0xc000_0000,
    0x4080_0000,
    0xc080_0000,
    0x3e22_f983,
];
pub(crate) const FLOATS_16: [u16; 9] = [
    0x3800, 0xb800, 0x3c00, 0xbc00, 0x4000, 0xc000, 0x4400, 0xc400, 0x3118,
];
const FLOATS_64: [u64; 9] = [
    0x3fe0_0000_0000_0000,
    0xbfe0_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x4000_0000_0000_0000,
    0xc000_0000_0000_0000,
    0x4010_0000_0000_0000,
    0xc010_0000_0000_0000,
    0x3fc4_5f30_6dc9_c882,
];
