//! AMD's HIP runtime, loaded where there is one.
//!
//! Functions, numbers and structures are those of hip_runtime_api.h, version 6 and later.

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use bundle_format::target::Target;
use libloading::Library;

use super::driver::{About, Address, Driver, Function, NO_GRAPHS, Raw, Shape, pointers};
use crate::Error;

/// Names the library, instead of the usual places.
const VARIABLE: &str = "FASTRUN_HIP";

/// The library's names, the latest first.
const NAMES: [&str; 3] = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"];

/// The least version that has all that is used here: 6.0, as `hipRuntimeGetVersion` writes it.
const VERSION: c_int = 60_000_000;

/// `hipDeviceProp_tR0600`: its size, and where in it are the C string `gcnArchName` and the int `multiProcessorCount`.
const PROPERTIES: usize = 1472;
const ARCH_NAME: usize = 1160;
const PROCESSORS: usize = 388;

type Status = c_int;

const SUCCESS: Status = 0;
const OUT_OF_MEMORY: Status = 2;
const NO_DEVICE: Status = 100;
const NO_BINARY_FOR_GPU: Status = 209;
const NOT_READY: Status = 600;

/// What a GPU reports that reached for memory that isn't there, or that stopped in the middle of a kernel: illegal address,
/// launch out of resources, launch timeout, assert, launch failure; HSA's memory and other failures.
const FAULTS: [Status; 7] = [700, 701, 702, 710, 719, 1052, 1053];

const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;
const CAPTURE_THREAD_LOCAL: c_int = 1;

/// Declares the functions that are used, and how they are found.
macro_rules! functions {
    ($($field:ident: $symbol:ident ($($arg:ty),*);)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($arg),*) -> Status,)*
            error_string: unsafe extern "C" fn(Status) -> *const c_char,
        }

        impl Functions {
            /// # Safety
            /// The library is a HIP runtime.
            unsafe fn find(library: &Library) -> Result<Functions, libloading::Error> {
                // SAFETY: the types are those of the header.
                unsafe {
                    Ok(Functions {
                        $($field: *library.get(stringify!($symbol).as_bytes())?,)*
                        error_string: *library.get(b"hipGetErrorString")?,
                    })
                }
            }

            /// Those of the simulator, which is part of this program.
            #[cfg(feature = "sim")]
            fn simulated() -> Functions {
                Functions {
                    $($field: gfx11_hip::$symbol,)*
                    error_string: gfx11_hip::hipGetErrorString,
                }
            }
        }
    };
}

functions! {
    init: hipInit (c_uint);
    version: hipRuntimeGetVersion (*mut c_int);
    count: hipGetDeviceCount (*mut c_int);
    set_device: hipSetDevice (c_int);
    properties: hipGetDevicePropertiesR0600 (*mut c_void, c_int);
    memory: hipMemGetInfo (*mut usize, *mut usize);
    malloc: hipMalloc (*mut *mut c_void, usize);
    free: hipFree (*mut c_void);
    host_malloc: hipHostMalloc (*mut *mut c_void, usize, c_uint);
    host_free: hipHostFree (*mut c_void);
    module_load: hipModuleLoadData (*mut *mut c_void, *const c_void);
    module_function: hipModuleGetFunction (*mut *mut c_void, *mut c_void, *const c_char);
    module_unload: hipModuleUnload (*mut c_void);
    stream_create: hipStreamCreateWithFlags (*mut *mut c_void, c_uint);
    stream_destroy: hipStreamDestroy (*mut c_void);
    stream_synchronize: hipStreamSynchronize (*mut c_void);
    stream_wait_event: hipStreamWaitEvent (*mut c_void, *mut c_void, c_uint);
    upload: hipMemcpyHtoDAsync (*mut c_void, *const c_void, usize, *mut c_void);
    download: hipMemcpyDtoHAsync (*mut c_void, *mut c_void, usize, *mut c_void);
    copy: hipMemcpyDtoDAsync (*mut c_void, *mut c_void, usize, *mut c_void);
    memset: hipMemsetAsync (*mut c_void, c_int, usize, *mut c_void);
    launch: hipModuleLaunchKernel (
        *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void
    );
    begin_capture: hipStreamBeginCapture (*mut c_void, c_int);
    end_capture: hipStreamEndCapture (*mut c_void, *mut *mut c_void);
    graph_instantiate: hipGraphInstantiate (*mut *mut c_void, *mut c_void, *mut *mut c_void, *mut c_char, usize);
    graph_launch: hipGraphLaunch (*mut c_void, *mut c_void);
    graph_destroy: hipGraphDestroy (*mut c_void);
    graph_exec_destroy: hipGraphExecDestroy (*mut c_void);
    event_create: hipEventCreateWithFlags (*mut *mut c_void, c_uint);
    event_record: hipEventRecord (*mut c_void, *mut c_void);
    event_query: hipEventQuery (*mut c_void);
    event_synchronize: hipEventSynchronize (*mut c_void);
    event_destroy: hipEventDestroy (*mut c_void);
}

