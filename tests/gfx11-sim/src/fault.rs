//! What can go wrong while a kernel runs, and where it did.

use std::fmt;

use crate::memory::Nearest;

/// A kernel did something wrong, or something that the simulator doesn't know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// The workgroup's coordinates.
    pub workgroup: [u32; 3],
    /// The wave in its workgroup.
    pub wave: u32,
    /// The first lane that did it.
    pub lane: Option<u32>,
    /// The work-item that this lane is, in its workgroup.
    pub work_item: Option<[u32; 3]>,
    /// Address of the instruction.
    pub pc: u64,
    /// Its function and how many bytes into it it is.
    pub function: Option<(String, u64)>,
    /// Its encoding.
    pub words: Vec<u32>,
    /// Its text.
    pub instruction: String,
    /// The address that was accessed: global, or relative to LDS or to the lane's scratch.
    pub address: Option<u64>,
    /// The allocation closest to a global address.
    pub nearest: Option<Nearest>,
}

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// Arguments of the launch don't fit the kernel.
    #[error("bad launch: {0}")]
    BadLaunch(String),
    /// An access that no allocation holds.
    #[error("{} of {bytes} bytes of global memory out of bounds", verb(.write))]
    GlobalOutOfBounds {
        /// A store or an atomic.
        write: bool,
        /// Bytes accessed by the lane.
        bytes: u32,
    },
    /// A store to code, constants or arguments.
    #[error("write of {bytes} bytes to read-only memory")]
    ReadOnly {
        /// Bytes.
        bytes: u32,
    },
    /// An atomic on an address that is no multiple of its width.
    #[error("atomic of {bytes} bytes is not aligned")]
    Misaligned {
        /// Bytes.
        bytes: u32,
    },
    /// An access beyond the workgroup's LDS.
    #[error("{} of {bytes} bytes beyond the {lds} bytes of LDS", verb(.write))]
    LdsOutOfRange {
        /// A store or an atomic.
        write: bool,
        /// Bytes accessed by the lane.
        bytes: u32,
        /// Bytes of LDS that the workgroup has.
        lds: u32,
    },
    /// An access beyond the lane's scratch.
    #[error("{} of {bytes} bytes beyond the {scratch} bytes of scratch", verb(.write))]
    ScratchOutOfRange {
        /// A store.
        write: bool,
        /// Bytes accessed by the lane.
        bytes: u32,
        /// Bytes of scratch that a lane has.
        scratch: u32,
    },
    /// A read of global bytes that nothing wrote.
    #[error("read of {bytes} bytes of global memory, not all of which were written")]
    UnwrittenGlobal {
        /// Bytes.
        bytes: u32,
    },
    /// A read of LDS that nothing wrote.
    #[error("read of {bytes} bytes of LDS, not all of which were written")]
    UnwrittenLds {
        /// Bytes.
        bytes: u32,
    },
    /// A read of scratch that nothing wrote.
    #[error("read of {bytes} bytes of scratch, not all of which were written")]
    UnwrittenScratch {
        /// Bytes.
        bytes: u32,
    },
    /// A read of a register that nothing wrote.
    #[error("read of {0}, which was not written")]
    UnwrittenRegister(String),
    /// Waves touch the same byte of LDS with no barrier between, and one of them writes.
    #[error("race: wave {other} {} the same byte of LDS with no barrier between", past(.other_writes))]
    LdsRace {
        /// The other wave.
        other: u32,
        /// The other one's access was a write.
        other_writes: bool,
    },
    /// No encoding of gfx1151 that the simulator knows.
    #[error("unknown instruction")]
    UnknownInstruction,
    /// Known by name, but not how to execute it.
    #[error("unsupported instruction: {0}")]
    Unsupported(String),
    /// Execution left the code.
    #[error("jump to {target:#x}, where no instruction starts")]
    BadJump {
        /// Where to.
        target: u64,
    },
    /// `s_trap`: an assertion of the kernel, or `__builtin_trap`.
    #[error("s_trap {0}")]
    Trap(u16),
    /// More instructions than `Options::max_instructions`.
    #[error("a wave executed {0} instructions without an end (Options::max_instructions)")]
    Endless(u64),
}

fn verb(write: &bool) -> &'static str {
    if *write { "write" } else { "read" }
}

fn past(write: &bool) -> &'static str {
    if *write { "wrote" } else { "read" }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: kernel {}", self.kind, self.kernel)?;
        if matches!(self.kind, FaultKind::BadLaunch(_)) {
            return Ok(());
        }
        let [x, y, z] = self.workgroup;
        write!(f, ", workgroup ({x}, {y}, {z}), wave {}", self.wave)?;
        if let Some(lane) = self.lane {
            write!(f, ", lane {lane}")?;
        }
        if let Some([x, y, z]) = self.work_item {
            write!(f, " (work-item {x}, {y}, {z})")?;
        }
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ", pc {:#x}", self.pc)?;
        if let Some((name, offset)) = &self.function {
            write!(f, " ({name}+{offset:#x})")?;
        }
        write!(f, ": {} [", self.instruction)?;
        for (i, word) in self.words.iter().enumerate() {
            write!(f, "{}{word:08x}", if i > 0 { " " } else { "" })?;
        }
        f.write_str("]")?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; {nearest}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault as the executing code sees it; the dispatcher adds where it happened.
#[derive(Debug)]
pub(crate) struct Trap {
    pub kind: FaultKind,
    pub lane: Option<u32>,
    pub address: Option<u64>,
}

/// Faults are rare: a thin error keeps the executing functions' results small.
pub(crate) type Exec<T = ()> = Result<T, Box<Trap>>;

impl Trap {
    pub fn new(kind: FaultKind) -> Box<Self> {
        Box::new(Self {
            kind,
            lane: None,
            address: None,
        })
    }

    pub fn at(kind: FaultKind, lane: usize, address: u64) -> Box<Self> {
        Box::new(Self {
            kind,
            lane: Some(lane as u32),
            address: Some(address),
        })
    }

    pub fn unsupported<T>(what: impl Into<String>) -> Exec<T> {
        Err(Self::new(FaultKind::Unsupported(what.into())))
    }
}
