//! The functions of the library. Handles are numbers that stand for pointers; nothing is ever read through them.

#![allow(non_snake_case)] // their names are CUDA's
#![allow(clippy::missing_safety_doc)] // what each asks of its callers is in cuda.h

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::gpu::{
    self, INVALID_DEVICE, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NOT_READY, NOT_SUPPORTED,
    SUCCESS, Status, Work, gpu, refused, variable,
};

/// Pieces of work that a question about an event brings its stream forward.
const STEPS: usize = 32;

fn end(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(SUCCESS)
}

/// Writes what came of a call to its out-parameter.
///
/// # Safety
/// `to` is null, or may be written.
unsafe fn give<T>(to: *mut T, result: Result<T, Status>) -> Status {
    match result {
        Ok(_) if to.is_null() => INVALID_VALUE,
        Ok(value) => {
            // SAFETY: the caller's promise.
            unsafe { to.write(value) };
            SUCCESS
        }
        Err(status) => status,
    }
}

fn handle(number: u64) -> *mut c_void {
    number as *mut c_void
}

fn number(handle: *mut c_void) -> u64 {
    handle as u64
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    variable("FAKE_CUDA_INIT").map_or(SUCCESS, |status| status as Status)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    let known = match status {
        SUCCESS => c"no error",
        INVALID_VALUE => c"invalid argument",
        gpu::OUT_OF_MEMORY => c"out of memory",
        100 => c"no CUDA-capable device is detected",
        INVALID_DEVICE => c"invalid device ordinal",
        INVALID_IMAGE => c"device kernel image is invalid",
        INVALID_HANDLE => c"invalid resource handle",
        NOT_READY => c"device not ready",
        gpu::ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
        NOT_SUPPORTED => c"operation not supported",
        803 => c"system has unsupported display driver / cuda driver combination",
        gpu::CAPTURE_UNSUPPORTED => c"operation not permitted when stream is capturing",
        _ => return INVALID_VALUE,
    };
    // SAFETY: the caller's.
    unsafe { give(text, Ok(known.as_ptr())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    let number = variable("FAKE_CUDA_DRIVER").unwrap_or(13000);
    // SAFETY: the caller's.
    unsafe { give(version, Ok(number as c_int)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    let number = variable("FAKE_CUDA_DEVICES").unwrap_or(1);
    // SAFETY: the caller's.
    unsafe { give(count, Ok(number as c_int)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    let found = match ordinal {
        0 => Ok(0),
        _ => Err(INVALID_DEVICE),
    };
    // SAFETY: the caller's.
    unsafe { give(device, found) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(text: *mut c_char, len: c_int, _device: c_int) -> Status {
    let name = std::env::var("FAKE_CUDA_NAME").unwrap_or("Fake GPU".into());
    let Some(room) = usize::try_from(len).ok().filter(|&n| n > name.len()) else {
        return INVALID_VALUE;
    };
    if text.is_null() {
        return INVALID_VALUE;
    }
    let mut bytes = name.into_bytes();
    bytes.resize(room, 0);
    // SAFETY: the caller's: `len` bytes may be written.
    unsafe {
        text.cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), room)
    };
    SUCCESS
}

/// The attributes that `fastrun` asks for: `CU_DEVICE_ATTRIBUTE_…` of the compute capability and of multiprocessors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    _device: c_int,
) -> Status {
    let capability = variable("FAKE_CUDA_CAPABILITY").unwrap_or(90) as c_int;
    let found = match attribute {
        75 => Ok(capability / 10),
        76 => Ok(capability % 10),
        16 => Ok(132),
        _ => Err(INVALID_VALUE),
    };
    // SAFETY: the caller's.
    unsafe { give(value, found) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(
    context: *mut *mut c_void,
    _device: c_int,
) -> Status {
    // SAFETY: the caller's.
    unsafe { give(context, Ok(handle(1))) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Status {
    match number(context) {
        1 => SUCCESS,
        _ => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    let gpu = gpu();
    // SAFETY: the caller's.
    unsafe {
        match give(free, Ok(gpu.free_bytes() as usize)) {
            SUCCESS => give(total, Ok(gpu.total as usize)),
            status => status,
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, len: usize) -> Status {
    let start = gpu().allocate(len);
    // SAFETY: the caller's.
    unsafe { give(to, start) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(start: u64) -> Status {
    end(gpu().free(start))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(to: *mut *mut c_void, len: usize) -> Status {
    let start = gpu().allocate_host(len);
    // SAFETY: the caller's.
    unsafe { give(to, start.map(handle)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(start: *mut c_void) -> Status {
    end(gpu().free_host(number(start)))
}

/// Takes ELF files and PTX.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(
    module: *mut *mut c_void,
    image: *const c_void,
) -> Status {
    if image.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives a whole file, or a text of at least a directive.
    let start = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    let loaded = match &start {
        b"\x7fELF" | b".ver" => Ok(handle(gpu().name())),
        _ => Err(INVALID_IMAGE),
    };
    // SAFETY: the caller's.
    unsafe { give(module, loaded) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Status {
    let mut gpu = gpu();
    let found = match name.is_null() || !gpu.names.contains(&number(module)) {
        true => Err(INVALID_HANDLE),
        false => Ok(handle(gpu.name())),
    };
    // SAFETY: the caller's.
    unsafe { give(function, found) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: *mut c_void) -> Status {
    match gpu().names.remove(&number(module)) {
        true => SUCCESS,
        false => INVALID_HANDLE,
    }
}

/// Bytes of dynamic shared memory: as on an H100.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(
    function: *mut c_void,
    _attribute: c_int,
    value: c_int,
) -> Status {
    match gpu().names.contains(&number(function)) {
        true if (0..=227 << 10).contains(&value) => SUCCESS,
        true => INVALID_VALUE,
        false => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> Status {
    let id = gpu().queues.add_stream();
    // SAFETY: the caller's.
    unsafe { give(stream, Ok(handle(id))) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Status {
    end(gpu().queues.remove_stream(number(stream)).map_err(refused))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Status {
    end(gpu().drain(number(stream)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(
    stream: *mut c_void,
    event: *mut c_void,
    _flags: c_uint,
) -> Status {
    let waits = gpu().queues.wait_for(number(stream), number(event));
    end(waits.map_err(refused))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let from = from as usize;
    end(gpu().push(number(stream), Work::Upload { to, from, len }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let to = to as usize;
    end(gpu().push(number(stream), Work::Download { to, from, len }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    len: usize,
    stream: *mut c_void,
) -> Status {
    end(gpu().push(number(stream), Work::Copy { to, from, len }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: u8, len: usize, stream: *mut c_void) -> Status {
    end(gpu().push(number(stream), Work::Fill { at, value, len }))
}

/// `CUlaunchConfig`
#[repr(C)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: *mut c_void,
    attributes: *mut c_void,
    count: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: *mut c_void,
    _arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    // SAFETY: the caller's: null, or a configuration.
    let Some(config) = (unsafe { config.as_ref() }) else {
        return INVALID_VALUE;
    };
    let mut gpu = gpu();
    if !gpu.names.contains(&number(function)) {
        return INVALID_HANDLE;
    }
    let threads: u64 = config.block.iter().map(|&n| u64::from(n)).product();
    if config.grid.contains(&0) || !(1..=1024).contains(&threads) || config.shared > 227 << 10 {
        return INVALID_VALUE;
    }
    end(gpu.push(number(config.stream), Work::Launch))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, _mode: c_int) -> Status {
    if variable("FAKE_CUDA_CAPTURE") == Some(0) {
        return NOT_SUPPORTED;
    }
    end(gpu().queues.begin_capture(number(stream)).map_err(refused))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(
    stream: *mut c_void,
    graph: *mut *mut c_void,
) -> Status {
    let mut gpu = gpu();
    let kept = gpu.queues.end_capture(number(stream)).map_err(refused);
    let kept = kept.map(|ops| {
        let id = gpu.name();
        gpu.graphs.insert(id, ops);
        handle(id)
    });
    // SAFETY: the caller's.
    unsafe { give(graph, kept) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    exec: *mut *mut c_void,
    graph: *mut c_void,
    _flags: u64,
) -> Status {
    let mut gpu = gpu();
    let ops = gpu.graphs.get(&number(graph)).cloned();
    let made = ops.ok_or(INVALID_HANDLE).map(|ops| {
        let id = gpu.name();
        gpu.graphs.insert(id, ops);
        handle(id)
    });
    // SAFETY: the caller's.
    unsafe { give(exec, made) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: *mut c_void, stream: *mut c_void) -> Status {
    let mut gpu = gpu();
    if let Err(status) = gpu.health() {
        return status;
    }
    let gpu::Gpu { graphs, queues, .. } = &mut *gpu;
    match graphs.get(&number(exec)) {
        Some(ops) => end(queues.push_graph(number(stream), ops).map_err(refused)),
        None => INVALID_HANDLE,
    }
}

fn forget_graph(graph: *mut c_void) -> Status {
    match gpu().graphs.remove(&number(graph)) {
        Some(_) => SUCCESS,
        None => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: *mut c_void) -> Status {
    forget_graph(graph)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: *mut c_void) -> Status {
    forget_graph(exec)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> Status {
    let id = gpu().queues.add_event();
    // SAFETY: the caller's.
    unsafe { give(event, Ok(handle(id))) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Status {
    let recorded = gpu().queues.record(number(stream), number(event));
    end(recorded.map_err(refused))
}

/// Brings an event's stream forward by at most so many pieces of work, and tells whether it was reached.
fn reach(event: u64, steps: usize) -> Result<bool, Status> {
    let mut gpu = gpu();
    gpu.health()?;
    for _ in 0..steps {
        if gpu.queues.is_reached(event).map_err(refused)? {
            return Ok(true);
        }
        let stream = gpu.queues.recorded_in(event).map_err(refused)?;
        gpu.advance(stream)?;
    }
    gpu.queues.is_reached(event).map_err(refused)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: *mut c_void) -> Status {
    match reach(number(event), STEPS) {
        Ok(true) => SUCCESS,
        Ok(false) => NOT_READY,
        Err(status) => status,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: *mut c_void) -> Status {
    end(reach(number(event), usize::MAX).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Status {
    end(gpu().queues.remove_event(number(event)).map_err(refused))
}
