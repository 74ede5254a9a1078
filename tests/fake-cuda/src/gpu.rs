//! The state behind the functions: memory, streams, and what happens in them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::queue::{Op, Queues, Refusal};

/// `CUresult`
pub type Status = u32;

pub const SUCCESS: Status = 0;
pub const INVALID_VALUE: Status = 1;
pub const OUT_OF_MEMORY: Status = 2;
pub const INVALID_DEVICE: Status = 101;
pub const INVALID_IMAGE: Status = 200;
pub const INVALID_HANDLE: Status = 400;
pub const NOT_READY: Status = 600;
pub const ILLEGAL_ADDRESS: Status = 700;
pub const NOT_SUPPORTED: Status = 801;
pub const CAPTURE_UNSUPPORTED: Status = 900;

/// Alignment of memory.
const ALIGN: usize = 512;

/// Work of a stream. Places of the GPU's memory are numbers, those of the host's are read and written when the work runs.
#[derive(Clone)]
pub enum Work {
    Upload { to: u64, from: usize, len: usize },
    Download { to: usize, from: u64, len: usize },
    Copy { to: u64, from: u64, len: usize },
    Fill { at: u64, value: u8, len: usize },
    Launch,
}

pub struct Gpu {
    pub queues: Queues<Work>,
    pub graphs: HashMap<u64, Vec<Op<Work>>>,
    /// Names of modules and functions.
    pub names: HashSet<u64>,
    /// The GPU's memory that is taken: where it is, and how long.
    memory: BTreeMap<u64, Layout>,
    /// Pinned memory of the host.
    host: BTreeMap<u64, Layout>,
    pub total: u64,
    next: u64,
    launched: u64,
    run: u64,
    fault_at: Option<u64>,
    /// Once it failed, for good.
    fault: Option<Status>,
    log: Option<File>,
}

/// The only GPU.
pub fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Mutex::new(Gpu::new()));
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that a test gives.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn zeroed(len: usize) -> Result<(u64, Layout), Status> {
    let layout = Layout::from_size_align(len, ALIGN).map_err(|_| INVALID_VALUE)?;
    if len == 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    match start.is_null() {
        true => Err(OUT_OF_MEMORY),
        false => Ok((start as u64, layout)),
    }
}

fn give_back(from: &mut BTreeMap<u64, Layout>, start: u64) -> Result<(), Status> {
    let layout = from.remove(&start).ok_or(INVALID_VALUE)?;
    // SAFETY: `zeroed` gave it with this layout, and it is nobody's any more.
    unsafe { dealloc(start as *mut u8, layout) };
    Ok(())
}

pub fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NoSuch => INVALID_HANDLE,
        Refusal::Capturing | Refusal::NotCapturing => CAPTURE_UNSUPPORTED,
    }
}

impl Gpu {
    fn new() -> Gpu {
        let log = std::env::var_os("FAKE_CUDA_LOG");
        let open = |path| File::options().append(true).create(true).open(path).ok();
        Gpu {
            queues: Queues::new(),
            graphs: HashMap::new(),
            names: HashSet::new(),
            memory: BTreeMap::new(),
            host: BTreeMap::new(),
            total: variable("FAKE_CUDA_MEMORY").unwrap_or(4 << 30),
            // Not one that streams or events have.
            next: 1 << 32,
            launched: 0,
            run: 0,
            fault_at: variable("FAKE_CUDA_FAULT_AT"),
            fault: None,
            log: log.and_then(open),
        }
    }

    /// A name that was not given before.
    pub fn name(&mut self) -> u64 {
        self.next += 1;
        self.names.insert(self.next);
        self.next
    }

