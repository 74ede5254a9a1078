//! The GGUF reader: what it accepts, and one test for each way in which a file can be wrong.

use bundle_format::plan::Encoding;
use fastc::gguf::error::Place;
use fastc::gguf::writer::Bytes;
use fastc::gguf::{
    Array, Error, ErrorKind, Gguf, Numbers, Strings, TensorType, Value, ValueType, WriteError,
    Writer, tensor_type, value,
};

/// Bytes of a file, field by field, right or wrong.
struct Raw(Vec<u8>);

impl Raw {
    /// The header of a version 3 file.
    fn header(tensors: u64, entries: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }

    fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }

    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn string(mut self, v: &[u8]) -> Self {
        self = self.u64(v.len() as u64);
        self.0.extend(v);
        self
    }

    /// A key and its value's type.
    fn key(self, key: &str, ty: u32) -> Self {
        self.string(key.as_bytes()).u32(ty)
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let mut raw = self.string(name.as_bytes()).u32(dims.len() as u32);
        for &dim in dims {
            raw = raw.u64(dim);
        }
        raw.u32(ty).u64(offset)
    }

    /// Pads to the default alignment, then appends `bytes` of data.
    fn data(mut self, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0x11);
        self
    }

    fn error(&self) -> Error {
        Gguf::parse(&self.0).expect_err("the file is wrong")
    }

    fn kind(&self) -> ErrorKind {
        self.error().kind
    }
}

/// A file of one tensor.
fn one_tensor(dims: &[u64], ty: u32, offset: u64, data: usize) -> Raw {
    Raw::header(1, 0).tensor("t", dims, ty, offset).data(data)
}

fn write(writer: &Writer) -> Vec<u8> {
    let mut file = Vec::new();
    writer
        .write(&mut file, |tensor, out| {
            let data: Vec<u8> = (0..tensor.bytes).map(|i| i as u8).collect();
            std::io::Write::write_all(out, &data).map_err(WriteError::Io)
        })
        .expect("a vector takes any bytes");
    file
}

/// A file with every value type and several tensors.
fn sample() -> Vec<u8> {
    let mut w = Writer::with_alignment(64).unwrap();
    w.put("u8", &200u8).unwrap();
    w.put("i8", &-100i8).unwrap();
    w.put("u16", &60000u16).unwrap();
    w.put("i16", &-30000i16).unwrap();
    w.put("u32", &4_000_000_000u32).unwrap();
    w.put("i32", &-2_000_000_000i32).unwrap();
    w.put("f32", &1.5f32).unwrap();
    w.put("bool", &true).unwrap();
    w.put("string", "héllo").unwrap();
    w.put("raw", &Bytes(&[0xff, 0xfe])).unwrap();
    w.put("u64", &u64::MAX).unwrap();
    w.put("i64", &i64::MIN).unwrap();
    w.put("f64", &-0.25f64).unwrap();
    w.put("bools", &[true, false][..]).unwrap();
    w.put("i32s", &[1i32, -2, 3][..]).unwrap();
    w.put("f32s", &[0.5f32, -1.0][..]).unwrap();
    w.put("strings", &["a", "", "ccc"][..]).unwrap();
    w.put("raws", &[Bytes(b"ok"), Bytes(&[0x80])][..]).unwrap();
    w.put("nested", &[vec![1u8, 2], vec![], vec![3]][..])
        .unwrap();
    w.put("none", &[0u16; 0][..]).unwrap();
    w.tensor("vector", &[5], TensorType::F32).unwrap();
    w.tensor("matrix", &[64, 3], TensorType::Q4_1).unwrap();
    w.tensor("cube", &[32, 2, 2, 2], TensorType::Q8_0).unwrap();
    write(&w)
}