/// A GPU of AMD's.
pub struct Hip {
    functions: Functions,
    about: About,
    /// The functions are in it; none: in this program. It is kept open, and asked for nothing else.
    #[cfg_attr(not(feature = "sim"), allow(dead_code))]
    library: Option<Library>,
}

impl std::fmt::Debug for Hip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hip").field(&self.about).finish()
    }
}

impl Hip {
    /// Opens the first GPU (`HIP_VISIBLE_DEVICES` chooses among several).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no runtime, an older one, or no GPU.
    pub fn open() -> Result<Arc<Hip>, Error> {
        let named = std::env::var_os(VARIABLE).filter(|v| !v.is_empty());
        let (library, functions) = load(&places(named))?;
        Self::of(functions, Some(library))
    }

    /// Opens the simulator of a gfx1151, which executes a bundle's kernels on this processor.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it is not part of this program.
    pub fn simulated() -> Result<Arc<Hip>, Error> {
        #[cfg(feature = "sim")]
        {
            Self::of(Functions::simulated(), None)
        }
        #[cfg(not(feature = "sim"))]
        {
            Err(Error::Unsupported(
                "this program was built without the simulator of gfx1151; build one that has it: cargo build --release -p \
                 fastrun --features sim"
                    .into(),
            ))
        }
    }

    fn of(functions: Functions, library: Option<Library>) -> Result<Arc<Hip>, Error> {
        let mut hip = Hip {
            functions,
            about: About {
                name: String::new(),
                runtime: String::new(),
                chip: String::new(),
                processors: 0,
            },
            library,
        };
        hip.look()?;
        Ok(Arc::new(hip))
    }

    /// Finds the GPU, and what it is.
    fn look(&mut self) -> Result<(), Error> {
        let no = |text: String| Err(Error::Unsupported(text));
        let number = |v: c_int| format!("{}.{}", v / 10_000_000, v / 100_000 % 100);
        let f = &self.functions;
        let (mut version, mut count) = (0, 0);
        let mut properties = [0u64; PROPERTIES / 8];
        // SAFETY: out-parameters are of the types that the library writes; the properties are as long as theirs.
        unsafe {
            if let Err(error) = self.check((f.init)(0), "hipInit") {
                return no(format!(
                    "this bundle is for an AMD GPU, and none can be used here: {}; fastrun doctor looks further",
                    error.text()
                ));
            }
            self.check((f.version)(&mut version), "hipRuntimeGetVersion")?;
            if version < VERSION {
                return no(format!(
                    "the HIP runtime has version {}; expected {} or later: update ROCm",
                    number(version),
                    number(VERSION)
                ));
            }
            let counted = (f.count)(&mut count);
            if counted != NO_DEVICE {
                self.check(counted, "hipGetDeviceCount")?;
            }
            if counted == NO_DEVICE || count == 0 {
                return no(
                    "this bundle is for an AMD GPU, and HIP sees none here; fastrun doctor looks further".into(),
                );
            }
            self.check((f.set_device)(0), "hipSetDevice")?;
            let told = (f.properties)(properties.as_mut_ptr().cast(), 0);
            self.check(told, "hipGetDevicePropertiesR0600")?;
        }
        let bytes: Vec<u8> = properties.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let text = |at: usize| {
            let string = bytes[at..at + 256].split(|&b| b == 0).next();
            String::from_utf8_lossy(string.unwrap_or_default()).into_owned()
        };
        let mut processors = [0; 4];
        processors.copy_from_slice(&bytes[PROCESSORS..PROCESSORS + 4]);
        // "gfx1151:sramecc-:xnack-"
        let arch = text(ARCH_NAME);
        let chip = arch.split(':').next().unwrap_or_default();
        if !chip.starts_with("gfx") {
            return no(format!(
                "HIP tells {arch:?} for what its GPU is, where a name like gfx1151 is expected; update ROCm"
            ));
        }
        self.about = About {
            name: text(0),
            runtime: format!("HIP {}", number(version)),
            chip: chip.to_string(),
            processors: u32::from_ne_bytes(processors),
        };
        Ok(())
    }

