//! Damaged GGUF files: whatever the bytes, the reader neither panics nor uses memory out of proportion to the file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fastc::gguf::{Array, Gguf, Numbers, Strings, TensorType, Value, WriteError, Writer};
use proptest::prelude::*;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is being torn down has nothing left to count.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `f` had allocated at once.
fn peak_of(f: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    f();
    (PEAK.get() - before) as usize
}

fn sample() -> Vec<u8> {
    let mut w = Writer::new();
    w.put("general.architecture", "llama").unwrap();
    w.put("llama.block_count", &2u32).unwrap();
    w.put("flag", &true).unwrap();
    w.put("f64", &0.1f64).unwrap();
    w.put("tokens", &["a", "bc", "", "def"][..]).unwrap();
    w.put("scores", &[0.0f32, -1.0, 2.5][..]).unwrap();
    w.put("types", &[1i32, 3, 5][..]).unwrap();
    w.put("nested", &[vec![true], vec![], vec![false, true]][..])
        .unwrap();
    w.tensor("norm", &[5], TensorType::F32).unwrap();
    w.tensor("q", &[64, 2], TensorType::Q4_0).unwrap();
    let mut file = Vec::new();
    w.write(&mut file, |tensor, out| {
        let data = vec![0x5a; tensor.bytes as usize];
        std::io::Write::write_all(out, &data).map_err(WriteError::Io)
    })
    .unwrap();
    file
}

fn visit(value: Value<'_>) -> usize {
    match value {
        Value::Array(array) => 1 + array.iter().map(visit).sum::<usize>(),
        _ => 1,
    }
}

/// Parses and, if that works, reads everything in every way.
fn exercise(file: &[u8]) {
    let gguf = match Gguf::parse(file) {
        Ok(gguf) => gguf,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for (key, value) in gguf.metadata.iter() {
        assert!(visit(value) <= 2 * file.len());
        let m = &gguf.metadata;
        let _ = m.required::<u32>(key);
        let _ = m.required::<i64>(key);
        let _ = m.required::<f32>(key);
        let _ = m.required::<bool>(key);
        let _ = m.required::<&str>(key);
        if let Ok(strings) = m.required::<Strings>(key) {
            assert_eq!(strings.len(), strings.clone().count());
            strings.utf8().for_each(drop);
        }
        if let Ok(numbers) = m.required::<Numbers<i32>>(key) {
            assert_eq!(numbers.len(), numbers.count());
        }
        if let Ok(array) = m.required::<Array>(key) {
            assert!(array.bytes().len() <= file.len());
        }
    }
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        assert!(tensor.offset as usize + data.len() <= file.len());
        assert_eq!(
            Some(data.len() as u64),
            tensor.ty.bytes(tensor.elements()),
            "{}",
            tensor.name
        );
        let _ = tensor.encoding();
    }
}

/// Parses in bounded memory: some hundred bytes for each entry, whose bytes are in the file.
fn exercise_bounded(file: &[u8]) {
    let peak = peak_of(|| exercise(file));
    let bound = 64 * file.len() + 16384;
    assert!(peak <= bound, "{peak} bytes for a file of {}", file.len());
}

/// A small generator, so that the loop below is the same on every machine.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) % below as u64) as usize
    }
}

#[test]
fn hundred_thousand_mutations() {
    let original = sample();
    let mut random = Lcg(1);
    for _ in 0..100_000 {
        let mut file = original.clone();
        for _ in 0..1 + random.next(4) {
            let at = random.next(file.len());
            match random.next(6) {
                // A bit, a byte, or a field that is nearly a limit.
                0 => file[at] ^= 1 << random.next(8),
                1 => file[at] = random.next(256) as u8,
                2 => {
                    let field = [0, 1, u64::MAX, 1 << 63, 1 << 62, u32::MAX as u64];
                    let field = field[random.next(6)].to_le_bytes();
                    let end = (at + 8).min(file.len());
                    file[at..end].copy_from_slice(&field[..end - at]);
                }
                // Bytes of elsewhere, a hole, an end.
                3 => {
                    let from = random.next(file.len());
                    let len = random.next(24).min(file.len() - at.max(from));
                    file.copy_within(from..from + len, at);
                }
                4 => {
                    let end = (at + random.next(16)).min(file.len() - 1);
                    file.drain(at.min(end)..end);
                }
                _ => file.truncate(at.max(1)),
            }
        }
        exercise_bounded(&file);
    }
}

#[test]
fn every_byte_takes_every_value() {
    let mut file = sample();
    // What comes after the header is data, which is not looked at.
    let header = Gguf::parse(&file).unwrap().tensors()[0].offset as usize;
    for at in 0..header {
        let before = file[at];
        for value in 0..=255 {
            file[at] = value;
            exercise_bounded(&file);
        }
        file[at] = before;
    }
}

#[test]
fn many_small_entries_cost_memory_in_proportion() {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let entries = 50_000u64;
    file.extend(0u64.to_le_bytes());
    file.extend(entries.to_le_bytes());
    for i in 0..entries {
        let key = format!("{i:x}");
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.bytes());
        file.extend([0, 0, 0, 0, 7]);
    }
    exercise_bounded(&file);
}

proptest! {
    #[test]
    fn any_bytes_after_the_magic(bytes in prop::collection::vec(any::<u8>(), 0..200), counts in any::<[u8; 2]>()) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend([counts[0] % 4, 0, 0, 0, 0, 0, 0, 0, counts[1] % 4, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(bytes);
        exercise_bounded(&file);
    }

    #[test]
    fn any_splice(at in any::<prop::sample::Index>(), removed in 0usize..40, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut file = sample();
        let at = at.index(file.len());
        let end = (at + removed).min(file.len());
        file.splice(at..end, bytes);
        exercise_bounded(&file);
    }

    #[test]
    fn what_is_written_is_read(
        number in any::<i64>(),
        real in any::<f32>(),
        text in any::<String>(),
        strings in prop::collection::vec(any::<String>(), 0..9),
        numbers in prop::collection::vec(any::<u16>(), 0..9),
        rows in 1u64..5,
        blocks in 1u64..4,
    ) {
        let mut w = Writer::new();
        w.put("number", &number).unwrap();
        w.put("real", &real).unwrap();
        w.put("text", &text).unwrap();
        w.put("strings", &strings).unwrap();
        w.put("numbers", &numbers).unwrap();
        w.tensor("t", &[32 * blocks, rows], TensorType::Q8_0).unwrap();
        let mut file = Vec::new();
        w.write(&mut file, |tensor, out| {
            let data: Vec<u8> = (0..tensor.bytes).map(|i| i as u8).collect();
            std::io::Write::write_all(out, &data).map_err(WriteError::Io)
        }).unwrap();

        let gguf = Gguf::parse(&file).unwrap();
        let m = &gguf.metadata;
        prop_assert_eq!(m.required::<i64>("number").unwrap(), number);
        prop_assert_eq!(m.required::<f32>("real").unwrap().to_bits(), real.to_bits());
        prop_assert_eq!(m.required::<&str>("text").unwrap(), &text);
        let read: Vec<&str> = m.required::<Strings>("strings").unwrap().utf8().map(Result::unwrap).collect();
        prop_assert_eq!(read, strings);
        prop_assert!(m.required::<Numbers<u16>>("numbers").unwrap().eq(numbers));
        let tensor = gguf.tensor("t").unwrap();
        prop_assert_eq!(tensor.dims(), [32 * blocks, rows]);
        prop_assert!(gguf.data(tensor).iter().enumerate().all(|(i, &byte)| byte == i as u8));
    }
}