#[test]
fn reads_every_value_type() {
    let file = sample();
    let gguf = Gguf::parse(&file).unwrap();
    let m = &gguf.metadata;
    assert_eq!(m.get("u8"), Some(Value::U8(200)));
    assert_eq!(m.get("i8"), Some(Value::I8(-100)));
    assert_eq!(m.get("u16"), Some(Value::U16(60000)));
    assert_eq!(m.get("i16"), Some(Value::I16(-30000)));
    assert_eq!(m.get("u32"), Some(Value::U32(4_000_000_000)));
    assert_eq!(m.get("i32"), Some(Value::I32(-2_000_000_000)));
    assert_eq!(m.get("f32"), Some(Value::F32(1.5)));
    assert_eq!(m.get("bool"), Some(Value::Bool(true)));
    assert_eq!(m.get("string"), Some(Value::String("héllo".as_bytes())));
    assert_eq!(m.get("u64"), Some(Value::U64(u64::MAX)));
    assert_eq!(m.get("i64"), Some(Value::I64(i64::MIN)));
    assert_eq!(m.get("f64"), Some(Value::F64(-0.25)));
    assert_eq!(m.get("missing"), None);

    let bools = m.required::<Array>("bools").unwrap();
    assert_eq!(bools.item_type(), ValueType::Bool);
    assert!(
        bools
            .iter()
            .eq([Value::Bool(true), Value::Bool(false)].into_iter())
    );
    let nested = m.required::<Array>("nested").unwrap();
    let inner: Vec<Vec<Value>> = nested
        .iter()
        .map(|item| match item {
            Value::Array(inner) => inner.iter().collect(),
            other => panic!("expected arrays, found {other:?}"),
        })
        .collect();
    assert_eq!(
        inner,
        [vec![Value::U8(1), Value::U8(2)], vec![], vec![Value::U8(3)]]
    );
    assert!(m.required::<Array>("none").unwrap().is_empty());

    let keys: Vec<&str> = m.iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys[..4],
        ["general.alignment", "u8", "i8", "u16"],
        "the file's order"
    );
    assert_eq!(m.len(), keys.len());
}

#[test]
fn reads_tensors() {
    let file = sample();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.alignment, 64);
    let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name).collect();
    assert_eq!(names, ["vector", "matrix", "cube"]);

    let matrix = gguf.tensor("matrix").unwrap();
    assert_eq!(matrix.dims(), [64, 3]);
    assert_eq!((matrix.cols(), matrix.rows()), (64, 3));
    assert_eq!(matrix.encoding(), Ok(Encoding::Q4_1));
    assert_eq!(matrix.offset % 64, 0);
    let expected: Vec<u8> = (0..2 * 3 * 20).collect();
    assert_eq!(gguf.data(matrix), expected);

    let cube = gguf.tensor("cube").unwrap();
    assert_eq!((cube.cols(), cube.rows(), cube.elements()), (32, 8, 256));
    assert_eq!(gguf.data(cube).len(), 8 * 34);
    assert!(gguf.tensor("absent").is_none());
}

#[test]
fn reads_version_2() {
    let mut file = sample();
    file[4] = 2;
    assert_eq!(Gguf::parse(&file).unwrap().version, 2);
}

#[test]
fn knows_the_size_of_every_tensor_type() {
    for ty in tensor_type::ALL {
        let mut w = Writer::new();
        w.tensor("t", &[ty.block as u64 * 2, 3], *ty).unwrap();
        let file = write(&w);
        let gguf = Gguf::parse(&file).unwrap();
        let tensor = gguf.tensor("t").unwrap();
        assert_eq!(gguf.data(tensor).len(), ty.block_bytes as usize * 6);
        match ty.encoding() {
            Some(encoding) => assert_eq!(tensor.encoding(), Ok(encoding)),
            None => {
                let error = tensor.encoding().unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("tensor `t`") && text.contains(ty.name),
                    "{text}"
                );
                assert!(matches!(
                    fastc::error::Error::from(error),
                    fastc::error::Error::Unsupported(_)
                ));
            }
        }
    }
}

#[test]
fn a_file_of_metadata_alone_may_end_unpadded() {
    let raw = Raw::header(0, 1).key("a", 0).u8(7);
    let gguf = Gguf::parse(&raw.0).unwrap();
    assert_eq!(gguf.metadata.required::<u32>("a"), Ok(7));
    assert!(gguf.tensors().is_empty());
}