    /// What the simulator knows of a fault, where it is the GPU: kernel, lane, address and instruction.
    fn simulated_fault(&self) -> Option<String> {
        #[cfg(feature = "sim")]
        if self.library.is_none() {
            return gfx11_hip::last_fault();
        }
        None
    }

    /// Turns a status of the library into ours.
    fn check(&self, status: Status, what: &str) -> Result<(), Error> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the library gives a static string for any number, or null.
        let said = unsafe {
            let text = (self.functions.error_string)(status);
            match text.is_null() {
                true => "unknown error".into(),
                false => CStr::from_ptr(text).to_string_lossy().into_owned(),
            }
        };
        let text = format!("HIP: {what}: {said} ({status})");
        Err(match status {
            OUT_OF_MEMORY => Error::User(format!(
                "{text}; free some of the GPU's memory, raise its share (fastrun doctor tells how), or compile the model with a \
                 smaller --ctx or --max-batch"
            )),
            NO_BINARY_FOR_GPU => Error::Unsupported(format!(
                "{text}: the bundle's kernels are not for this GPU ({}); compile the model for it",
                self.about.chip
            )),
            status if NO_GRAPHS.contains(&status.cast_unsigned()) => Error::Unsupported(text),
            status if FAULTS.contains(&status) => Error::Fault(match self.simulated_fault() {
                Some(fault) => format!("{text}: {fault}"),
                None => text,
            }),
            _ => Error::Bug(text),
        })
    }
}

// SAFETY of all blocks below: the library's functions with the signatures of its header; objects are the library's own and
// live, memory is as long as is read or written: what `Driver` asks of its callers. Out-parameters are of the types that
// are written. Errors of giving something back have nobody to be told to.
impl Driver for Hip {
    fn about(&self) -> &About {
        &self.about
    }

    fn runs(&self, target: Target) -> bool {
        self.about.chip == target.name()
    }

