//! NVIDIA's driver, as far as it is needed: the functions with their errors made ours.
//!
//! All `unsafe` of calls into the driver is here. What a function promises, it promises for handles that came from here and
//! live as long as the [`Gpu`] that made them.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;

use cudarc::driver::sys;

use crate::Error;

/// What cubins are made with: the least version of the driver that loads them.
const DRIVER: c_int = 13000;

pub type Address = sys::CUdeviceptr;
pub type Function = sys::CUfunction;

/// A GPU and its context.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub name: String,
    pub capability: (u32, u32),
    pub processors: u32,
}

// SAFETY: contexts may be used from any thread; `make_current` binds them to the calling one.
unsafe impl Send for Gpu {}
// SAFETY: what a shared reference can do, the driver lets any thread do at any time.
unsafe impl Sync for Gpu {}

/// Turns a result of the driver into ours.
fn check(result: sys::CUresult, what: &str) -> Result<(), Error> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: it gives a static string, or null for numbers that it doesn't know.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) } == sys::CUresult::CUDA_SUCCESS;
    let said = if known && !text.is_null() {
        // SAFETY: see above.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    } else {
        "unknown error".to_string()
    };
    let text = format!("CUDA: {what}: {said} ({})", result as u32);
    Err(match result {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::User(format!(
            "{text}; free some of the GPU's memory, or compile the model with a smaller --ctx or --max-batch"
        )),
        _ => Error::Bug(text),
    })
}

impl Gpu {
    /// Opens the first GPU (`CUDA_VISIBLE_DEVICES` chooses among several).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no driver, an older one, or no GPU.
    pub fn open() -> Result<Gpu, Error> {
        let no = |text: String| Err(Error::Unsupported(text));
        // SAFETY: it only looks whether the library loads; everything below is called after it did.
        if !unsafe { sys::is_culib_present() } {
            return no(
                "this bundle is for an NVIDIA GPU, but the driver's library (libcuda.so.1) is not here; install NVIDIA's \
                 driver, or compile the model for this machine (fastc compile --target cpu)"
                    .into(),
            );
        }
        let mut gpu = Gpu {
            device: 0,
            context: ptr::null_mut(),
            name: String::new(),
            capability: (0, 0),
            processors: 0,
        };
        // SAFETY: out-parameters are of the types that the driver writes.
        unsafe {
            if let Err(error) = check(sys::cuInit(0), "cuInit") {
                return no(format!(
                    "this bundle is for an NVIDIA GPU, and none can be used here: {error}"
                ));
            }
            let mut version = 0;
            check(sys::cuDriverGetVersion(&mut version), "cuDriverGetVersion")?;
            if version < DRIVER {
                return no(format!(
                    "the NVIDIA driver is for CUDA {}.{}; expected {}.{} or later: update it",
                    version / 1000,
                    version % 1000 / 10,
                    DRIVER / 1000,
                    DRIVER % 1000 / 10
                ));
            }
            let mut count = 0;
            check(sys::cuDeviceGetCount(&mut count), "cuDeviceGetCount")?;
            if count == 0 {
                return no("this bundle is for an NVIDIA GPU, and this machine has none".into());
            }
            check(sys::cuDeviceGet(&mut gpu.device, 0), "cuDeviceGet")?;
            let mut name = [0; 128];
            check(
                sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, gpu.device),
                "cuDeviceGetName",
            )?;
            gpu.name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            check(
                sys::cuDevicePrimaryCtxRetain(&mut gpu.context, gpu.device),
                "cuDevicePrimaryCtxRetain",
            )?;
        }
        use sys::CUdevice_attribute_enum as attribute;
        let major = attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let minor = attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        gpu.capability = (gpu.attribute(major)?, gpu.attribute(minor)?);
        gpu.processors = gpu.attribute(attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        gpu.make_current()?;
        Ok(gpu)
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32, Error> {
        let mut value = 0;
        // SAFETY: the device is one of the driver's.
        let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
        check(result, "cuDeviceGetAttribute")?;
        Ok(value as u32)
    }

    /// Binds the context to this thread: before anything else of this module is called on it.
    pub fn make_current(&self) -> Result<(), Error> {
        // SAFETY: the context is retained until `self` is dropped.
        check(
            unsafe { sys::cuCtxSetCurrent(self.context) },
            "cuCtxSetCurrent",
        )
    }

    /// Bytes of memory that are free, and that there are.
    pub fn memory(&self) -> Result<(u64, u64), Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: out-parameters.
        check(
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) },
            "cuMemGetInfo",
        )?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: it was retained in `open`. An error has nobody to be told to.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Memory of the GPU.