    pub fn log(&mut self, line: &str) {
        if let Some(file) = &mut self.log {
            // In one piece: several threads' and processes' lines don't mix.
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }

    pub fn free_bytes(&self) -> u64 {
        let taken: usize = self.memory.values().map(Layout::size).sum();
        self.total.saturating_sub(taken as u64)
    }

    pub fn allocate(&mut self, len: usize) -> Result<u64, Status> {
        if len as u64 > self.free_bytes() {
            return Err(OUT_OF_MEMORY);
        }
        let (start, layout) = zeroed(len)?;
        self.log(&format!("memory {len}"));
        self.memory.insert(start, layout);
        Ok(start)
    }

    pub fn free(&mut self, start: u64) -> Result<(), Status> {
        give_back(&mut self.memory, start)
    }

    pub fn allocate_host(&mut self, len: usize) -> Result<u64, Status> {
        let (start, layout) = zeroed(len)?;
        self.log(&format!("host {len}"));
        self.host.insert(start, layout);
        Ok(start)
    }

    pub fn free_host(&mut self, start: u64) -> Result<(), Status> {
        give_back(&mut self.host, start)
    }

    /// What happened to the GPU, if anything.
    pub fn health(&self) -> Result<(), Status> {
        self.fault.map_or(Ok(()), Err)
    }

    pub fn push(&mut self, stream: u64, work: Work) -> Result<(), Status> {
        self.health()?;
        if let Work::Launch = work {
            self.launched += 1;
            if self.launched == 1 {
                self.dump();
            }
        }
        self.queues.push(stream, work).map_err(refused)
    }

    fn dump(&self) {
        let Some(path) = std::env::var_os("FAKE_CUDA_DUMP") else {
            return;
        };
        let mut bytes = Vec::new();
        for (&start, layout) in &self.memory {
            // SAFETY: it is taken, and was zeroed.
            bytes.extend(unsafe { std::slice::from_raw_parts(start as *const u8, layout.size()) });
        }
        if let Err(error) = std::fs::write(&path, bytes) {
            eprintln!("fake-cuda: {}: {error}", path.display());
        }
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

    /// A place of the GPU's memory with so many bytes behind it.
    fn place(&self, at: u64, len: usize) -> Result<*mut u8, Status> {
        let (start, layout) = self
            .memory
            .range(..=at)
            .next_back()
            .ok_or(ILLEGAL_ADDRESS)?;
        let end = start + layout.size() as u64;
        match at.checked_add(len as u64) {
            Some(to) if to <= end => Ok(at as *mut u8),
            _ => Err(ILLEGAL_ADDRESS),
        }
    }

    /// A place of pinned memory of the host with so many bytes behind it. A driver takes any memory; `fastrun` gives none else.
    fn pinned(&self, at: usize, len: usize) -> Result<*mut u8, Status> {
        let found = self.host.range(..=at as u64).next_back();
        let (&start, layout) = found.ok_or(INVALID_VALUE)?;
        match at - start as usize + len <= layout.size() {
            true => Ok(at as *mut u8),
            false => Err(INVALID_VALUE),
        }
    }

    fn run(&mut self, work: Work) -> Result<(), Status> {
        // SAFETY of all blocks: `place` and `pinned` give memory that is taken, with so many bytes behind it; two of them are
        // apart, or are copied as if they were.
        match work {
            Work::Upload { to, from, len } => {
                self.log(&format!("upload {len}"));
                let (to, from) = (self.place(to, len)?, self.pinned(from, len)?);
                // SAFETY: see above.
                unsafe { to.copy_from(from, len) };
            }
            Work::Download { to, from, len } => {
                let (to, from) = (self.pinned(to, len)?, self.place(from, len)?);
                // SAFETY: see above.
                unsafe { to.copy_from(from, len) };
            }
            Work::Copy { to, from, len } => {
                let (to, from) = (self.place(to, len)?, self.place(from, len)?);
                // SAFETY: see above.
                unsafe { to.copy_from(from, len) };
            }
            Work::Fill { at, value, len } => {
                let at = self.place(at, len)?;
                // SAFETY: see above.
                unsafe { at.write_bytes(value, len) };
            }
            Work::Launch => {
                self.run += 1;
                self.log("launch");
                if self.fault_at == Some(self.run) {
                    return Err(ILLEGAL_ADDRESS);
                }
            }
        }
        Ok(())
    }
}
