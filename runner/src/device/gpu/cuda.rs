//! NVIDIA's driver, loaded where there is one.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use bundle_format::target::Target;
use cudarc::driver::sys;

use super::driver::{About, Address, Driver, Function, NO_GRAPHS, Raw, Shape, pointers};
use super::read_rate;
use crate::Error;

/// What cubins are made with: the least version of the driver that loads them.
const DRIVER: c_int = 13000;

/// What a GPU reports whose context is lost: an uncorrectable memory error, illegal addresses, timeouts, instructions and
/// stacks, misaligned addresses, failed launches (cuda.h).
const FAULTS: [u32; 11] = [214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721];

/// A GPU of NVIDIA's and its context.
#[derive(Debug)]
pub struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    capability: (u32, u32),
    about: About,
}

// SAFETY: contexts may be used from any thread; `make_current` binds them to the calling one.
unsafe impl Send for Cuda {}
// SAFETY: what a shared reference can do, the driver lets any thread do at any time.
unsafe impl Sync for Cuda {}

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
        result if NO_GRAPHS.contains(&(result as u32)) => Error::Unsupported(text),
        result if FAULTS.contains(&(result as u32)) => Error::Fault(text),
        _ => Error::Bug(text),
    })
}

/// What is used of the driver's library, as cuda.h names it: cudarc panics where one is missing.
const FUNCTIONS: [&str; 39] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuLaunchKernelEx",
    "cuMemAllocHost_v2",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// How many of [`FUNCTIONS`] every driver has, be it too old.
const FIRST: usize = 3;

