//! FORMAT.md says what layout.rs does.

use bundle_format::hash;
use bundle_format::layout::{
    CHUNK_LEN, ENTRY_FIELDS, ENTRY_LEN, Field, HEADER_FIELDS, HEADER_LEN, MAGIC, SectionKind,
    VERSION,
};
use bundle_format::plan::{ALIGN, DType, Encoding, KvDType, WeightLayout, quants_bytes, row_bytes};
use bundle_format::validate::{activation_types, packed_len};

const FORMAT: &str = include_str!("../FORMAT.md");

/// The rows of the table under the heading row that starts with these cells.
fn table(heading: &[&str]) -> Vec<Vec<String>> {
    table_after(FORMAT, heading)
}

fn table_after(text: &str, heading: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|')
            .split('|')
            .map(|c| c.trim().to_string())
            .collect()
    };
    let rows: Vec<_> = text
        .lines()
        .skip_while(|l| !(l.starts_with('|') && cells(l).iter().zip(heading).all(|(a, b)| a == b)))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty(), "no table {heading:?}");
    rows
}

fn compare(rows: &[Vec<String>], fields: &[Field], len: usize) {
    let documented: Vec<_> = rows
        .iter()
        .map(|r| {
            (
                r[0].as_str(),
                r[1].parse::<usize>().unwrap(),
                r[2].parse::<usize>().unwrap(),
            )
        })
        .collect();
    let implemented: Vec<_> = fields.iter().map(|f| (f.name, f.offset, f.size)).collect();
    assert_eq!(documented, implemented);
    let mut end = 0;
    for field in fields {
        assert_eq!(field.offset, end, "{} leaves a gap", field.name);
        end += field.size;
    }
    assert_eq!(end, len);
}

#[test]
fn header_fields() {
    let rows = table(&["field", "offset", "size"]);
    compare(&rows, HEADER_FIELDS, HEADER_LEN);
    let holds = |name: &str| rows.iter().find(|r| r[0] == name).unwrap()[3].clone();
    let magic: Vec<_> = MAGIC.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(holds("magic"), format!("`{}`", magic.join(" ")));
    assert_eq!(holds("version"), VERSION.to_string());
    assert_eq!(holds("header length"), HEADER_LEN.to_string());
    assert_eq!(holds("section count"), SectionKind::ALL.len().to_string());
    assert!(holds("chunk length").starts_with(&format!("{CHUNK_LEN}:")));
}

#[test]
fn entry_fields() {
    let entry = FORMAT
        .split_once("An entry of the section table")
        .unwrap()
        .1;
    compare(
        &table_after(entry, &["field", "offset", "size"]),
        ENTRY_FIELDS,
        ENTRY_LEN,
    );
}

#[test]
fn sections() {
    let documented: Vec<Vec<String>> = table(&["kind", "section"])
        .into_iter()
        .map(|mut r| {
            r.truncate(5);
            r
        })
        .collect();
    let implemented: Vec<Vec<String>> = SectionKind::ALL
        .iter()
        .map(|k| {
            vec![
                k.id().to_string(),
                k.name().to_string(),
                k.align().to_string(),
                if k.may_compress() { "yes" } else { "no" }.to_string(),
                k.max_raw_len().to_string(),
            ]
        })
        .collect();
    assert_eq!(documented, implemented);
    let order: Vec<_> = SectionKind::ALL.iter().map(|k| k.name()).collect();
    assert!(FORMAT.contains(&format!("    header | {}\n", order.join(" | "))));
}

#[test]
fn contexts() {
    let documented: Vec<String> = table(&["hash of", "context"])
        .into_iter()
        .map(|r| r[1].trim_matches('`').to_string())
        .collect();
    let mut implemented = vec![
        hash::HEADER_CONTEXT,
        hash::ROOT_CONTEXT,
        hash::RAW_CODE_CONTEXT,
        hash::CHUNK_CONTEXT,
    ];
    implemented.extend(SectionKind::ALL.iter().map(|&k| hash::section_context(k)));
    assert_eq!(documented, implemented);
    let mut unique = implemented.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), implemented.len());
}

#[test]
fn encodings() {
    let all = Encoding::ALL;
    let rows = table(&["encoding", "elements a block"]);
    assert_eq!(rows.len(), all.len());
    for (row, encoding) in rows.iter().zip(all) {
        assert_eq!(row[0], format!("{encoding:?}"));
        let block: u32 = row[1].parse().unwrap();
        let [bytes, packed]: [u64; 2] = [2, 3].map(|i| row[i].parse().unwrap());
        let len = |layout, rows, cols| packed_len(encoding, layout, rows, cols);
        assert_eq!(
            len(WeightLayout::RowMajor, 9, 3 * block),
            Some(9 * 3 * bytes)
        );
        assert_eq!(
            len(WeightLayout::Interleave8, 9, 3 * block),
            Some(16 * 3 * packed)
        );
        if block > 1 {
            assert_eq!(len(WeightLayout::RowMajor, 9, 3 * block + 1), None);
        }
    }
}

