//! The functions of the library. Handles are numbers that stand for pointers; nothing is ever read through them.

#![allow(non_snake_case)] // their names are HIP's
#![allow(clippy::missing_safety_doc)] // what each asks of its callers is in hip_runtime_api.h

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use gfx11_sim::Kernel;

use crate::properties;
use crate::runtime::{Launch, Runtime, Work, refused, runtime};
use crate::status::{self, Status};

/// `hipRuntimeGetVersion`: 7.1.
const VERSION: c_int = 70_100_000;

/// Alignment of host memory: a page.
const PAGE: usize = 4096;

/// Pieces of work that a question about an event brings its stream forward.
const STEPS: usize = 32;

fn end(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(status::SUCCESS)
}

/// Writes what came of a call to its out-parameter.
///
/// # Safety
/// `to` is null, or may be written.
unsafe fn give<T>(to: *mut T, result: Result<T, Status>) -> Status {
    match result {
        Ok(_) if to.is_null() => status::INVALID_VALUE,
        Ok(value) => {
            // SAFETY: the caller's promise.
            unsafe { to.write(value) };
            status::SUCCESS
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
pub extern "C" fn hipInit(flags: c_uint) -> Status {
    match flags {
        0 => status::SUCCESS,
        _ => status::INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipRuntimeGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { give(version, Ok(VERSION)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetDeviceCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's.
    unsafe { give(count, Ok(1)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipSetDevice(device: c_int) -> Status {
    match device {
        0 => status::SUCCESS,
        _ => status::INVALID_DEVICE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetDevicePropertiesR0600(to: *mut c_void, device: c_int) -> Status {
    match device {
        0 => {
            let bytes = properties::properties(runtime().total);
            // SAFETY: the caller's; a byte array has no alignment.
            unsafe { give(to.cast::<[u8; properties::BYTES]>(), Ok(bytes)) }
        }
        _ => status::INVALID_DEVICE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipGetErrorString(status: Status) -> *const c_char {
    status::text(status).as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemGetInfo(free: *mut usize, total: *mut usize) -> Status {
    let runtime = runtime();
    // SAFETY: the caller's.
    unsafe {
        match give(free, Ok(runtime.free_bytes() as usize)) {
            status::SUCCESS => give(total, Ok(runtime.total as usize)),
            status => status,
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMalloc(to: *mut *mut c_void, len: usize) -> Status {
    let start = runtime().allocate(len as u64);
    // SAFETY: the caller's.
    unsafe { give(to, start.map(handle)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipFree(start: *mut c_void) -> Status {
    match start.is_null() {
        true => status::SUCCESS,
        false => end(runtime().free(number(start))),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostMalloc(to: *mut *mut c_void, len: usize, _flags: c_uint) -> Status {
    let Ok(layout) = Layout::from_size_align(len.max(1), PAGE) else {
        return status::INVALID_VALUE;
    };
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return status::OUT_OF_MEMORY;
    }
    runtime().host.insert(start as usize, layout);
    // SAFETY: the caller's.
    unsafe { give(to, Ok(start.cast())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostFree(start: *mut c_void) -> Status {
    match runtime().host.remove(&(start as usize)) {
        Some(layout) => {
            // SAFETY: it was allocated with this layout, and is nobody's any more.
            unsafe { dealloc(start.cast(), layout) };
            status::SUCCESS
        }
        None => status::INVALID_VALUE,
    }
}

/// Bytes of an ELF file: where its last section header ends, or its last segment or section.
///
/// # Safety
/// `image` points to a whole ELF file.
unsafe fn elf_len(image: *const u8) -> Option<usize> {
    // SAFETY: a whole file has its header; the tables are where that says.
    unsafe {
        if std::slice::from_raw_parts(image, 4) != b"\x7fELF" {
            return None;
        }
        let u16_at = |at: usize| usize::from(image.add(at).cast::<u16>().read_unaligned());
        let u64_at = |at: usize| image.add(at).cast::<u64>().read_unaligned() as usize;
        let (sections, size, count) = (u64_at(40), u16_at(58), u16_at(60));
        let (segments, segment_size, segment_count) = (u64_at(32), u16_at(54), u16_at(56));
        let mut len = (sections + size * count).max(segments + segment_size * segment_count);
        for i in 0..count {
            let at = sections + i * size;
            // SHT_NOBITS has no bytes in the file.
            let kind = image.add(at + 4).cast::<u32>().read_unaligned();
            if kind != 8 {
                len = len.max(u64_at(at + 24) + u64_at(at + 32));
            }
        }
        Some(len)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleLoadData(
    module: *mut *mut c_void,
    image: *const c_void,
) -> Status {
    if image.is_null() {
        return status::INVALID_VALUE;
    }
    // SAFETY: the caller gives a whole file.
    let object = unsafe {
        elf_len(image.cast()).map(|len| std::slice::from_raw_parts(image.cast::<u8>(), len))
    };
    let loaded = match object {
        Some(object) => runtime().load(object),
        None => Err(status::INVALID_IMAGE),
    };
    // SAFETY: the caller's.
    unsafe { give(module, loaded.map(handle)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Status {
    if name.is_null() {
        return status::INVALID_VALUE;
    }
    // SAFETY: the caller gives a string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let mut runtime = runtime();
    let kernel = match runtime.modules.get(&number(module)) {
        Some(object) => object.kernel(&name).cloned().ok_or(status::NOT_FOUND),
        None => Err(status::INVALID_HANDLE),
    };
    let found = kernel.map(|kernel| {
        let id = runtime.number();
        runtime.functions.insert(id, kernel);
        handle(id)
    });
    // SAFETY: the caller's.
    unsafe { give(function, found) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipModuleUnload(module: *mut c_void) -> Status {
    match runtime().modules.remove(&number(module)) {
        Some(_) => status::SUCCESS,
        None => status::INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamCreateWithFlags(
    stream: *mut *mut c_void,
    _flags: c_uint,
) -> Status {
    let id = runtime().queues.add_stream();
    // SAFETY: the caller's.
    unsafe { give(stream, Ok(handle(id))) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipStreamDestroy(stream: *mut c_void) -> Status {
    end(runtime()
        .queues
        .remove_stream(number(stream))
        .map_err(refused))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipStreamSynchronize(stream: *mut c_void) -> Status {
    end(runtime().drain(number(stream)))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipStreamWaitEvent(
    stream: *mut c_void,
    event: *mut c_void,
    _flags: c_uint,
) -> Status {
    let mut runtime = runtime();
    let waits = runtime.queues.wait_for(number(stream), number(event));
    end(waits.map_err(refused))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipMemcpyHtoDAsync(
    to: *mut c_void,
    from: *const c_void,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let work = Work::Upload {
        to: number(to),
        from: from as usize,
        len,
    };
    end(runtime().push(number(stream), work))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipMemcpyDtoHAsync(
    to: *mut c_void,
    from: *mut c_void,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let work = Work::Download {
        to: to as usize,
        from: number(from),
        len,
    };
    end(runtime().push(number(stream), work))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipMemcpyDtoDAsync(
    to: *mut c_void,
    from: *mut c_void,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let work = Work::Copy {
        to: number(to),
        from: number(from),
        len: len as u64,
    };
    end(runtime().push(number(stream), work))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipMemsetAsync(
    at: *mut c_void,
    value: c_int,
    len: usize,
    stream: *mut c_void,
) -> Status {
    let work = Work::Fill {
        at: number(at),
        value: value as u8,
        len: len as u64,
    };
    end(runtime().push(number(stream), work))
}

/// A launch's arguments, as they lie in memory: what the caller's pointers point to. The simulator adds what a runtime knows.
///
/// # Safety
/// Each pointer points to as many bytes as its argument has.
unsafe fn arguments(kernel: &Kernel, pointers: *mut *mut c_void) -> Result<Vec<u8>, Status> {
    let explicit = kernel.metadata.args.iter().filter(|arg| !arg.is_hidden());
    let mut bytes = vec![];
    for (i, arg) in explicit.enumerate() {
        if pointers.is_null() {
            return Err(status::INVALID_VALUE);
        }
        // SAFETY: the caller gave a pointer for each argument.
        let from = unsafe { pointers.add(i).read() };
        if from.is_null() {
            return Err(status::INVALID_VALUE);
        }
        let (at, size) = (arg.offset as usize, arg.size as usize);
        if bytes.len() < at + size {
            bytes.resize(at + size, 0);
        }
        // SAFETY: the caller's promise.
        let value = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
        bytes[at..at + size].copy_from_slice(value);
    }
    Ok(bytes)
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // they are HIP's
pub unsafe extern "C" fn hipModuleLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    pointers: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    let mut runtime = runtime();
    if !extra.is_null() {
        return status::NOT_SUPPORTED;
    }
    let Some(kernel) = runtime.functions.get(&number(function)).cloned() else {
        return status::INVALID_HANDLE;
    };
    let mut launch = Launch {
        kernel,
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared,
        arguments: vec![],
    };
    if launch.grid.contains(&0) || launch.block.contains(&0) {
        return status::INVALID_VALUE;
    }
    // SAFETY: the caller's.
    launch.arguments = match unsafe { arguments(&launch.kernel, pointers) } {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    let pushed = runtime.push(number(stream), Work::Launch(Box::new(launch)));
    end(pushed.and_then(|()| match runtime.serial {
        true => runtime.drain(number(stream)),
        false => Ok(()),
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipStreamBeginCapture(stream: *mut c_void, _mode: c_int) -> Status {
    let mut runtime = runtime();
    if !runtime.captures {
        return status::NOT_SUPPORTED;
    }
    end(runtime
        .queues
        .begin_capture(number(stream))
        .map_err(refused))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamEndCapture(
    stream: *mut c_void,
    graph: *mut *mut c_void,
) -> Status {
    let mut runtime = runtime();
    let kept = runtime.queues.end_capture(number(stream)).map_err(refused);
    let kept = kept.map(|ops| {
        let id = runtime.number();
        runtime.graphs.insert(id, ops);
        handle(id)
    });
    // SAFETY: the caller's.
    unsafe { give(graph, kept) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphInstantiate(
    exec: *mut *mut c_void,
    graph: *mut c_void,
    _node: *mut *mut c_void,
    _log: *mut c_char,
    _log_len: usize,
) -> Status {
    let mut runtime = runtime();
    let ops = runtime.graphs.get(&number(graph)).cloned();
    let made = ops.ok_or(status::INVALID_HANDLE).map(|ops| {
        let id = runtime.number();
        runtime.graphs.insert(id, ops);
        handle(id)
    });
    // SAFETY: the caller's.
    unsafe { give(exec, made) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipGraphLaunch(exec: *mut c_void, stream: *mut c_void) -> Status {
    let mut runtime = runtime();
    if let Err(status) = runtime.health() {
        return status;
    }
    let Runtime { graphs, queues, .. } = &mut *runtime;
    match graphs.get(&number(exec)) {
        Some(ops) => end(queues.push_graph(number(stream), ops).map_err(refused)),
        None => status::INVALID_HANDLE,
    }
}

fn forget_graph(graph: *mut c_void) -> Status {
    match runtime().graphs.remove(&number(graph)) {
        Some(_) => status::SUCCESS,
        None => status::INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipGraphDestroy(graph: *mut c_void) -> Status {
    forget_graph(graph)
}

#[unsafe(no_mangle)]
pub extern "C" fn hipGraphExecDestroy(exec: *mut c_void) -> Status {
    forget_graph(exec)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventCreateWithFlags(
    event: *mut *mut c_void,
    _flags: c_uint,
) -> Status {
    let id = runtime().queues.add_event();
    // SAFETY: the caller's.
    unsafe { give(event, Ok(handle(id))) }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipEventRecord(event: *mut c_void, stream: *mut c_void) -> Status {
    let mut runtime = runtime();
    let recorded = runtime.queues.record(number(stream), number(event));
    end(recorded.map_err(refused))
}

/// Brings an event's stream forward by at most so many pieces of work, and tells whether it was reached.
fn reach(runtime: &mut Runtime, event: u64, steps: usize) -> Result<bool, Status> {
    runtime.health()?;
    for _ in 0..steps {
        if runtime.queues.is_reached(event).map_err(refused)? {
            return Ok(true);
        }
        let stream = runtime.queues.recorded_in(event).map_err(refused)?;
        runtime.advance(stream)?;
    }
    runtime.queues.is_reached(event).map_err(refused)
}

#[unsafe(no_mangle)]
pub extern "C" fn hipEventQuery(event: *mut c_void) -> Status {
    match reach(&mut runtime(), number(event), STEPS) {
        Ok(true) => status::SUCCESS,
        Ok(false) => status::NOT_READY,
        Err(status) => status,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hipEventSynchronize(event: *mut c_void) -> Status {
    end(reach(&mut runtime(), number(event), usize::MAX).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn hipEventDestroy(event: *mut c_void) -> Status {
    end(runtime()
        .queues
        .remove_event(number(event))
        .map_err(refused))
}
