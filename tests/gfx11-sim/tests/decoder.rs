//! The decoder against LLVM's: every opcode of every encoding, with registers that tell operands apart.

mod common;

use common::{compile, llvm, llvm_of_parts};
use gfx11_sim::isa::Kind;
use gfx11_sim::{CodeObject, Memory, decode, disassemble, mnemonic};

/// LLVM's text of each encoding; None where it knows no instruction.
fn llvm_text(encodings: &[Vec<u32>]) -> Vec<Option<String>> {
    const MARK: &str = "s_nop 0x1234";
    let mut input = String::new();
    for words in encodings {
        let bytes: Vec<String> = words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .map(|byte| format!("{byte:#04x}"))
            .collect();
        input += &format!("[{}]\n[0x34,0x12,0x80,0xbf]\n", bytes.join(","));
    }
    let args = ["--disassemble", "-triple=amdgcn", "-mcpu=gfx1151"];
    let text =
        String::from_utf8(llvm_of_parts("llvm-mc-19", &args, input.as_bytes())).expect("text");
    let mut out = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != ".text")
    {
        if line == MARK {
            // What takes several instructions is not one.
            out.push((lines.len() == 1).then(|| lines[0].to_string()));
            lines.clear();
        } else {
            lines.push(line.to_string());
        }
    }
    assert_eq!(out.len(), encodings.len());
    out
}

/// Each encoding that LLVM knows is decoded to the same mnemonic, operands and length. Gives how many there were.
fn compare(encodings: &[Vec<u32>]) -> usize {
    let mut wrong = Vec::new();
    let mut known = 0;
    for (words, text) in encodings.iter().zip(llvm_text(encodings)) {
        let Some(text) = text.filter(|text| !text.contains("Invalid")) else {
            continue;
        };
        known += 1;
        let inst = decode(words, 0);
        let ours = disassemble(&inst);
        let same = |a: &str, b: &str| a.split_whitespace().eq(b.split_whitespace());
        if usize::from(inst.len) != words.len() || !same(&ours, &text) {
            let hex: Vec<String> = words.iter().map(|word| format!("{word:08x}")).collect();
            wrong.push(format!("{}: LLVM {text:?}, here {ours:?}", hex.join(" ")));
        }
    }
    let first: Vec<&str> = wrong.iter().take(60).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{} of {known} differ:\n{}",
        wrong.len(),
        first.join("\n")
    );
    known
}

#[test]
fn scalar_arithmetic() {
    let mut all = Vec::new();
    for op in 0..0x60u32 {
        let tail = if matches!(op, 0x45 | 0x46) {
            vec![0x1234]
        } else {
            vec![]
        };
        for (a, b) in [(4, 2), (106, 193), (128, 240), (126, 4)] {
            let head = vec![0x8000_0000 | op << 23 | 8 << 16 | b << 8 | a];
            all.push([head, tail.clone()].concat());
        }
        if tail.is_empty() {
            all.push(vec![
                0x8000_0000 | op << 23 | 8 << 16 | 2 << 8 | 255,
                0xdead_beef,
            ]);
        }
    }
    for op in (0..256u32).filter(|op| !matches!(op, 0x4c | 0x4d)) {
        all.push(vec![0xbe80_0000 | 8 << 16 | op << 8 | 2]);
        all.push(vec![0xbe80_0000 | 106 << 16 | op << 8 | 126]);
    }
    for op in 0..128u32 {
        all.push(vec![0xbf00_0000 | op << 16 | 2 << 8 | 4]);
        all.push(vec![0xbf00_0000 | op << 16 | 255 << 8 | 4, 77]);
    }
    assert!(compare(&all) > 400);
}