    fn make_current(&self) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.set_device)(0) };
        self.check(status, "hipSetDevice")
    }

    fn memory(&self) -> Result<(u64, u64), Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: see above.
        let status = unsafe { (self.functions.memory)(&mut free, &mut total) };
        self.check(status, "hipMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    fn read_kernel(&self) -> Option<&'static [u8]> {
        None
    }

    fn allocate(&self, len: u64, what: &str) -> Result<Address, Error> {
        let mut start = ptr::null_mut();
        // SAFETY: see above.
        let status = unsafe { (self.functions.malloc)(&mut start, len as usize) };
        self.check(status, &format!("{len} bytes for {what}"))?;
        Ok(start as Address)
    }

    unsafe fn free(&self, start: Address) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.free)(start as *mut c_void) };
    }

    fn allocate_host(&self, len: usize) -> Result<*mut u8, Error> {
        let mut start = ptr::null_mut();
        // SAFETY: see above.
        let status = unsafe { (self.functions.host_malloc)(&mut start, len, 0) };
        self.check(status, "pinned memory of the host")?;
        Ok(start.cast())
    }

    unsafe fn free_host(&self, start: *mut u8) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.host_free)(start.cast()) };
    }

    fn load(&self, object: &[u8]) -> Result<Raw, Error> {
        let mut module = ptr::null_mut();
        // SAFETY: the object is a whole ELF file, as its own header says.
        let status = unsafe { (self.functions.module_load)(&mut module, object.as_ptr().cast()) };
        self.check(status, "the bundle's kernels can't be loaded")?;
        Ok(Raw(module))
    }

    /// Shared memory needs no leave here: a workgroup may have all that there is.
    unsafe fn function(&self, module: Raw, name: &CStr, _shared: u32) -> Result<Function, Error> {
        let mut function = ptr::null_mut();
        // SAFETY: see above.
        let status =
            unsafe { (self.functions.module_function)(&mut function, module.0, name.as_ptr()) };
        self.check(status, &format!("kernel {}", name.to_string_lossy()))?;
        Ok(Raw(function))
    }

    unsafe fn unload(&self, module: Raw) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.module_unload)(module.0) };
    }

    fn stream(&self) -> Result<Raw, Error> {
        let mut stream = ptr::null_mut();
        // SAFETY: see above.
        let status = unsafe { (self.functions.stream_create)(&mut stream, STREAM_NON_BLOCKING) };
        self.check(status, "hipStreamCreateWithFlags")?;
        Ok(Raw(stream))
    }

    unsafe fn wait(&self, stream: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.stream_synchronize)(stream.0) };
        self.check(status, "what was launched")
    }

    unsafe fn destroy_stream(&self, stream: Raw) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.stream_destroy)(stream.0) };
    }

    unsafe fn upload(
        &self,
        stream: Raw,
        to: Address,
        from: *const u8,
        len: usize,
    ) -> Result<(), Error> {
        // SAFETY: see above.
        let status =
            unsafe { (self.functions.upload)(to as *mut c_void, from.cast(), len, stream.0) };
        self.check(status, "a copy to the GPU")
    }

    unsafe fn download(
        &self,
        stream: Raw,
        to: *mut u8,
        from: Address,
        len: usize,
    ) -> Result<(), Error> {
        // SAFETY: see above.
        let status =
            unsafe { (self.functions.download)(to.cast(), from as *mut c_void, len, stream.0) };
        self.check(status, "a copy from the GPU")
    }

    unsafe fn copy(&self, stream: Raw, to: Address, from: Address, len: u64) -> Result<(), Error> {
        let (to, from) = (to as *mut c_void, from as *mut c_void);
        // SAFETY: see above.
        let status = unsafe { (self.functions.copy)(to, from, len as usize, stream.0) };
        self.check(status, "a copy within the GPU")
    }

    unsafe fn clear(&self, stream: Raw, at: Address, len: u64) -> Result<(), Error> {
        // SAFETY: see above.
        let status =
            unsafe { (self.functions.memset)(at as *mut c_void, 0, len as usize, stream.0) };
        self.check(status, "clearing memory of the GPU")
    }

    /// Launches of a stream follow one another, whether they are `dependent` or not.
    unsafe fn launch(
        &self,
        stream: Raw,
        function: Function,
        shape: Shape,
        args: &[u64],
        _dependent: bool,
    ) -> Result<(), Error> {
        let mut pointers = pointers(args);
        let [x, y, z] = shape.grid;
        // SAFETY: see above.
        let status = unsafe {
            (self.functions.launch)(
                function.0,
                x,
                y,
                z,
                shape.threads,
                1,
                1,
                shape.shared,
                stream.0,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check(status, "a launch")
    }

    unsafe fn begin_capture(&self, stream: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.begin_capture)(stream.0, CAPTURE_THREAD_LOCAL) };
        self.check(status, "hipStreamBeginCapture")
    }

    unsafe fn end_capture(&self, stream: Raw) -> Result<Raw, Error> {
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        let f = &self.functions;
        // SAFETY: see above; the graph is destroyed once it is instantiated.
        unsafe {
            self.check((f.end_capture)(stream.0, &mut graph), "hipStreamEndCapture")?;
            let (no_node, no_log) = (ptr::null_mut(), ptr::null_mut());
            let made = (f.graph_instantiate)(&mut exec, graph, no_node, no_log, 0);
            let _ = (f.graph_destroy)(graph);
            self.check(made, "hipGraphInstantiate")?;
        }
        Ok(Raw(exec))
    }

    unsafe fn launch_graph(&self, stream: Raw, graph: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.graph_launch)(graph.0, stream.0) };
        self.check(status, "a step")
    }

    unsafe fn destroy_graph(&self, graph: Raw) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.graph_exec_destroy)(graph.0) };
    }

    fn event(&self) -> Result<Raw, Error> {
        let mut event = ptr::null_mut();
        // SAFETY: see above.
        let status = unsafe { (self.functions.event_create)(&mut event, EVENT_DISABLE_TIMING) };
        self.check(status, "hipEventCreateWithFlags")?;
        Ok(Raw(event))
    }

    unsafe fn record(&self, stream: Raw, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.event_record)(event.0, stream.0) };
        self.check(status, "hipEventRecord")
    }

    unsafe fn wait_for(&self, stream: Raw, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.stream_wait_event)(stream.0, event.0, 0) };
        self.check(status, "hipStreamWaitEvent")
    }

    unsafe fn is_past(&self, event: Raw) -> Result<bool, Error> {
        // SAFETY: see above.
        match unsafe { (self.functions.event_query)(event.0) } {
            NOT_READY => Ok(false),
            status => self.check(status, "what was launched").map(|()| true),
        }
    }

    unsafe fn wait_event(&self, event: Raw) -> Result<(), Error> {
        // SAFETY: see above.
        let status = unsafe { (self.functions.event_synchronize)(event.0) };
        self.check(status, "what was launched")
    }

    unsafe fn destroy_event(&self, event: Raw) {
        // SAFETY: see above.
        let _ = unsafe { (self.functions.event_destroy)(event.0) };
    }
}