#[derive(Debug)]
pub struct Memory {
    pub start: Address,
    pub len: u64,
}

impl Memory {
    pub fn new(len: u64, what: &str) -> Result<Memory, Error> {
        let mut start = 0;
        // SAFETY: out-parameter.
        let result = unsafe { sys::cuMemAlloc_v2(&mut start, len as usize) };
        check(result, &format!("{len} bytes for {what}"))?;
        Ok(Memory { start, len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `new`, and whoever used it has ended: the device drops its stream first.
        let _ = unsafe { sys::cuMemFree_v2(self.start) };
    }
}

/// Memory of the host that copies read and write without a detour.
#[derive(Debug)]
pub struct Pinned {
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeroed memory.
    pub fn new(len: usize) -> Result<Pinned, Error> {
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: out-parameter; what came is as long as was asked for.
        unsafe {
            check(
                sys::cuMemAllocHost_v2(&mut start, len.max(1)),
                "pinned memory of the host",
            )?;
            ptr::write_bytes(start.cast::<u8>(), 0, len);
        }
        Ok(Pinned {
            start: start.cast(),
            len,
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
        let _ = unsafe { sys::cuMemFreeHost(self.start.cast()) };
    }
}

/// The functions of an object.
#[derive(Debug)]
pub struct Module(sys::CUmodule);

// SAFETY: a handle.
unsafe impl Send for Module {}

impl Module {
    /// Loads a cubin.
    pub fn load(object: &[u8]) -> Result<Module, Error> {
        let mut module = ptr::null_mut();
        // SAFETY: the object is a whole ELF file, as its own header says; it was hashed.
        let result = unsafe { sys::cuModuleLoadData(&mut module, object.as_ptr().cast()) };
        check(result, "the bundle's kernels can't be loaded")?;
        Ok(Module(module))
    }

    /// A function that may use `shared` bytes of dynamic shared memory.
    pub fn function(&self, symbol: &str, shared: u32) -> Result<Function, Error> {
        let name = std::ffi::CString::new(symbol)
            .map_err(|_| Error::Bug(format!("kernel {symbol:?} has a NUL in its name")))?;
        let mut function = ptr::null_mut();
        // SAFETY: the name ends in NUL; the module is loaded.
        unsafe {
            check(
                sys::cuModuleGetFunction(&mut function, self.0, name.as_ptr()),
                &format!("kernel {symbol}"),
            )?;
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            check(
                sys::cuFuncSetAttribute(function, attribute, shared as c_int),
                &format!("{shared} bytes of shared memory for kernel {symbol}"),
            )?;
        }
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded in `load`.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// How wide a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
}

/// An order of work.
#[derive(Debug)]
pub struct Stream(sys::CUstream);

// SAFETY: a handle.
unsafe impl Send for Stream {}

impl Stream {
    pub fn new() -> Result<Stream, Error> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: out-parameter.
        check(
            unsafe { sys::cuStreamCreate(&mut stream, flags) },
            "cuStreamCreate",
        )?;
        Ok(Stream(stream))
    }

    /// Copies to the GPU. `from` stays as it is until the copy has ended: the caller waits for that.
    pub fn upload(&self, to: Address, from: &Pinned, at: usize, len: usize) -> Result<(), Error> {
        let from = &from.bytes()[at..at + len];
        // SAFETY: `to` has room: it is one of the device's own places, which are as long as the plan's limits.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), len, self.0) };
        check(result, "a copy to the GPU")
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
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, len, self.0) };
        check(result, "a copy from the GPU")
    }

    /// Copies within the GPU.
    pub fn copy(&self, to: Address, from: Address, len: u64) -> Result<(), Error> {
        // SAFETY: both are ranges of the device's pools, which the caller has checked.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len as usize, self.0) };
        check(result, "a copy within the GPU")
    }

    /// Sets bytes to zero.
    pub fn clear(&self, at: Address, len: u64) -> Result<(), Error> {
        // SAFETY: a range of the device's memory.
        let result = unsafe { sys::cuMemsetD8Async(at, 0, len as usize, self.0) };
        check(result, "clearing memory of the GPU")
    }

    /// Launches a function with arguments of 8 bytes each (a function reads of each as much as it takes). `dependent`: it
    /// may start before the launch before it has ended, and waits for that by itself.
    pub fn launch(
        &self,
        function: Function,
        shape: Shape,
        args: &[u64],
        dependent: bool,
    ) -> Result<(), Error> {
        let mut pointers: Vec<*mut c_void> = args
            .iter()
            .map(|arg| ptr::from_ref(arg).cast_mut().cast())
            .collect();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.0,
            attrs: &mut attribute,
            numAttrs: c_uint::from(dependent),
        };
        // SAFETY: the plan's kernel takes as many arguments as it was compiled with, pointers into this device's memory;
        // the bundle's hashes hold, so plan and object are of one compilation.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), ptr::null_mut())
        };
        check(result, "a launch")
    }

