//! KV pools: for each group, layer and part (keys, values) an array of blocks.

use bundle_format::plan::{KV_BLOCK, KvGroup, Plan};
use bundle_format::region::KvPart;

use super::memory::Mapping;
use crate::Error;
use crate::device::BlockCopy;

/// The pools of a plan.
#[derive(Debug)]
pub struct Pools {
    mapping: Mapping,
    groups: Vec<Group>,
    blocks: Vec<u32>,
}

#[derive(Debug)]
struct Group {
    /// Bytes from the mapping's start.
    offset: usize,
    /// Bytes of one layer's keys (or values).
    part_bytes: usize,
    /// Keys and values of all layers.
    parts: usize,
    /// Bytes of a block in one of them.
    block_bytes: usize,
}

impl Pools {
    /// Maps pools of as many blocks as fit `bytes`; none: as [`default_blocks`] says.
    ///
    /// # Errors
    /// [`Error::User`] where `bytes` holds no block or can't be mapped.
    pub fn new(plan: &Plan, bytes: Option<u64>) -> Result<Self, Error> {
        let blocks = match bytes {
            Some(bytes) => blocks_in(&plan.kv, bytes).ok_or_else(|| {
                Error::User(format!(
                    "{bytes} bytes of KV memory hold no block of {KV_BLOCK} positions; give at least {} bytes",
                    block_bytes(&plan.kv)
                ))
            })?,
            None => default_blocks(plan),
        };
        let mut groups = Vec::with_capacity(plan.kv.len());
        let mut end = 0u64;
        for group in &plan.kv {
            // Pools start on pages of their own, so that no two share a cache line.
            let part_bytes = (group.part_bytes() * blocks as u64).next_multiple_of(4096);
            groups.push(Group {
                offset: end as usize,
                part_bytes: part_bytes as usize,
                parts: 2 * group.layers as usize,
                block_bytes: group.part_bytes() as usize,
            });
            end += part_bytes * 2 * group.layers as u64;
        }
        Ok(Self {
            mapping: Mapping::new(end, "the KV pools")?,
            blocks: vec![blocks; groups.len()],
            groups,
        })
    }

    /// Blocks of each group.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The pool of a layer's keys or values, at its block 0. Group and layer are the plan's.
    pub fn part(&self, group: u32, layer: u32, part: KvPart) -> *mut u8 {
        let group = &self.groups[group as usize];
        let index = layer as usize * 2
            + match part {
                KvPart::Key => 0,
                KvPart::Value => 1,
            };
        self.mapping
            .start()
            .wrapping_add(group.offset + index * group.part_bytes)
    }
}

impl Pools {
    /// Copies blocks of a group, one copy after the other, in every part of which this is share `index` of `of`.
    ///
    /// # Safety
    /// The blocks are below [`Self::blocks`] and a copy's two differ. Nobody else accesses this share's parts.
    pub unsafe fn copy(&self, group: usize, copies: &[BlockCopy], index: usize, of: usize) {
        let group = &self.groups[group];
        for part in (index..group.parts).step_by(of) {
            let start = group.offset + part * group.part_bytes;
            let block = |number: u32| {
                let offset = start + number as usize * group.block_bytes;
                self.mapping.start().wrapping_add(offset)
            };
            for copy in copies {
                // SAFETY: the caller's promise: different blocks of this pool.
                unsafe {
                    block(copy.to).copy_from_nonoverlapping(block(copy.from), group.block_bytes);
                }
            }
        }
    }
}

/// Bytes of one block in every group.
fn block_bytes(groups: &[KvGroup]) -> u64 {
    groups.iter().map(KvGroup::block_bytes).sum()
}

/// Blocks that fit some memory, in every group; none where not even one does. Slots are 32 bits wide, which bounds them.
fn blocks_in(groups: &[KvGroup], bytes: u64) -> Option<u32> {
    let most = (u32::MAX as usize / KV_BLOCK) as u64;
    let blocks = bytes / block_bytes(groups).max(1);
    (blocks > 0).then(|| blocks.min(most) as u32)
}

/// Blocks for every sequence of a full step to fill the context, or for what fits half of the memory that is free, but for
/// one sequence at least: pages are only taken when they are used.
pub fn default_blocks(plan: &Plan) -> u32 {
    let one = (plan.limits.context as usize).div_ceil(KV_BLOCK) as u64;
    let all = one * plan.limits.max_seqs as u64;
    let fitting = available_memory()
        .and_then(|bytes| blocks_in(&plan.kv, bytes / 2))
        .map_or(one, u64::from);
    let most = (u32::MAX as usize / KV_BLOCK) as u64;
    all.min(fitting.max(one)).min(most) as u32
}

/// Bytes of memory that the system could give; none where it doesn't say.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::plan::{KvDType, Limits};

    fn plan(max_seqs: u32) -> Plan {
        Plan {
            limits: Limits {
                max_tokens: 64,
                max_seqs,
                max_rows: 1,
                context: 100,
            },
            world_size: 1,
            kv: vec![KvGroup {
                dtype: KvDType::F16,
                layers: 2,
                kv_heads: 3,
                head_dim: 8,
                window: None,
            }],
            buffers: vec![],
            arena_bytes: 0,
            weights: vec![],
            launches: vec![],
            sampling: None,
            stability: Vec::new(),
        }
    }

    #[test]
    fn blocks_come_from_bytes_or_from_the_limits() {
        let bytes = plan(4).kv[0].block_bytes();
        assert_eq!(
            Pools::new(&plan(4), Some(bytes * 5 + 1)).unwrap().blocks(),
            [5]
        );
        assert_eq!(Pools::new(&plan(4), None).unwrap().blocks(), [7 * 4]);
        let error = Pools::new(&plan(4), Some(bytes - 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&bytes.to_string()), "{error}");
    }

    #[test]
    fn copies_follow_one_another_in_every_part() {
        let pools = Pools::new(&plan(4), None).unwrap();
        let bytes = plan(4).kv[0].part_bytes() as usize;
        let part = |i: u32| match i % 2 {
            0 => pools.part(0, i / 2, KvPart::Key),
            _ => pools.part(0, i / 2, KvPart::Value),
        };
        // SAFETY: blocks 3, 5 and 6 are in the pools, and only this thread uses them.
        unsafe {
            for i in 0..4 {
                part(i).add(3 * bytes).write_bytes(i as u8 + 1, bytes);
            }
            let copies = [(3, 5), (5, 6)].map(|(from, to)| BlockCopy { from, to });
            for share in 0..3 {
                pools.copy(0, &copies, share, 3);
            }
            for i in 0..4 {
                for (block, expected) in [(4, 0), (5, i as u8 + 1), (6, i as u8 + 1), (7, 0)] {
                    let found = std::slice::from_raw_parts(part(i).add(block * bytes), bytes);
                    assert!(found.iter().all(|&x| x == expected), "{i} {block}");
                }
            }
        }
    }

    #[test]
    fn pools_do_not_overlap() {
        let pools = Pools::new(&plan(4), None).unwrap();
        let size = plan(4).kv[0].part_bytes() as usize * 28;
        let mut starts: Vec<usize> = (0..2)
            .flat_map(|layer| [KvPart::Key, KvPart::Value].map(|part| (layer, part)))
            .map(|(layer, part)| pools.part(0, layer, part) as usize)
            .collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[0] + size <= pair[1]));
        let end = pools.mapping.start() as usize + pools.mapping.len();
        assert!(starts[3] + size <= end);
    }
}
