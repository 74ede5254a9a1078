//! A step allocates its outcome, and nothing launch by launch.

#[path = "executor/tiny.rs"]
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bundle_format::plan::Encoding;
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::{Device, SampleParams, Step, StepKv, TokenSource, Want};
use fastrun::load::Loaded;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all of it is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A token at `position` of a lone sequence, or a prompt of `len` tokens.
fn step(position: u32, len: u32) -> Step {
    Step {
        tokens: (0..len).map(TokenSource::Id).collect(),
        positions: (position..position + len).collect(),
        sequences: vec![0; len as usize],
        kv: vec![StepKv {
            slots: (position..position + len).collect(),
            tables: vec![(0..8).collect()],
            ..StepKv::default()
        }],
        rows: vec![len - 1],
        wants: vec![Want {
            sample: Some(SampleParams {
                temperature: 0.8,
                top_k: 40,
                top_p: 0.9,
                seed: 3,
                ..SampleParams::default()
            }),
            ..Want::default()
        }],
    }
}

// The only test of this file: others would allocate meanwhile.
#[test]
fn a_step_allocates_a_few_times_whatever_its_launches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.fib");
    tiny::write(&tiny::Spec::new(Encoding::Q4_1), &path);
    let options = CpuOptions {
        threads: Some(3),
        ..CpuOptions::default()
    };
    let loaded = Arc::new(Loaded::open(&path).unwrap());
    let launches = loaded.plan().launches.len();
    let mut device = CpuDevice::open(loaded, &options).unwrap();
    // The first steps grow the samplers and the list of tickets.
    let mut counts = Vec::new();
    for i in 0..40 {
        let step = match i {
            0..20 => step(i, 1),
            _ => step(20, 50),
        };
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let ticket = device.submit(step).unwrap();
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
        device.poll(ticket).unwrap();
    }
    let most = counts[10..20].iter().chain(&counts[30..]).max().unwrap();
    assert!(*most <= 5, "{counts:?}");
    assert!(*most < launches / 3);
}