/// Looks for functions in the library, which is there.
///
/// # Errors
/// The name of one that it lacks.
fn look_for(functions: &[&'static str]) -> Result<(), &'static str> {
    let has = |name: &str| {
        // SAFETY: the library was loaded before; the address is not used.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok()
    };
    match functions.iter().find(|name| !has(name)) {
        Some(name) => Err(name),
        None => Ok(()),
    }
}

/// Why the driver's library can't be loaded, as the system's loader says it.
fn why_not_loaded() -> String {
    // SAFETY: NVIDIA's initialisers set up its own state only; it did not load a moment ago.
    match unsafe { libloading::Library::new("libcuda.so.1") } {
        Ok(_) => "it was not there a moment ago".into(),
        Err(error) => error.to_string(),
    }
}

impl Cuda {
    /// Opens the first GPU (`CUDA_VISIBLE_DEVICES` chooses among several).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no driver, an older one, or no GPU.
    pub fn open() -> Result<Arc<Cuda>, Error> {
        let no = |text: String| Err(Error::Unsupported(text));
        // SAFETY: it only looks whether the library loads; everything below is called after it did.
        if !unsafe { sys::is_culib_present() } {
            return no(format!(
                "this bundle is for an NVIDIA GPU, but the driver's library (libcuda.so.1) can't be loaded: {}; install NVIDIA's \
                 driver, in a container start it with --gpus all, or compile the model for this machine (fastc compile \
                 --target cpu)",
                why_not_loaded()
            ));
        }
        if let Err(name) = look_for(&FUNCTIONS[..FIRST]) {
            return no(format!(
                "the library that is found as libcuda.so is not NVIDIA's driver: it has no function {name}; install NVIDIA's \
                 driver, or see what else has that name in LD_LIBRARY_PATH"
            ));
        }
        let (mut device, mut context) = (0, ptr::null_mut());
        let (name, runtime);
        // SAFETY: out-parameters are of the types that the driver writes.
        unsafe {
            if let Err(error) = check(sys::cuInit(0), "cuInit") {
                return no(format!(
                    "this bundle is for an NVIDIA GPU, and none can be used here: {}",
                    error.text()
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
            if let Err(name) = look_for(&FUNCTIONS[FIRST..]) {
                return no(format!(
                    "the NVIDIA driver says that it is for CUDA {}.{}, but its library lacks the function {name}; install the \
                     driver again",
                    version / 1000,
                    version % 1000 / 10
                ));
            }
            runtime = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
            let mut count = 0;
            check(sys::cuDeviceGetCount(&mut count), "cuDeviceGetCount")?;
            if count == 0 {
                return no("this bundle is for an NVIDIA GPU, and this machine has none".into());
            }
            check(sys::cuDeviceGet(&mut device, 0), "cuDeviceGet")?;
            let mut text = [0; 128];
            check(
                sys::cuDeviceGetName(text.as_mut_ptr(), text.len() as c_int, device),
                "cuDeviceGetName",
            )?;
            name = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
            check(
                sys::cuDevicePrimaryCtxRetain(&mut context, device),
                "cuDevicePrimaryCtxRetain",
            )?;
        }
        let mut gpu = Cuda {
            device,
            context,
            capability: (0, 0),
            about: About {
                name,
                runtime,
                chip: String::new(),
                processors: 0,
            },
        };
        use sys::CUdevice_attribute_enum as attribute;
        let major = attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let minor = attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        gpu.capability = (gpu.attribute(major)?, gpu.attribute(minor)?);
        gpu.about.chip = format!("sm_{}{}", gpu.capability.0, gpu.capability.1);
        gpu.about.processors =
            gpu.attribute(attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        gpu.make_current()?;
        Ok(Arc::new(gpu))
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32, Error> {
        let mut value = 0;
        // SAFETY: the device is one of the driver's.
        let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
        check(result, "cuDeviceGetAttribute")?;
        Ok(value as u32)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: it was retained in `open`. An error has nobody to be told to.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

// SAFETY of all blocks below: the driver's functions with the signatures of its header; objects are the driver's own and live,
// memory is as long as is read or written: what `Driver` asks of its callers. Out-parameters are of the types that are
// written. Errors of giving something back have nobody to be told to.
impl Driver for Cuda {
    fn about(&self) -> &About {
        &self.about
    }

    /// Code with instructions of one chip alone runs on no other; other code on later ones of its generation.
    fn runs(&self, target: Target) -> bool {
        target.compute_capability().is_some_and(|(major, minor)| {
            self.capability.0 == major
                && match target.name().ends_with('a') {
                    true => self.capability.1 == minor,
                    false => self.capability.1 >= minor,
                }
        })
    }

    fn make_current(&self) -> Result<(), Error> {
        // SAFETY: the context is retained until `self` is dropped.
        let result = unsafe { sys::cuCtxSetCurrent(self.context) };
        check(result, "cuCtxSetCurrent")
    }

    fn memory(&self) -> Result<(u64, u64), Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: see above.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, "cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    fn read_kernel(&self) -> Option<&'static [u8]> {
        Some(read_rate::PTX)
    }

    fn allocate(&self, len: u64, what: &str) -> Result<Address, Error> {
        let mut start = 0;
        // SAFETY: see above.
        let result = unsafe { sys::cuMemAlloc_v2(&mut start, len as usize) };
        check(result, &format!("{len} bytes for {what}"))?;
        Ok(start)
    }

    unsafe fn free(&self, start: Address) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuMemFree_v2(start) };
    }

    fn allocate_host(&self, len: usize) -> Result<*mut u8, Error> {
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: see above.
        let result = unsafe { sys::cuMemAllocHost_v2(&mut start, len) };
        check(result, "pinned memory of the host")?;
        Ok(start.cast())
    }

    unsafe fn free_host(&self, start: *mut u8) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuMemFreeHost(start.cast()) };
    }

    fn load(&self, object: &[u8]) -> Result<Raw, Error> {
        let mut module = ptr::null_mut();
        // SAFETY: the object is a whole ELF file, as its own header says, or text that ends in NUL.
        let result = unsafe { sys::cuModuleLoadData(&mut module, object.as_ptr().cast()) };
        check(result, "the bundle's kernels can't be loaded")?;
        Ok(Raw(module.cast()))
    }

    unsafe fn function(&self, module: Raw, name: &CStr, shared: u32) -> Result<Function, Error> {
        let mut function = ptr::null_mut();
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: see above.
        unsafe {
            check(
                sys::cuModuleGetFunction(&mut function, module.0.cast(), name.as_ptr()),
                &format!("kernel {}", name.to_string_lossy()),
            )?;
            check(
                sys::cuFuncSetAttribute(function, attribute, shared as c_int),
                &format!(
                    "{shared} bytes of shared memory for kernel {}",
                    name.to_string_lossy()
                ),
            )?;
        }
        Ok(Raw(function.cast()))
    }

    unsafe fn unload(&self, module: Raw) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuModuleUnload(module.0.cast()) };
    }

    fn stream(&self) -> Result<Raw, Error> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: see above.
        let result = unsafe { sys::cuStreamCreate(&mut stream, flags) };
        check(result, "cuStreamCreate")?;
        Ok(Raw(stream.cast()))
    }

    unsafe fn wait(&self, stream: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuStreamSynchronize(stream.0.cast()) };
        check(result, "what was launched")
    }

    unsafe fn destroy_stream(&self, stream: Raw) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuStreamDestroy_v2(stream.0.cast()) };
    }

    unsafe fn upload(
        &self,
        stream: Raw,
        to: Address,
        from: *const u8,
        len: usize,
    ) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, stream.0.cast()) };
        check(result, "a copy to the GPU")
    }

    unsafe fn download(
        &self,
        stream: Raw,
        to: *mut u8,
        from: Address,
        len: usize,
    ) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, len, stream.0.cast()) };
        check(result, "a copy from the GPU")
    }

    unsafe fn copy(&self, stream: Raw, to: Address, from: Address, len: u64) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len as usize, stream.0.cast()) };
        check(result, "a copy within the GPU")
    }

    unsafe fn clear(&self, stream: Raw, at: Address, len: u64) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuMemsetD8Async(at, 0, len as usize, stream.0.cast()) };
        check(result, "clearing memory of the GPU")
    }

    unsafe fn launch(
        &self,
        stream: Raw,
        function: Function,
        shape: Shape,
        args: &[u64],
        dependent: bool,
    ) -> Result<(), Error> {
        let mut pointers = pointers(args);
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
            hStream: stream.0.cast(),
            attrs: &mut attribute,
            numAttrs: c_uint::from(dependent),
        };
        // SAFETY: see above.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function.0.cast(),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(result, "a launch")
    }

    unsafe fn begin_capture(&self, stream: Raw) -> Result<(), Error> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: see above.
        let result = unsafe { sys::cuStreamBeginCapture_v2(stream.0.cast(), mode) };
        check(result, "cuStreamBeginCapture")
    }

    unsafe fn end_capture(&self, stream: Raw) -> Result<Raw, Error> {
        let mut graph = ptr::null_mut();
        let mut exec = ptr::null_mut();
        // SAFETY: see above; the graph is destroyed once it is instantiated.
        unsafe {
            check(
                sys::cuStreamEndCapture(stream.0.cast(), &mut graph),
                "cuStreamEndCapture",
            )?;
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            check(made, "cuGraphInstantiate")?;
        }
        Ok(Raw(exec.cast()))
    }

    unsafe fn launch_graph(&self, stream: Raw, graph: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuGraphLaunch(graph.0.cast(), stream.0.cast()) };
        check(result, "a step")
    }

    unsafe fn destroy_graph(&self, graph: Raw) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuGraphExecDestroy(graph.0.cast()) };
    }

    fn event(&self) -> Result<Raw, Error> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: see above.
        let result = unsafe { sys::cuEventCreate(&mut event, flags) };
        check(result, "cuEventCreate")?;
        Ok(Raw(event.cast()))
    }

    unsafe fn record(&self, stream: Raw, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuEventRecord(event.0.cast(), stream.0.cast()) };
        check(result, "cuEventRecord")
    }

    unsafe fn wait_for(&self, stream: Raw, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuStreamWaitEvent(stream.0.cast(), event.0.cast(), 0) };
        check(result, "cuStreamWaitEvent")
    }

    unsafe fn is_past(&self, event: Raw) -> Result<bool, Error> {
        // SAFETY: see above.
        match unsafe { sys::cuEventQuery(event.0.cast()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "what was launched").map(|()| true),
        }
    }

    unsafe fn wait_event(&self, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let result = unsafe { sys::cuEventSynchronize(event.0.cast()) };
        check(result, "what was launched")
    }

    unsafe fn destroy_event(&self, event: Raw) {
        // SAFETY: see above.
        let _ = unsafe { sys::cuEventDestroy_v2(event.0.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_functions_that_are_called_are_looked_for() {
        let code = include_str!("cuda.rs").split("mod tests").next();
        let mut called: Vec<&str> = code
            .unwrap_or_default()
            .split("sys::")
            .skip(1)
            .filter_map(|rest| rest.split('(').next())
            .filter(|name| name.starts_with("cu") && *name != "culib")
            .collect();
        called.sort_unstable();
        called.dedup();
        let mut listed = FUNCTIONS;
        listed.sort_unstable();
        assert_eq!(called, listed);
    }
}