#[test]
fn getters_convert_integers() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    assert_eq!(m.required::<u64>("u8"), Ok(200));
    assert_eq!(m.required::<i64>("i8"), Ok(-100));
    assert_eq!(m.required::<i32>("u16"), Ok(60000));
    assert_eq!(m.required::<usize>("u32"), Ok(4_000_000_000));
    assert_eq!(m.required::<f32>("f64"), Ok(-0.25));
    assert_eq!(m.required::<f64>("f32"), Ok(1.5));
    assert_eq!(m.required::<bool>("bool"), Ok(true));
    assert_eq!(m.required::<&str>("string"), Ok("héllo"));
    assert_eq!(m.required::<&[u8]>("raw"), Ok(&[0xff, 0xfe][..]));
    assert_eq!(m.optional::<u32>("missing"), Ok(None));
    assert_eq!(m.optional::<u32>("u8"), Ok(Some(200)));
}

#[test]
fn getters_read_arrays() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    let numbers = m.required::<Numbers<i64>>("i32s").unwrap();
    assert_eq!(numbers.len(), 3);
    assert!(numbers.eq([1, -2, 3]));
    assert!(m.required::<Numbers<f32>>("f32s").unwrap().eq([0.5, -1.0]));
    let strings = m.required::<Strings>("strings").unwrap();
    assert_eq!(strings.len(), 3);
    let text: Result<Vec<&str>, Error> = strings.utf8().collect();
    assert_eq!(text.unwrap(), ["a", "", "ccc"]);
    let raws = m.required::<Strings>("raws").unwrap();
    assert!(raws.clone().eq([&b"ok"[..], &[0x80]]));
}

#[test]
fn getters_name_a_missing_key() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    let error = m.required::<u32>("llama.block_count").unwrap_err();
    assert!(matches!(error.kind, ErrorKind::MissingKey { .. }));
    assert_eq!(
        error.to_string(),
        "GGUF key `llama.block_count`: expected an integer (u32), found no such key"
    );
}

#[test]
fn getters_name_a_wrong_type() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    let text = |error: Error| {
        assert!(matches!(error.kind, ErrorKind::WrongType { .. }));
        assert!(error.offset.is_some());
        error.to_string()
    };
    assert!(text(m.required::<u32>("f32").unwrap_err()).ends_with("(u32), found f32"));
    assert!(text(m.required::<f32>("u32").unwrap_err()).ends_with("(f32), found u32"));
    assert!(text(m.required::<bool>("u8").unwrap_err()).ends_with("a bool, found u8"));
    assert!(text(m.optional::<&str>("u8").unwrap_err()).ends_with("a string, found u8"));
    assert!(text(m.required::<Array>("u8").unwrap_err()).ends_with("an array, found u8"));
    let strings = m.required::<Strings>("i32s").err().unwrap();
    assert!(text(strings).ends_with("an array of strings, found array of i32"));
    let numbers = m.required::<Numbers<f32>>("i32s").err().unwrap();
    assert!(text(numbers).ends_with("an array of numbers (f32), found array of i32"));
    let numbers = m.required::<Numbers<u32>>("strings").err().unwrap();
    assert!(text(numbers).ends_with("found array of string"));
}

#[test]
fn getters_name_a_value_out_of_range() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    let out_of_range = |kind| matches!(kind, ErrorKind::OutOfRange { .. });
    assert!(out_of_range(m.required::<u32>("i8").unwrap_err().kind));
    assert!(out_of_range(m.required::<u32>("u64").unwrap_err().kind));
    assert!(out_of_range(m.required::<i64>("u64").unwrap_err().kind));
    let numbers = m.required::<Numbers<u32>>("i32s").err().unwrap();
    assert!(out_of_range(numbers.kind.clone()));
    assert!(numbers.to_string().contains("found -2"));
}