    /// What `work` puts into this stream, as a graph that is launched as a whole. Nothing of it runs now.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut graph = ptr::null_mut();
        let mut exec = ptr::null_mut();
        // SAFETY: the capture that is begun is ended, whatever `work` says; the graph is destroyed once it is
        // instantiated.
        unsafe {
            check(
                sys::cuStreamBeginCapture_v2(self.0, mode),
                "cuStreamBeginCapture",
            )?;
            let worked = work();
            let ended = check(
                sys::cuStreamEndCapture(self.0, &mut graph),
                "cuStreamEndCapture",
            );
            worked?;
            ended?;
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            check(made, "cuGraphInstantiate")?;
        }
        Ok(Graph(exec))
    }

    pub fn launch_graph(&self, graph: &Graph) -> Result<(), Error> {
        // SAFETY: both live.
        check(unsafe { sys::cuGraphLaunch(graph.0, self.0) }, "a step")
    }

    /// Waits until everything in the stream has run.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: it lives.
        check(
            unsafe { sys::cuStreamSynchronize(self.0) },
            "the GPU failed",
        )
    }

    /// What comes behind this waits for an event of another stream.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: both live.
        check(
            unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) },
            "cuStreamWaitEvent",
        )
    }

    /// Marks this place of the stream.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: both live.
        check(
            unsafe { sys::cuEventRecord(event.0, self.0) },
            "cuEventRecord",
        )
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it was created in `new`. Waiting first, so that memory is not freed under what runs.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.0);
            let _ = sys::cuStreamDestroy_v2(self.0);
        }
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Event(sys::CUevent);

// SAFETY: a handle.
unsafe impl Send for Event {}

impl Event {
    pub fn new() -> Result<Event, Error> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: out-parameter.
        check(
            unsafe { sys::cuEventCreate(&mut event, flags) },
            "cuEventCreate",
        )?;
        Ok(Event(event))
    }

    /// Whether the stream got there.
    pub fn is_past(&self) -> Result<bool, Error> {
        // SAFETY: it lives.
        match unsafe { sys::cuEventQuery(self.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "the GPU failed").map(|()| true),
        }
    }

    /// Waits until the stream got there.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: it lives.
        check(unsafe { sys::cuEventSynchronize(self.0) }, "the GPU failed")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created in `new`.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Launches that run as one.
#[derive(Debug)]
pub struct Graph(sys::CUgraphExec);

// SAFETY: a handle.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was instantiated in `capture`.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}
