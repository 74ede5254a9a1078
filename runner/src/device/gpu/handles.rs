//! A driver's objects, each of which gives back what it is when it is dropped. All calls of a driver are here.

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

use super::driver::{Address, Driver, Function, Raw, Shape};
use crate::Error;

/// A GPU's driver, shared by all its objects.
pub type Gpu = Arc<dyn Driver>;

/// Memory of the GPU.
#[derive(Debug)]
pub struct Memory {
    pub start: Address,
    pub len: u64,
    gpu: Gpu,
}

impl Memory {
    pub fn new(gpu: &Gpu, len: u64, what: &str) -> Result<Memory, Error> {
        let start = gpu.allocate(len, what)?;
        Ok(Memory {
            start,
            len,
            gpu: gpu.clone(),
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `new`, and whoever used it has ended: the device drops its stream first.
        unsafe { self.gpu.free(self.start) };
    }
}

/// Memory of the host that copies read and write without a detour.
#[derive(Debug)]
pub struct Pinned {
    start: *mut u8,
    len: usize,
    gpu: Gpu,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeroed memory.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Pinned, Error> {
        let start = gpu.allocate_host(len.max(1))?;
        // SAFETY: what came is as long as was asked for.
        unsafe { ptr::write_bytes(start, 0, len) };
        Ok(Pinned {
            start,
            len,
            gpu: gpu.clone(),
        })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: it is ours, initialised, and only copies that have ended wrote to it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// `count` u32 from byte `at` on.
    pub fn words_mut(&mut self, at: usize, count: usize) -> &mut [u32] {
        let bytes = &mut self.bytes_mut()[at..at + 4 * count];
        // SAFETY: any bits are a u32; the middle is aligned, and `at` being a multiple of 4, it is everything.
        let (_, words, _) = unsafe { bytes.align_to_mut::<u32>() };
        words
    }

    /// `count` u32 from byte `at` on.
    pub fn words(&self, at: usize, count: usize) -> &[u32] {
        let bytes = &self.bytes()[at..at + 4 * count];
        // SAFETY: as in `words_mut`.
        let (_, words, _) = unsafe { bytes.align_to::<u32>() };
        words
    }

    /// `count` f32 from byte `at` on.
    pub fn floats(&self, at: usize, count: usize) -> &[f32] {
        let bytes = &self.bytes()[at..at + 4 * count];
        // SAFETY: as in `words_mut`.
        let (_, floats, _) = unsafe { bytes.align_to::<f32>() };
        floats
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `new`.
        unsafe { self.gpu.free_host(self.start) };
    }
}

/// The functions of an object.
#[derive(Debug)]
pub struct Module(Raw, Gpu);

impl Module {
    /// Loads a hashed object file.
    pub fn load(gpu: &Gpu, object: &[u8]) -> Result<Module, Error> {
        Ok(Module(gpu.load(object)?, gpu.clone()))
    }

    /// A function that may use `shared` bytes of dynamic shared memory.
    pub fn function(&self, symbol: &str, shared: u32) -> Result<Function, Error> {
        let name = CString::new(symbol)
            .map_err(|_| Error::Bug(format!("kernel {symbol:?} has a NUL in its name")))?;
        // SAFETY: the module is loaded.
        unsafe { self.1.function(self.0, &name, shared) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded in `load`.
        unsafe { self.1.unload(self.0) };
    }
}

/// An order of work.
#[derive(Debug)]
pub struct Stream(Raw, Gpu);

impl Stream {
    pub fn new(gpu: &Gpu) -> Result<Stream, Error> {
        Ok(Stream(gpu.stream()?, gpu.clone()))
    }

    /// Copies to the GPU. `from` stays as it is until the copy has ended: the caller waits for that.
    pub fn upload(&self, to: Address, from: &Pinned, at: usize, len: usize) -> Result<(), Error> {
        let from = &from.bytes()[at..at + len];
        // SAFETY: `to` has room: it is one of the device's own places, which are as long as the plan's limits.
        unsafe { self.1.upload(self.0, to, from.as_ptr(), len) }
    }

    /// Copies from the GPU; what `to` holds counts once the stream got there.
    pub fn download(
        &self,
        to: &mut Pinned,
        at: usize,
        from: Address,
        len: usize,
    ) -> Result<(), Error> {
        let to = &mut to.bytes_mut()[at..at + len];
        // SAFETY: as in `upload`.
        unsafe { self.1.download(self.0, to.as_mut_ptr(), from, len) }
    }

    /// Copies within the GPU.
    pub fn copy(&self, to: Address, from: Address, len: u64) -> Result<(), Error> {
        // SAFETY: both are ranges of the device's pools, which the caller has checked.
        unsafe { self.1.copy(self.0, to, from, len) }
    }

    /// Sets bytes to zero.
    pub fn clear(&self, at: Address, len: u64) -> Result<(), Error> {
        // SAFETY: a range of the device's memory.
        unsafe { self.1.clear(self.0, at, len) }
    }

    /// Launches a function; see [`Driver::launch`].
    pub fn launch(
        &self,
        function: Function,
        shape: Shape,
        args: &[u64],
        dependent: bool,
    ) -> Result<(), Error> {
        // SAFETY: the plan's kernel takes as many arguments as it was compiled with, pointers into this device's memory;
        // the bundle's hashes hold, so plan and object are of one compilation.
        unsafe { self.1.launch(self.0, function, shape, args, dependent) }
    }

    /// What `work` puts into this stream, as a graph that is launched as a whole. Nothing of it runs now.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        // SAFETY: the capture that is begun is ended, whatever `work` says.
        let graph = unsafe {
            self.1.begin_capture(self.0)?;
            let worked = work();
            let graph = self.1.end_capture(self.0);
            worked?;
            graph?
        };
        Ok(Graph(graph, self.1.clone()))
    }

    pub fn launch_graph(&self, graph: &Graph) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { self.1.launch_graph(self.0, graph.0) }
    }

    /// Waits until everything in the stream has run.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: it lives.
        unsafe { self.1.wait(self.0) }
    }

    /// What comes behind this waits for an event of another stream.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { self.1.wait_for(self.0, event.0) }
    }

    /// Marks this place of the stream.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { self.1.record(self.0, event.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it was created in `new`. Waiting first, so that memory is not freed under what runs; an error has nobody to be
        // told to.
        unsafe {
            let _ = self.1.wait(self.0);
            self.1.destroy_stream(self.0);
        }
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Event(Raw, Gpu);

impl Event {
    pub fn new(gpu: &Gpu) -> Result<Event, Error> {
        Ok(Event(gpu.event()?, gpu.clone()))
    }

    /// Whether the stream got there.
    pub fn is_past(&self) -> Result<bool, Error> {
        // SAFETY: it lives.
        unsafe { self.1.is_past(self.0) }
    }

    /// Waits until the stream got there.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: it lives.
        unsafe { self.1.wait_event(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created in `new`.
        unsafe { self.1.destroy_event(self.0) };
    }
}

/// Launches that run as one.
#[derive(Debug)]
pub struct Graph(Raw, Gpu);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was instantiated in `capture`.
        unsafe { self.1.destroy_graph(self.0) };
    }
}