#[test]
fn program_control() {
    let mut all = Vec::new();
    for op in (2..0x1du32).filter(|op| !matches!(op, 0x11..=0x14 | 0x16 | 0x17)) {
        all.push(vec![0xb000_0000 | op << 23 | 8 << 16 | 0x1234]);
    }
    // s_waitcnt, s_delay_alu, branches, hints.
    for imm in [0xfc07, 0x03f7, 0xffc7, 0x0000, 0x03c7] {
        all.push(vec![0xbf89_0000 | imm]);
    }
    for imm in [0x00a9, 0x00a1, 0x0002, 0x0091, 0x0125, 0x01b5, 0x0000] {
        all.push(vec![0xbf87_0000 | imm]);
    }
    for op in [
        0x00, 0x03, 0x05, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x35, 0x3d, 0x1f,
    ] {
        all.push(vec![0xbf80_0000 | op << 16 | 3]);
    }
    all.push(vec![0xbfb6_0003]);
    all.push(vec![0xbfb0_0000]);
    assert!(compare(&all) > 30);
}

#[test]
fn vectors() {
    let mut all = Vec::new();
    for op in 0..256u32 {
        for src in [0x102, 4, 106, 193, 242] {
            all.push(vec![0x7e00_0000 | 8 << 17 | op << 9 | src]);
            all.push(vec![0x7c00_0000 | op << 17 | 4 << 9 | src]);
        }
        all.push(vec![0x7e00_0000 | 8 << 17 | op << 9 | 255, 0x4567_89ab]);
        all.push(vec![0x7e00_0000 | 8 << 17 | op << 9 | 250, 0xff08_1101 | 2]);
        all.push(vec![0x7e00_0000 | 8 << 17 | op << 9 | 233, 0x0539_7700 | 2]);
    }
    for op in (0..0x3eu32).filter(|op| !matches!(op, 0x2c | 0x2d | 0x37 | 0x38)) {
        for src in [0x106, 6, 106, 193, 242] {
            all.push(vec![op << 25 | 8 << 17 | 4 << 9 | src]);
        }
        all.push(vec![op << 25 | 8 << 17 | 4 << 9 | 250, 0xa51c_6103]);
    }
    for op in [0x2c, 0x2d, 0x37, 0x38u32] {
        all.push(vec![op << 25 | 8 << 17 | 4 << 9 | 0x106, 0x1234]);
    }
    assert!(compare(&all) > 1500);
}

#[test]
fn long_vectors() {
    let mut all = Vec::new();
    for op in 0..1024u32 {
        for (a, b, c) in [
            (0x102, 0, 0),
            (0x102, 0x104, 0),
            (0x102, 0x104, 0x106),
            (0x102, 0x104, 6),
            (0x102, 4, 6),
            (0x102, 4, 0),
        ] {
            let head = 0xd400_0000 | op << 16 | 8;
            // Where there is a scalar destination, its register is s4.
            all.push(vec![head, a | b << 9 | c << 18]);
            if matches!(op, 0x120..=0x122 | 0x2fc..=0x302) {
                all.push(vec![head | 4 << 8, a | b << 9 | c << 18]);
            }
        }
    }
    // Modifiers: negation, absolute values, clamping, output modifiers.
    for op in [0x103, 0x108, 0x12b, 0x213, 0x21f, 0x1a5] {
        let third = if op == 0x213 || op == 0x21f {
            0x106 << 18
        } else {
            0
        };
        let second = if op == 0x1a5 { 0 } else { 0x104 << 9 };
        for (low, high) in [
            (1 << 8, 0),
            (1 << 15, 0),
            (0, 1 << 29),
            (1 << 8, 1 << 29),
            (0, 1 << 27),
            (0, 3 << 27),
        ] {
            all.push(vec![
                0xd400_0000 | op << 16 | 8 | low,
                0x102 | second | third | high,
            ]);
        }
    }
    assert!(compare(&all) > 1000);
}