#[test]
fn invalid_utf8_is_an_error_only_as_text() {
    let file = sample();
    let m = &Gguf::parse(&file).unwrap().metadata;
    let not_utf8 = |error: &Error| matches!(error.kind, ErrorKind::NotUtf8 { .. });
    assert!(not_utf8(&m.required::<&str>("raw").unwrap_err()));
    let raws = m.required::<Strings>("raws").unwrap();
    let mut raws = raws.utf8();
    assert_eq!(raws.next(), Some(Ok("ok")));
    let error = raws.next().unwrap().unwrap_err();
    assert!(not_utf8(&error));
    assert_eq!(file[error.offset.unwrap() as usize], 0x80);
    assert_eq!(error.place, Place::Key("raws".into()));
}

#[test]
fn refuses_another_magic() {
    let error = Raw(b"PK\x03\x04 and so on, a zip".to_vec()).error();
    assert_eq!(
        error.kind,
        ErrorKind::NotGguf {
            found: *b"PK\x03\x04"
        }
    );
}

#[test]
fn refuses_big_endian_files() {
    let raw = Raw(b"GGUF\x00\x00\x00\x03".to_vec()).u64(0).u64(0);
    let error = raw.error();
    assert_eq!(error.kind, ErrorKind::BigEndian { version: 3 });
    assert!(error.kind.is_unsupported());
}

#[test]
fn refuses_other_versions() {
    for version in [0, 1, 4, 77] {
        let error = Raw(b"GGUF".to_vec()).u32(version).u64(0).u64(0).error();
        assert_eq!(error.kind, ErrorKind::Version { found: version });
        assert!(error.kind.is_unsupported());
    }
}

#[test]
fn refuses_counts_that_cannot_fit() {
    let count = |raw: Raw| matches!(raw.kind(), ErrorKind::Count { .. });
    assert!(count(Raw::header(u64::MAX, 0)));
    assert!(count(Raw::header(0, u64::MAX)));
    assert!(count(Raw::header(1 << 60, 0).data(4096)));
    // Arrays: of scalars (whose size would overflow), strings and arrays.
    for item in [10, 8, 9] {
        let raw = Raw::header(0, 1).key("a", 9).u32(item).u64(u64::MAX / 4);
        assert!(count(raw.data(4096)));
    }
}

#[test]
fn refuses_strings_that_cannot_fit() {
    let truncated = |raw: Raw| {
        matches!(
            raw.kind(),
            ErrorKind::Truncated {
                needed: u64::MAX,
                ..
            }
        )
    };
    assert!(truncated(Raw::header(0, 1).u64(u64::MAX).data(4096)));
    let value = Raw::header(0, 1).key("a", 8).u64(u64::MAX);
    assert!(truncated(value.data(4096)));
    let item = Raw::header(0, 1).key("a", 9).u32(8).u64(2).string(b"x");
    assert!(truncated(item.u64(u64::MAX).data(4096)));
    let name = Raw::header(1, 0).u64(u64::MAX);
    assert!(truncated(name.data(4096)));
}

#[test]
fn refuses_an_empty_or_overlong_name() {
    let empty = Raw::header(0, 1).key("", 0).u8(1).data(64);
    assert!(matches!(
        empty.kind(),
        ErrorKind::NameLength { found: 0, .. }
    ));
    let long = "k".repeat(65536);
    let raw = Raw::header(0, 1).key(&long, 0).u8(1);
    assert!(matches!(
        raw.kind(),
        ErrorKind::NameLength { found: 65536, .. }
    ));
    let raw = Raw::header(1, 0).tensor("", &[1], 0, 0).data(64);
    let error = raw.error();
    assert!(matches!(error.kind, ErrorKind::NameLength { found: 0, .. }));
    assert_eq!(error.place, Place::TensorEntry(0));
}

#[test]
fn refuses_a_key_that_is_not_utf8() {
    let raw = Raw::header(0, 1).string(&[b'a', 0xff]).u32(0).u8(1);
    let error = raw.error();
    assert!(matches!(
        error.kind,
        ErrorKind::NotUtf8 { valid_up_to: 1, .. }
    ));
    assert_eq!(error.place, Place::Entry(0));
}

