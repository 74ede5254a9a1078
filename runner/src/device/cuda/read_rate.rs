//! How fast a GPU reads its memory: the limit of whatever reads all weights for each token.

use std::time::{Duration, Instant};

use super::driver::{Gpu, Memory, Module, Shape, Stream};
use crate::Error;

/// Bytes that are read: many times what caches hold.
const BYTES: u64 = 1 << 30;
/// Readings behind one another, and such runs, the best of which counts.
const SWEEPS: u32 = 16;
const RUNS: u32 = 4;

const THREADS: u32 = 512;
const BLOCKS_PER_PROCESSOR: u32 = 4;

/// Reads `count` items of 16 bytes from `start` on, each thread one after the other, and writes their sum where it is never
/// needed, so that they are read. For the driver's own compiler.
const KERNEL: &str = "\
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
";

/// Bytes a second.
///
/// # Errors
/// [`Error::User`] where memory to read is missing.
pub fn read_rate(gpu: &Gpu, stream: &Stream) -> Result<f64, Error> {
    let mut source = KERNEL.as_bytes().to_vec();
    source.push(0);
    let module = Module::load(&source)?;
    let function = module.function("read_all", 0)?;
    let memory = Memory::new(BYTES, "measuring how fast memory is read")?;
    stream.clear(memory.start, BYTES)?;
    let shape = Shape {
        grid: [gpu.processors * BLOCKS_PER_PROCESSOR, 1, 1],
        threads: THREADS,
        shared: 0,
    };
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        stream.wait()?;
        let start = Instant::now();
        for _ in 0..SWEEPS {
            stream.launch(function, shape, &[memory.start, BYTES / 16], false)?;
        }
        stream.wait()?;
        best = best.min(start.elapsed());
    }
    Ok(BYTES as f64 * f64::from(SWEEPS) / best.as_secs_f64())
}