#[test]
fn pairs() {
    let text = "F16 and BF16 of a multiple of 32 columns may lie in Pairs8";
    assert!(FORMAT.contains(text));
    assert!(FORMAT.contains("`cols / 32` blocks of 512 bytes"));
    assert!(FORMAT.contains("`cols / 4` bytes rounded up to a multiple of 64"));
    for encoding in Encoding::ALL {
        let len = |rows, cols| packed_len(encoding, WeightLayout::Pairs8, rows, cols);
        let has_pairs = matches!(encoding, Encoding::F16 | Encoding::BF16);
        // Of 768 columns the exponents fill whole lines, of 288 columns 72 bytes of two.
        let expected = [2 * (24 * 512 + 192), 2 * (9 * 512 + 128)];
        for (cols, len_of) in [768, 256 + 32].into_iter().zip(expected) {
            assert_eq!(len(9, cols), has_pairs.then_some(len_of), "{encoding:?}");
        }
        assert_eq!(len(9, 48), None, "{encoding:?}");
    }
}

#[test]
fn fragments() {
    let rows = table(&["encoding in Fragment16", "bytes of codes"]);
    let known = |e: &Encoding| packed_len(*e, WeightLayout::Fragment16, 16, 256).is_some();
    let mut documented: Vec<&str> = rows.iter().map(|r| r[0].as_str()).collect();
    documented.sort_unstable();
    let all = Encoding::ALL;
    let mut implemented: Vec<String> = all
        .iter()
        .filter(|e| known(e))
        .map(|e| format!("{e:?}"))
        .collect();
    implemented.sort_unstable();
    assert_eq!(documented, implemented);
    for encoding in all.iter().filter(|e| known(e)) {
        let row = rows
            .iter()
            .find(|r| r[0] == format!("{encoding:?}"))
            .unwrap();
        let [codes, scales]: [u64; 2] = [1, 2].map(|i| row[i].parse().unwrap());
        let len = |rows, cols| packed_len(*encoding, WeightLayout::Fragment16, rows, cols);
        assert_eq!(len(33, 512), Some(3 * 8 * (codes + scales)), "{encoding:?}");
        assert_eq!(len(33, 96), None);
    }
}

#[test]
fn types() {
    let rows = table(&["type", "a row"]);
    let all = [
        DType::F32,
        DType::U32,
        DType::Q8,
        DType::Q11,
        DType::F16,
        DType::Q14,
        DType::Q8K,
    ];
    assert_eq!(rows.len(), all.len());
    for (row, dtype) in rows.iter().zip(all) {
        assert_eq!(row[0], format!("{dtype:?}"));
        // The bytes of the parts of a row of 256 columns, as the text lists them.
        let parts: Vec<u64> = row[1]
            .split("; ")
            .map(|part| match part {
                "an f32 a column" | "a u32 a column" => 4 * 256,
                "an f16 a column" => 2 * 256,
                "`cols` quants (i8)" => 256,
                "`cols` quants (i16)" => 2 * 256,
                "of each block 32 high bytes (i8) and 32 low bytes (i8)" => 256 / 32 * (32 + 32),
                "an f32 scale a block" | "an f32 sum a block" => 256 / dtype.block() as u64 * 4,
                "an i16 sum of each 32 quants" => 256 / 32 * 2,
                "two i16 bounds a block" => 2 * 2,
                other => panic!("{other:?}"),
            })
            .collect();
        let len: u64 = parts.iter().sum();
        assert_eq!(row_bytes(dtype, 256), len.next_multiple_of(ALIGN as u64));
        let quantised = row[2] == "`StoreQuant`";
        // Scales and sums come behind, and bounds.
        let behind = if dtype == DType::Q8K { 3 } else { 2 };
        let quants: u64 = parts[..parts.len().saturating_sub(behind)].iter().sum();
        assert_eq!(quants_bytes(dtype, 256), if quantised { quants } else { 0 });
    }
}

#[test]
fn kv_types() {
    let rows = table(&["type", "bytes a dimension"]);
    let all = [
        KvDType::F16,
        KvDType::Q8_0,
        KvDType::F16Rows,
        KvDType::Q8Rows,
    ];
    assert_eq!(rows.len(), all.len());
    for (row, dtype) in rows.iter().zip(all) {
        assert_eq!(row[0], format!("{dtype:?}"));
        let bytes: u64 = row[1].parse().unwrap();
        assert_eq!(dtype.head_bytes(96), 96 * bytes);
    }
}

#[test]
fn activations() {
    let rows = table(&["encoding of the weight", "activations"]);
    let encodings = table(&["encoding", "elements a block"]);
    assert_eq!(rows.len(), encodings.len());
    let all = Encoding::ALL;
    for (row, encoding) in rows.iter().zip(all) {
        let types: Vec<_> = activation_types(encoding)
            .iter()
            .map(|dtype| format!("{dtype:?}"))
            .collect();
        assert_eq!(*row, [format!("{encoding:?}"), types.join(", ")]);
    }
}
