//! Single instructions against the case table: what each does to registers and memory, by the published pseudo-code
//! (cases/make.py says how the table was made).

mod common;

use common::llvm;
use gfx11_sim::Probe;

const TABLE: &str = include_str!("cases.txt");

/// Bytes of LDS that cases can use.
const LDS: usize = 4096;

struct Case<'a> {
    line: usize,
    /// Instructions, one after another.
    text: Vec<&'a str>,
    inputs: Vec<(&'a str, Vec<&'a str>)>,
    outputs: Vec<(&'a str, Vec<&'a str>)>,
}

fn cases() -> Vec<Case<'static>> {
    let lines = TABLE.lines().enumerate();
    let case = |(i, line): (usize, &'static str)| {
        let parts: Vec<&str> = line.split(" | ").collect();
        let side = |part: Option<&&'static str>| -> Vec<(&'static str, Vec<&'static str>)> {
            let pairs = part.unwrap_or(&"").split_whitespace();
            pairs
                .map(|pair| {
                    let (name, values) = pair.split_once('=').expect("name=values");
                    (name, values.split(',').collect())
                })
                .collect()
        };
        Case {
            line: i + 1,
            text: parts[0].split("; ").collect(),
            inputs: side(parts.get(1)),
            outputs: side(parts.get(2)),
        }
    };
    lines.map(case).collect()
}

/// The encoding of each instruction.
fn assemble(lines: &[&str]) -> Vec<Vec<u32>> {
    let input = lines.join("\n") + "\n";
    let args = [
        "-triple=amdgcn",
        "-mcpu=gfx1151",
        "-mattr=+wavefrontsize32,-wavefrontsize64",
        "-show-encoding",
    ];
    let text = String::from_utf8(llvm("llvm-mc-19", &args, input.as_bytes())).expect("text");
    let bytes = |line: &str| -> Vec<u8> {
        let list = line.split_once("encoding: [").expect("an encoding").1;
        let list = list.trim_end().trim_end_matches(']');
        list.split(',')
            .map(|byte| u8::from_str_radix(byte.trim_start_matches("0x"), 16).expect("a byte"))
            .collect()
    };
    let encodings: Vec<Vec<u32>> = text
        .lines()
        .filter(|line| line.contains("encoding: ["))
        .map(|line| {
            let words = bytes(line);
            let words = words.as_chunks::<4>().0;
            words.iter().map(|word| u32::from_le_bytes(*word)).collect()
        })
        .collect();
    assert_eq!(
        encodings.len(),
        lines.len(),
        "llvm-mc gives each line an encoding"
    );
    encodings
}

fn number(text: &str) -> u32 {
    u32::from_str_radix(text, 16).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

/// A register's number in a case's name for it: `s7`, `vcc`, `exec`.
fn scalar(name: &str) -> Option<u8> {
    match name {
        "vcc" => Some(106),
        "m0" => Some(125),
        "exec" => Some(126),
        _ => name.strip_prefix('s')?.parse().ok(),
    }
}

fn vector(name: &str) -> Option<u8> {
    name.strip_prefix('v')?.parse().ok()
}

/// The value of lane (or dword) `i` of a list, whose last one stands for all that follow.
fn nth<'a>(values: &[&'a str], i: usize) -> &'a str {
    values[i.min(values.len() - 1)]
}

/// Whether a result is what was expected: a number, or any NaN.
fn is(found: u32, expected: &str) -> bool {
    match expected {
        "nan" => f32::from_bits(found).is_nan(),
        "nan16" => found & 0x7fff > 0x7c00,
        _ => found == number(expected),
    }
}

/// Runs a case; what was wrong.
fn run(case: &Case, words: &[u32]) -> Vec<String> {
    let mut probe = Probe::new(LDS);
    let dwords = |values: &[&str]| -> Vec<u8> {
        let all = values.iter().flat_map(|x| number(x).to_le_bytes());
        all.collect()
    };
    let memory = case.inputs.iter().find(|(name, _)| *name == "mem");
    let address = memory.map(|(_, values)| {
        let bytes = dwords(values);
        let address = probe.memory.alloc(bytes.len() as u64);
        probe
            .memory
            .write(address, &bytes)
            .expect("it was allocated");
        address
    });
    if let Some(address) = address {
        for (register, part) in [(20, address as u32), (21, (address >> 32) as u32)] {
            *probe.s(register) = part;
            *probe.v(register) = [part; 32];
        }
    }
    for (name, values) in &case.inputs {
        match *name {
            "mem" => {}
            "lds" => {
                for (i, value) in values.iter().enumerate() {
                    probe.set_lds(4 * i, number(value));
                }
            }
            "scc" => *probe.scc() = number(values[0]) != 0,
            "mode" => *probe.mode() = number(values[0]),
            name if vector(name).is_some() => {
                let register = probe.v(vector(name).expect("just looked"));
                for (lane, to) in register.iter_mut().enumerate() {
                    match nth(values, lane).strip_prefix('+') {
                        Some(more) => *to += number(more),
                        None => *to = number(nth(values, lane)),
                    }
                }
            }
            name => {
                *probe.s(scalar(name).unwrap_or_else(|| panic!("line {}: {name}", case.line))) =
                    number(values[0])
            }
        }
    }
    if let Err(fault) = probe.run(words) {
        return vec![fault.to_string()];
    }
    let mut wrong = vec![];
    for (name, values) in &case.outputs {
        let mut compare = |place: String, found: u32, expected: &str| {
            if !is(found, expected) {
                wrong.push(format!("{place} is {found:x}, expected {expected}"));
            }
        };
        match *name {
            "mem" => {
                let mut bytes = vec![0; 4 * values.len()];
                let address = address.expect("a case with memory");
                probe
                    .memory
                    .read(address, &mut bytes)
                    .expect("as much as was written");
                for (i, (word, value)) in bytes.as_chunks::<4>().0.iter().zip(values).enumerate() {
                    compare(format!("mem[{i}]"), u32::from_le_bytes(*word), value);
                }
            }
            "lds" => {
                for (i, value) in values.iter().enumerate() {
                    compare(format!("lds[{i}]"), probe.lds(4 * i), value);
                }
            }
            "scc" => compare("scc".into(), u32::from(*probe.scc()), values[0]),
            name if vector(name).is_some() => {
                let register = *probe.v(vector(name).expect("just looked"));
                for (lane, found) in register.into_iter().enumerate() {
                    compare(format!("{name}, lane {lane}"), found, nth(values, lane));
                }
            }
            name => {
                let register = scalar(name).unwrap_or_else(|| panic!("line {}: {name}", case.line));
                compare(name.to_string(), *probe.s(register), values[0]);
            }
        }
    }
    wrong
}

#[test]
fn every_case_of_the_table() {
    let cases = cases();
    let lines: Vec<&str> = cases
        .iter()
        .flat_map(|case| case.text.iter().copied())
        .collect();
    let mut encodings = assemble(&lines).into_iter();
    let mut failed = vec![];
    for case in &cases {
        let words: Vec<u32> = encodings.by_ref().take(case.text.len()).flatten().collect();
        let wrong = run(case, &words);
        if !wrong.is_empty() {
            let first: Vec<&str> = wrong.iter().take(4).map(String::as_str).collect();
            failed.push(format!(
                "cases.txt:{}: {}: {} ({} in all)",
                case.line,
                case.text.join("; "),
                first.join("; "),
                wrong.len()
            ));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}