#[test]
fn packed_and_matrices() {
    let mut all = Vec::new();
    for op in 0..128u32 {
        for (a, b, c) in [(0x108, 0x110, 0x118), (0x108, 0x110, 0)] {
            let head = 0xcc00_0000 | op << 16 | 16;
            all.push(vec![head | 0x4000, a | b << 9 | c << 18 | 3 << 27]);
            if op < 0x40 {
                all.push(vec![head, a | b << 9 | c << 18]);
            }
            all.push(vec![
                head | 0x4000 | 1 << 11,
                a | b << 9 | c << 18 | 3 << 27 | 1 << 29,
            ]);
        }
    }
    assert!(compare(&all) > 60);
}

#[test]
fn dual_issue() {
    let mut all = Vec::new();
    for x in 0..13u32 {
        for y in 0..19u32 {
            let words = [
                0xc800_0000 | x << 22 | y << 17 | 3 << 9 | 0x102,
                0x106 | 6 << 9 | 1 << 17 | 2 << 24,
                0x77,
            ];
            let literal = matches!(x, 1 | 2) || matches!(y, 1 | 2);
            all.push(words[..if literal { 3 } else { 2 }].to_vec());
        }
    }
    assert!(compare(&all) > 150);
}

#[test]
fn memory() {
    let mut all = Vec::new();
    for op in 0..128u32 {
        for segment in 0..3u32 {
            for (low, high) in [
                (0, 124 << 16),
                (16, 124 << 16),
                (0x1ff0, 4 << 16),
                (1 << 14, 124 << 16),
                (8, 124 << 16 | 1 << 23),
                (8, 4 << 16 | 1 << 23),
            ] {
                if segment == 0 && (low > 4095 && low < 0x4000 || high != 124 << 16)
                    || segment == 2 && high & 1 << 23 != 0
                {
                    continue;
                }
                all.push(vec![
                    0xdc00_0000 | op << 18 | segment << 16 | low,
                    2 | 6 << 8 | high | 12 << 24,
                ]);
            }
        }
    }
    // A swizzle's pattern has names of its own, and `ds_bvh_stack` an operand of rays.
    for op in (0..256u32).filter(|op| !matches!(op, 0x35 | 0xad)) {
        for registers in [
            1 | 2 << 8 | 6 << 16 | 8 << 24,
            1 | 2 << 8 | 8 << 24,
            1 | 8 << 24,
            1 | 2 << 8 | 6 << 16,
            1 | 2 << 8,
            8 << 24,
            2 << 8,
        ] {
            for offset in [0, 0x10, 0x0203] {
                all.push(vec![0xd800_0000 | op << 18 | offset, registers]);
            }
        }
    }
    for op in (0..16u32).chain([0x20, 0x21]) {
        for tail in [
            0xf800_0000u32,
            0xf800_002c,
            0xf81f_fff0,
            6 << 25,
            6 << 25 | 8,
        ] {
            all.push(vec![0xf400_0000 | op << 18 | 8 << 6 | 2, tail]);
        }
    }
    assert!(compare(&all) > 700);
}

#[test]
fn code_objects_are_decoded_whole() {
    let object = compile(include_str!("kernels/sample.hip"));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &object).expect("room for a code object");
    let path = file.path().to_str().expect("a path in UTF-8");
    let text = llvm("llvm-objdump-19", &["-d", "--no-show-raw-insn", path], &[]);
    let text = String::from_utf8(text).expect("text");
    let theirs: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with(['\t', ' ']))
        .filter_map(|line| line.split_whitespace().find(|word| !word.ends_with(':')))
        .map(String::from)
        .collect();
    let object = CodeObject::load(&Memory::new(), &object).expect("it loads");
    let code = object.kernels().next().expect("a kernel").code();
    let ours: Vec<String> = code.insts().iter().map(mnemonic).collect();
    assert!(code.insts().iter().all(|inst| inst.kind != Kind::Unknown));
    assert_eq!(ours.len(), theirs.len());
    for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "instruction {i}");
    }
    assert!(ours.len() > 500);
}
