//! What the device needs of a GPU's driver, whoever made it. [`super::cuda`] and [`super::hip`] implement it; the objects of
//! [`super::handles`] are how it is used.

use std::ffi::{CStr, c_void};
use std::fmt::Debug;

use bundle_format::target::Target;

use crate::Error;

/// A place in the GPU's memory.
pub type Address = u64;

/// An object of a driver: what it is, that driver alone knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw(pub *mut c_void);

// SAFETY: a name, which is given back to the driver that made it; drivers take them from any thread.
unsafe impl Send for Raw {}
// SAFETY: see above.
unsafe impl Sync for Raw {}

/// A function of a module.
pub type Function = Raw;

/// What either driver answers that can't capture streams, by the numbers that both have for it: not supported, and all about
/// captures (`CUDA_ERROR_STREAM_CAPTURE_…`, `hipErrorStreamCapture…`).
pub const NO_GRAPHS: [u32; 10] = [801, 900, 901, 902, 903, 904, 905, 906, 907, 908];

/// A launch's arguments as either driver takes them: a pointer to each, of use as long as they are.
pub fn pointers(args: &[u64]) -> Vec<*mut c_void> {
    args.iter()
        .map(|arg| std::ptr::from_ref(arg).cast_mut().cast())
        .collect()
}

/// How wide a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    /// Bytes of shared memory that the launch adds.
    pub shared: u32,
}

/// A GPU.
#[derive(Clone, Debug)]
pub struct About {
    pub name: String,
    /// Its driver: `HIP 7.1`.
    pub runtime: String,
    /// As targets are named: `sm_90`, `gfx1151`.
    pub chip: String,
    /// Streaming multiprocessors, or compute units.
    pub processors: u32,
}

/// The functions of one GPU's driver.
///
/// # Safety
/// What the unsafe functions share: an object is one that this driver made, is of the kind that the function's name says, and
/// was not destroyed; addresses are within memory of this driver, with as many bytes behind them as are read or written; and
/// the memory that something in a stream uses stays until the stream got there. The thread has called `make_current` before
/// any of them.
pub trait Driver: Debug + Send + Sync {
    fn about(&self) -> &About;

    /// Whether code for a target runs on this GPU.
    fn runs(&self, target: Target) -> bool;

    /// Binds the GPU to this thread.
    fn make_current(&self) -> Result<(), Error>;

    /// Bytes of memory that are free, and that there are.
    fn memory(&self) -> Result<(u64, u64), Error>;

    /// A kernel in a form that `load` takes that reads memory, for measuring how fast that goes: `read_all(start, items of
    /// 16 bytes)`. None where the driver compiles nothing.
    fn read_kernel(&self) -> Option<&'static [u8]>;

    /// Memory of the GPU; `what` it is for, in errors.
    fn allocate(&self, len: u64, what: &str) -> Result<Address, Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn free(&self, start: Address);

    /// Memory of the host that copies read and write without a detour.
    fn allocate_host(&self, len: usize) -> Result<*mut u8, Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn free_host(&self, start: *mut u8);

    /// Loads an object file, which was hashed.
    fn load(&self, object: &[u8]) -> Result<Raw, Error>;
    /// A function that may be launched with `shared` bytes of shared memory.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn function(&self, module: Raw, name: &CStr, shared: u32) -> Result<Function, Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn unload(&self, module: Raw);

    fn stream(&self) -> Result<Raw, Error>;
    /// Waits until everything in a stream has run.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn wait(&self, stream: Raw) -> Result<(), Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn destroy_stream(&self, stream: Raw);

    /// # Safety
    /// As the trait says; `from` is memory of [`Driver::allocate_host`].
    unsafe fn upload(
        &self,
        stream: Raw,
        to: Address,
        from: *const u8,
        len: usize,
    ) -> Result<(), Error>;
    /// # Safety
    /// As the trait says; `to` is memory of [`Driver::allocate_host`].
    unsafe fn download(
        &self,
        stream: Raw,
        to: *mut u8,
        from: Address,
        len: usize,
    ) -> Result<(), Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn copy(&self, stream: Raw, to: Address, from: Address, len: u64) -> Result<(), Error>;
    /// Sets bytes to zero.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn clear(&self, stream: Raw, at: Address, len: u64) -> Result<(), Error>;

    /// Launches a function with arguments of 8 bytes each, of which it reads as much as it takes. `dependent`: it may start
    /// before the launch before it has ended, and waits for that by itself.
    ///
    /// # Safety
    /// As the trait says; the function takes as many arguments, and as pointers only such as it may use.
    unsafe fn launch(
        &self,
        stream: Raw,
        function: Function,
        shape: Shape,
        args: &[u64],
        dependent: bool,
    ) -> Result<(), Error>;

    /// What is put into the stream from now on is kept instead of run.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn begin_capture(&self, stream: Raw) -> Result<(), Error>;
    /// What was kept, to be launched as a whole.
    ///
    /// # Safety
    /// As the trait says; a capture was begun.
    unsafe fn end_capture(&self, stream: Raw) -> Result<Raw, Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn launch_graph(&self, stream: Raw, graph: Raw) -> Result<(), Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn destroy_graph(&self, graph: Raw);

    fn event(&self) -> Result<Raw, Error>;
    /// Marks this place of a stream.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn record(&self, stream: Raw, event: Raw) -> Result<(), Error>;
    /// What comes into the stream from now on waits for an event of another.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn wait_for(&self, stream: Raw, event: Raw) -> Result<(), Error>;
    /// Whether its stream got to an event.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn is_past(&self, event: Raw) -> Result<bool, Error>;
    /// Waits until its stream got to an event.
    ///
    /// # Safety
    /// As the trait says.
    unsafe fn wait_event(&self, event: Raw) -> Result<(), Error>;
    /// # Safety
    /// As the trait says.
    unsafe fn destroy_event(&self, event: Raw);
}
