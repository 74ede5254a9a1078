//! Opening a tokenizer builds nothing: the vocabulary stays where it is mapped.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastc::gguf::Gguf;
use fastc::tokenizer::VocabSource;
use fastrun::tokenizer::Tokenizer;
use memmap2::Mmap;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all of it is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
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

// The only test of this file: others would allocate meanwhile.
#[test]
fn opening_a_tokenizer_allocates_next_to_nothing() {
    for model in [e2e::models::smollm2(), e2e::models::gemma3()] {
        let file = File::open(model).unwrap();
        // SAFETY: nothing writes to the model while tests run.
        let map = unsafe { Mmap::map(&file).unwrap() };
        let gguf = Gguf::parse(&map).unwrap();
        let source = VocabSource::from_metadata(&gguf.metadata).unwrap();
        let section = source.build().unwrap();
        let before = ALLOCATED.load(Ordering::Relaxed);
        let tokenizer = Tokenizer::open(&section).unwrap();
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        // Both vocabularies have more than 49,000 tokens.
        assert!(allocated < 4096, "{allocated} bytes");
        assert!(tokenizer.vocab().len() > 49_000);
    }
}
