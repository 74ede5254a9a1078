//! How fast a GPU reads its memory: the limit of whatever reads all weights for each token.

use std::time::{Duration, Instant};

use super::driver::Shape;
use super::handles::{Gpu, Memory, Module, Stream};
use crate::Error;

/// Bytes that are read: many times what caches hold.
const BYTES: u64 = 1 << 30;
/// Readings behind one another, and such runs, the best of which counts.
const SWEEPS: u32 = 16;
const RUNS: u32 = 4;

const THREADS: u32 = 512;
const BLOCKS_PER_PROCESSOR: u32 = 4;

/// Reads `count` items of 16 bytes from `start` on, each thread one after the other, and writes their sum where it is never
/// needed, so that they are read. For the compiler of NVIDIA's driver, hence the NUL.
pub const PTX: &[u8] = b"\
.version 8.0
.target sm_80
.address_size 64
.visible .entry read_all(.param .u64 start, .param .u64 count)
{
    .reg .pred %more;
    .reg .pred %odd;
    .reg .b32 %sum, %a, %b, %c, %d, %block, %thread, %width, %blocks;
    .reg .b64 %from, %end, %count, %at, %step;
    ld.param.u64 %from, [start];
    ld.param.u64 %count, [count];
    cvta.to.global.u64 %from, %from;
    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %blocks, %nctaid.x;
    mad.lo.u32 %thread, %block, %width, %thread;
    mad.wide.u32 %at, %thread, 16, %from;
    mul.lo.u32 %blocks, %blocks, %width;
    mul.wide.u32 %step, %blocks, 16;
    shl.b64 %end, %count, 4;
    add.u64 %end, %from, %end;
    mov.u32 %sum, 0;
    setp.ge.u64 %more, %at, %end;
    @%more bra done;
next:
    ld.global.L1::no_allocate.v4.u32 {%a, %b, %c, %d}, [%at];
    xor.b32 %a, %a, %b;
    xor.b32 %c, %c, %d;
    xor.b32 %a, %a, %c;
    xor.b32 %sum, %sum, %a;
    add.u64 %at, %at, %step;
    setp.lt.u64 %more, %at, %end;
    @%more bra next;
    setp.eq.u32 %odd, %sum, 305419896;
    @%odd st.global.u32 [%from], %sum;
done:
    ret;
}
\0";

/// Bytes a second. Where a driver has no kernel for it, copies within the memory stand for reading: both what they read and
/// what they write counts.
///
/// # Errors
/// [`Error::User`] where memory to read is missing.
pub fn read_rate(gpu: &Gpu, stream: &Stream) -> Result<f64, Error> {
    let memory = Memory::new(gpu, BYTES, "measuring how fast memory is read")?;
    stream.clear(memory.start, BYTES)?;
    let sweep: Box<dyn Fn() -> Result<(), Error>> = match gpu.read_kernel() {
        Some(source) => {
            let module = Module::load(gpu, source)?;
            let function = module.function("read_all", 0)?;
            let shape = Shape {
                grid: [gpu.about().processors * BLOCKS_PER_PROCESSOR, 1, 1],
                threads: THREADS,
                shared: 0,
            };
            let args = [memory.start, BYTES / 16];
            Box::new(move || {
                // The function lives as long as its module.
                let _ = &module;
                stream.launch(function, shape, &args, false)
            })
        }
        None => {
            let (low, high) = (memory.start, memory.start + BYTES / 2);
            Box::new(move || stream.copy(high, low, BYTES / 2))
        }
    };
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        stream.wait()?;
        let start = Instant::now();
        for _ in 0..SWEEPS {
            sweep()?;
        }
        stream.wait()?;
        best = best.min(start.elapsed());
    }
    Ok(BYTES as f64 * f64::from(SWEEPS) / best.as_secs_f64())
}