#[test]
fn refuses_unknown_value_types() {
    for (raw, found) in [
        (Raw::header(0, 1).key("a", 13), 13),
        (Raw::header(0, 1).key("a", 9).u32(u32::MAX), u32::MAX),
    ] {
        let error = raw.u64(0).data(64).error();
        assert_eq!(error.kind, ErrorKind::ValueType { found });
        assert_eq!(error.place, Place::Key("a".into()));
    }
}

#[test]
fn refuses_booleans_other_than_0_and_1() {
    let scalar = Raw::header(0, 1).key("a", 7).u8(2);
    assert_eq!(scalar.kind(), ErrorKind::Bool { found: 2 });
    let array = Raw::header(0, 1).key("a", 9).u32(7).u64(3);
    let array = array.u8(1).u8(0).u8(255);
    let error = array.error();
    assert_eq!(error.kind, ErrorKind::Bool { found: 255 });
    assert_eq!(error.offset, Some(array.0.len() as u64 - 1));
}

#[test]
fn limits_nesting() {
    let nested = |depth: u32| {
        let raw = Raw::header(0, 1).key("a", 9);
        let raw = (1..depth).fold(raw, |raw, _| raw.u32(9).u64(1));
        raw.u32(0).u64(1).u8(5)
    };
    let deepest = nested(value::MAX_NESTING);
    Gguf::parse(&deepest.0).unwrap();
    let most = value::MAX_NESTING;
    assert_eq!(nested(most + 1).kind(), ErrorKind::Nesting { most });
    assert_eq!(nested(1_000_000).kind(), ErrorKind::Nesting { most });
}

#[test]
fn refuses_a_key_twice() {
    let raw = Raw::header(0, 2).key("a", 0).u8(1).key("a", 0).u8(2);
    let error = raw.error();
    assert_eq!(error.kind, ErrorKind::DuplicateKey { first: 24 });
    assert_eq!(error.offset, Some(24 + 8 + 1 + 4 + 1));
}

#[test]
fn refuses_a_tensor_name_twice() {
    let raw = Raw::header(2, 0).tensor("t", &[8], 0, 0);
    let raw = raw.tensor("t", &[8], 0, 32).data(64);
    assert_eq!(raw.kind(), ErrorKind::DuplicateTensor { first: 0 });
}

#[test]
fn refuses_an_alignment_that_is_no_power_of_two() {
    for found in [0, 3, 48] {
        let raw = Raw::header(0, 1).key("general.alignment", 4).u32(found);
        assert_eq!(raw.kind(), ErrorKind::Alignment { found });
    }
    let raw = Raw::header(0, 1).key("general.alignment", 6).u32(32);
    assert!(matches!(raw.kind(), ErrorKind::WrongType { .. }));
}

#[test]
fn an_alignment_beyond_the_file_leaves_no_data() {
    let raw = Raw::header(1, 1)
        .key("general.alignment", 4)
        .u32(1 << 31)
        .tensor("t", &[1], 0, 0)
        .data(64);
    assert!(matches!(
        raw.kind(),
        ErrorKind::DataTruncated { available: 0, .. }
    ));
}

#[test]
fn refuses_too_few_or_many_dimensions() {
    for dims in [&[][..], &[1; 5]] {
        let found = dims.len() as u32;
        let raw = one_tensor(dims, 0, 0, 64);
        assert_eq!(raw.kind(), ErrorKind::DimensionCount { found, most: 4 });
    }
    let raw = Raw::header(1, 0).string(b"t").u32(u32::MAX).data(64);
    assert!(matches!(raw.kind(), ErrorKind::DimensionCount { .. }));
}

#[test]
fn refuses_a_zero_dimension() {
    let raw = one_tensor(&[4, 0], 0, 0, 64);
    assert_eq!(raw.kind(), ErrorKind::ZeroDimension { dimension: 1 });
}

#[test]
fn refuses_sizes_that_overflow() {
    let too_large = |raw: Raw| matches!(raw.kind(), ErrorKind::TooLarge { .. });
    // The number of elements, the number of bytes, and both just at the limit.
    assert!(too_large(one_tensor(&[1 << 32, 1 << 32], 0, 0, 64)));
    assert!(too_large(one_tensor(&[1 << 62], 0, 0, 64)));
    assert!(too_large(one_tensor(&[1 << 63], 24, 0, 64)));
    assert!(too_large(one_tensor(&[u64::MAX; 4], 24, 0, 64)));
    // Exabytes that don't overflow.
    let exabytes = one_tensor(&[1 << 60], 0, 0, 64);
    assert!(matches!(
        exabytes.kind(),
        ErrorKind::DataTruncated { available: 64, .. }
    ));
}