/// Where the library is looked for: what the variable names, or by its names where the system's loader looks, then where
/// ROCm is installed.
fn places(named: Option<OsString>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named.into()];
    }
    let names = NAMES.into_iter();
    let installed = names
        .clone()
        .map(|n| PathBuf::from("/opt/rocm/lib").join(n));
    names.map(PathBuf::from).chain(installed).collect()
}

/// The library at the first place that has it.
fn load(places: &[PathBuf]) -> Result<(Library, Functions), Error> {
    let mut said = String::new();
    for place in places {
        // SAFETY: loading runs the library's initialisers; AMD's only set up its own state.
        match unsafe { Library::new(place) } {
            Ok(library) => {
                // SAFETY: it has the name of the HIP runtime, or the user says that it is one.
                let functions = unsafe { Functions::find(&library) }.map_err(|e| {
                    Error::Unsupported(format!(
                        "{} lacks a function of the HIP runtime of version 6: {e}; update ROCm",
                        place.display()
                    ))
                })?;
                return Ok((library, functions));
            }
            Err(error) => said = error.to_string(),
        }
    }
    Err(Error::Unsupported(format!(
        "this bundle is for an AMD GPU, but the HIP runtime (libamdhip64.so) is not here: {said}. Install ROCm 6 or later, name the \
         library in {VARIABLE}, or compile the model for this machine (fastc compile --target cpu)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_is_the_only_place() {
        assert_eq!(places(Some("/a/b.so".into())), [PathBuf::from("/a/b.so")]);
        let all = places(None);
        assert_eq!(all.len(), 2 * NAMES.len());
        assert_eq!(all[0], PathBuf::from(NAMES[0]));
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_do() {
        let Err(Error::Unsupported(text)) = load(&["/nowhere/libamdhip64.so".into()]) else {
            panic!("there is no such library");
        };
        for part in ["/nowhere/libamdhip64.so", "ROCm 6", VARIABLE] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn another_library_is_not_taken_for_it() {
        // Any program has this one.
        let Err(Error::Unsupported(text)) = load(&["libc.so.6".into()]) else {
            panic!("the C library is no HIP runtime");
        };
        assert!(text.contains("hipInit"), "{text}");
    }
}
