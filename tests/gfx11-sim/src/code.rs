//! Decoded code: every instruction of an executable segment, once, and the way from an address to it.

use crate::decode::decode_all;
use std::sync::OnceLock;

use crate::isa::Inst;
use crate::operands::Operands;

/// The instructions of a segment.
pub struct Code {
    insts: Vec<Inst>,
    /// For each dword the instruction that starts there, or `NONE`.
    starts: Vec<u32>,
    base: u64,
    functions: Vec<(u64, String)>,
    /// Registers that each instruction reads and writes, for checked runs.
    operands: OnceLock<Vec<Operands>>,
}

const NONE: u32 = u32::MAX;

impl Code {
    /// Decodes `bytes`, loaded at `base`.
    pub(crate) fn decode(bytes: &[u8], base: u64, functions: &[(u64, String)]) -> Self {
        let text: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of four")))
            .collect();
        let insts = decode_all(&text);
        let mut starts = vec![NONE; text.len()];
        for (i, inst) in insts.iter().enumerate() {
            starts[inst.at as usize] = i as u32;
        }
        Self {
            insts,
            starts,
            base,
            functions: functions.to_vec(),
            operands: OnceLock::new(),
        }
    }

    /// All instructions, in order.
    pub fn insts(&self) -> &[Inst] {
        &self.insts
    }

    /// Dwords.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Address of the first instruction.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The function that holds an address, and how far in it is.
    pub fn function_at(&self, address: u64) -> Option<(&str, u64)> {
        let found = self
            .functions
            .iter()
            .filter(|(start, _)| *start <= address)
            .max_by_key(|(start, _)| *start);
        found.map(|(start, name)| (name.as_str(), address - start))
    }

    pub(crate) fn operands(&self) -> &[Operands] {
        self.operands.get_or_init(|| {
            self.insts
                .iter()
                .map(|inst| Operands::of(&inst.kind))
                .collect()
        })
    }

    /// The number of the instruction that starts at a dword.
    pub(crate) fn at_dword(&self, dword: i64) -> Option<usize> {
        let start = usize::try_from(dword)
            .ok()
            .and_then(|n| self.starts.get(n))
            .copied()?;
        (start != NONE).then_some(start as usize)
    }
}
