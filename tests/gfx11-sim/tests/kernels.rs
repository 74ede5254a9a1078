//! Whole kernels of clang, against the host's arithmetic.

mod common;

use common::{Arg, Gpu, Random, compile};

#[test]
fn vector_add() {
    let gpu = Gpu::new(&compile(
        "KERNEL vadd(const float* a, const float* b, float* c, int n) {
           int i = bid() * bdim() + tid();
           if (i < n) c[i] = a[i] + b[i];
         }",
    ));
    let mut random = Random::new(1);
    let n = 1000;
    let (a, b) = (random.floats(n), random.floats(n));
    let (pa, pb, pc) = (
        gpu.upload(&a),
        gpu.upload(&b),
        gpu.memory.alloc(4 * n as u64),
    );
    let stats = gpu.run(
        "vadd",
        8,
        128,
        &[Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(pc), Arg::Int(n as i32)],
    );
    let c: Vec<f32> = gpu.download(pc, n);
    for i in 0..n {
        assert_eq!(c[i], a[i] + b[i], "element {i}");
    }
    assert_eq!((stats.workgroups, stats.waves), (8, 32));
    assert_eq!((stats.bytes_loaded, stats.bytes_stored), (8000, 4000));
}
