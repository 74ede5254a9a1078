//! The state behind the functions: memory, modules, streams; and what work does.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use gfx11_sim::{CodeObject, Kernel, Memory, ObjectError, Options, launch};

use crate::queue::{Op, Queues, Refusal};
use crate::status::{self, Status};

/// Work of a stream.
#[derive(Clone)]
pub enum Work {
    Upload {
        to: u64,
        /// Address of the host, read when the copy runs.
        from: usize,
        len: usize,
    },
    Download {
        to: usize,
        from: u64,
        len: usize,
    },
    Copy {
        to: u64,
        from: u64,
        len: u64,
    },
    Fill {
        at: u64,
        value: u8,
        len: u64,
    },
    Launch(Box<Launch>),
}

/// A launch, its arguments as they lie in memory.
#[derive(Clone)]
pub struct Launch {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub arguments: Vec<u8>,
}

/// A graph, as it was captured.
pub type Graph = Vec<Op<Work>>;

pub struct Runtime {
    pub memory: Memory,
    /// Bytes of the GPU's memory, and of those that are taken.
    pub total: u64,
    taken: u64,
    allocated: HashMap<u64, u64>,
    pub modules: HashMap<u64, CodeObject>,
    pub functions: HashMap<u64, Kernel>,
    pub graphs: HashMap<u64, Graph>,
    /// Blocks of host memory: address and layout.
    pub host: HashMap<usize, std::alloc::Layout>,
    pub queues: Queues<Work>,
    pub captures: bool,
    /// A launch has run when its function returns.
    pub serial: bool,
    checks_all: bool,
    next: u64,
    launches: u64,
    fault_at: Option<u64>,
    /// Set by the first fault, for good: the GPU's context is lost.
    fault: Option<Status>,
    /// What the first fault was.
    told: Option<String>,
}

/// The one GPU of this process.
pub fn runtime() -> MutexGuard<'static, Runtime> {
    static RUNTIME: OnceLock<Mutex<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Mutex::new(Runtime::new()));
    runtime.lock().unwrap_or_else(PoisonError::into_inner)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether no process before this one failed as it was asked to; makes the file that says so to the next.
fn first_time() -> bool {
    match std::env::var_os("GFX11_HIP_FAULT_ONCE") {
        Some(path) => std::fs::File::create_new(path).is_ok(),
        None => true,
    }
}

impl Runtime {
    fn new() -> Runtime {
        Runtime {
            memory: Memory::new(),
            total: variable("GFX11_HIP_MEMORY").unwrap_or(4 << 30),
            taken: 0,
            allocated: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            host: HashMap::new(),
            queues: Queues::new(),
            captures: variable("GFX11_HIP_CAPTURE") != Some(0),
            serial: variable("AMD_SERIALIZE_KERNEL").is_some_and(|how| how & 2 != 0),
            checks_all: variable("GFX11_HIP_CHECKS") != Some(0),
            next: 1 << 32,
            launches: 0,
            fault_at: variable("GFX11_HIP_FAULT_AT"),
            fault: None,
            told: None,
        }
    }

    /// Says what a fault is: to whoever runs this, and to who asks for it.
    fn tell(&mut self, fault: String) {
        eprintln!("gfx11-hip: {fault}");
        self.told.get_or_insert(fault);
    }

    /// What the first fault was, which kernel, lane, address and instruction.
    pub fn told(&self) -> Option<&str> {
        self.told.as_deref()
    }

    /// Lets a launch fail, so many after the last one.
    pub fn fail_launch(&mut self, after: u64) {
        self.fault_at = Some(self.launches + after);
    }

    /// A number for a handle that never was one.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn free_bytes(&self) -> u64 {
        self.total - self.taken
    }

    pub fn allocate(&mut self, len: u64) -> Result<u64, Status> {
        if len > self.free_bytes() {
            return Err(status::OUT_OF_MEMORY);
        }
        let start = self.memory.alloc(len);
        self.taken += len;
        self.allocated.insert(start, len);
        Ok(start)
    }

    pub fn free(&mut self, start: u64) -> Result<(), Status> {
        let len = self.allocated.remove(&start);
        self.taken -= len.ok_or(status::INVALID_VALUE)?;
        self.memory.free(start).map_err(|_| status::INVALID_VALUE)
    }

    pub fn load(&mut self, object: &[u8]) -> Result<u64, Status> {
        let object = CodeObject::load(&self.memory, object).map_err(|error| {
            eprintln!("gfx11-hip: {error}");
            match error {
                ObjectError::WrongTarget { .. } => status::NO_BINARY_FOR_GPU,
                _ => status::INVALID_IMAGE,
            }
        })?;
        let id = self.number();
        self.modules.insert(id, object);
        Ok(id)
    }

    /// What happened to the GPU, if anything.
    pub fn health(&self) -> Result<(), Status> {
        self.fault.map_or(Ok(()), Err)
    }

    pub fn push(&mut self, stream: u64, work: Work) -> Result<(), Status> {
        self.health()?;
        self.queues.push(stream, work).map_err(refused)
    }

    /// Runs what there is in a stream.
    pub fn drain(&mut self, stream: u64) -> Result<(), Status> {
        while !self.queues.is_idle(stream).map_err(refused)? {
            self.advance(stream)?;
        }
        self.health()
    }

    /// Runs the next piece of work that a stream waits for.
    pub fn advance(&mut self, stream: u64) -> Result<(), Status> {
        self.health()?;
        if let Some(work) = self.queues.next_work(stream).map_err(refused)?
            && let Err(status) = self.run(work)
        {
            self.fault = Some(status);
            return Err(status);
        }
        Ok(())
    }

    fn run(&mut self, work: Work) -> Result<(), Status> {
        let done = match work {
            Work::Upload { to, from, len } => {
                // SAFETY: whoever put the copy into the stream promised that the host's memory stays until it has run.
                let from = unsafe { std::slice::from_raw_parts(from as *const u8, len) };
                self.memory.write(to, from)
            }
            Work::Download { to, from, len } => {
                // SAFETY: likewise.
                let to = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, len) };
                self.memory.read(from, to)
            }
            Work::Copy { to, from, len } => self.memory.copy(to, from, len),
            Work::Fill { at, value, len } => self.memory.fill(at, value, len),
            Work::Launch(launch) => return self.launch(&launch),
        };
        done.map_err(|error| {
            self.tell(format!("a copy: {error}"));
            status::ILLEGAL_ADDRESS
        })
    }

    fn launch(&mut self, l: &Launch) -> Result<(), Status> {
        self.launches += 1;
        if self.fault_at == Some(self.launches) && first_time() {
            self.tell(format!(
                "launch {} fails, as asked, which is of {}",
                self.launches,
                l.kernel.name()
            ));
            return Err(status::ILLEGAL_ADDRESS);
        }
        let options = match self.checks_all {
            true => Options::default(),
            false => Options::fast(),
        };
        let run = launch(
            &self.memory,
            &l.kernel,
            l.grid,
            l.block,
            l.shared,
            &l.arguments,
            &options,
        );
        run.map(|_| ()).map_err(|fault| {
            self.tell(fault.to_string());
            status::ILLEGAL_ADDRESS
        })
    }
}

pub fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NoSuch => status::INVALID_HANDLE,
        Refusal::Capturing | Refusal::NotCapturing => status::CAPTURE_UNSUPPORTED,
    }
}