#[test]
fn refuses_rows_of_partial_blocks() {
    let raw = one_tensor(&[48, 2], 2, 0, 4096);
    let error = raw.error();
    assert_eq!(
        error.kind,
        ErrorKind::RowLength {
            type_name: "Q4_0",
            block: 32,
            found: 48
        }
    );
    assert_eq!(error.place, Place::Tensor("t".into()));
    assert_eq!(error.offset, Some(24));
}

#[test]
fn refuses_unknown_tensor_types() {
    for found in [4, 5, 42, u32::MAX] {
        let error = one_tensor(&[32], found, 0, 64).error();
        assert_eq!(error.kind, ErrorKind::TensorType { found });
        assert!(error.kind.is_unsupported());
    }
}

#[test]
fn refuses_misaligned_data() {
    let raw = one_tensor(&[4], 0, 16, 64);
    assert_eq!(
        raw.kind(),
        ErrorKind::Misaligned {
            found: 16,
            alignment: 32
        }
    );
}

#[test]
fn refuses_data_beyond_the_file() {
    for offset in [32, 1 << 40, u64::MAX - 31] {
        let raw = one_tensor(&[9], 0, offset, 64);
        assert_eq!(
            raw.kind(),
            ErrorKind::DataTruncated {
                start: offset,
                needed: 36,
                available: 64
            }
        );
    }
}

#[test]
fn refuses_data_that_overlaps() {
    let raw = Raw::header(3, 0)
        .tensor("a", &[16], 0, 64)
        .tensor("b", &[4], 0, 96)
        .tensor("c", &[8], 0, 0)
        .data(256);
    let error = raw.error();
    assert_eq!(error.place, Place::Tensor("b".into()));
    assert_eq!(error.kind, ErrorKind::Overlap { other: "a".into() });
}

#[test]
fn shows_hostile_names_safely() {
    let key = format!("evil\u{1b}[31m\n{}", "x".repeat(300));
    let text = Raw::header(0, 1).key(&key, 99).error().to_string();
    assert!(!text.contains('\u{1b}') && !text.contains('\n'), "{text}");
    assert!(text.contains('…') && text.len() < 300, "{text}");
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let file = sample();
    let gguf = Gguf::parse(&file).unwrap();
    let last = gguf.tensors().last().unwrap();
    let end = last.offset as usize + gguf.data(last).len();
    for cut in 0..end {
        assert!(Gguf::parse(&file[..cut]).is_err(), "cut at {cut}");
    }
    // Only the padding after the last tensor may be missing.
    for cut in end..=file.len() {
        Gguf::parse(&file[..cut]).unwrap();
    }
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = Writer::new();
    w.put("a", &1u32).unwrap();
    assert!(w.put("a", &2u32).is_err());
    assert!(w.put("", &2u32).is_err());
    w.tensor("t", &[32], TensorType::Q8_0).unwrap();
    assert!(w.tensor("t", &[32], TensorType::Q8_0).is_err());
    assert!(w.tensor("u", &[33], TensorType::Q8_0).is_err());
    assert!(w.tensor("u", &[], TensorType::F32).is_err());
    assert!(w.tensor("u", &[0], TensorType::F32).is_err());
    assert!(w.tensor("u", &[u64::MAX, 4], TensorType::F32).is_err());
    assert!(Writer::with_alignment(48).is_err());
    let short = w.write(&mut Vec::new(), |_, out| {
        std::io::Write::write_all(out, &[1, 2, 3]).map_err(WriteError::Io)
    });
    assert!(matches!(
        short,
        Err(WriteError::DataLength {
            expected: 34,
            found: 3,
            ..
        })
    ));
    Gguf::parse(&write(&w)).unwrap();
}
