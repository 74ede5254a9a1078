//! KV pools: for each group, layer and part (keys, values) an array of blocks.

use bundle_format::plan::{KV_BLOCK, KvGroup, Plan};
use bundle_format::region::KvPart;

use super::memory::Mapping;
use crate::Error;
use crate::device::BlockCopy;
use crate::kv::{most_blocks, share_out};

/// The pools of a plan.
#[derive(Debug)]
pub struct Pools {
    mapping: Mapping,
    groups: Vec<Group>,
    blocks: Vec<u32>,
    windows: Vec<Option<u32>>,
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
            Some(bytes) => share_out(&plan.kv, &plan.limits, bytes).ok_or_else(|| {
                let all: u64 = plan.kv.iter().map(KvGroup::block_bytes).sum();
                Error::User(format!(
                    "{bytes} bytes of KV memory hold no block of {KV_BLOCK} positions; give at least {all} bytes"
                ))
            })?,
            None => default_blocks(plan),
        };
        let mut groups = Vec::with_capacity(plan.kv.len());
        let mut end = 0u64;
        for (group, &blocks) in plan.kv.iter().zip(&blocks) {
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
            blocks,
            windows: plan.kv.iter().map(|group| group.window).collect(),
            groups,
        })
    }

    /// Blocks of each group.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Positions that each group sees.
    pub fn windows(&self) -> &[Option<u32>] {
        &self.windows
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

/// Blocks for every sequence of a full step to fill the context, or for what fits half of the memory that is free, but for
/// one sequence at least: pages are only taken when they are used.
pub fn default_blocks(plan: &Plan) -> Vec<u32> {
    let one = u64::from(plan.limits.context).div_ceil(KV_BLOCK as u64);
    let fitting = available_memory().and_then(|bytes| share_out(&plan.kv, &plan.limits, bytes / 2));
    let most = most_blocks(&plan.kv, &plan.limits).into_iter();
    most.enumerate()
        .map(|(group, most)| {
            let fitting = fitting
                .as_ref()
                .map_or(0, |blocks| u64::from(blocks[group]));
            most.min(fitting.max(one)) as u32
        })
        .collect()
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
    fn a_group_that_sees_a_window_has_fewer_blocks() {
        let mut plan = plan(4);
        plan.limits.max_tokens = 2;
        let mut windowed = plan.kv[0].clone();
        windowed.window = Some(10);
        plan.kv.push(windowed);
        // 10 positions and those of three steps, and two blocks.
        let pools = Pools::new(&plan, None).unwrap();
        assert_eq!(pools.blocks(), [7 * 4, 3 * 4]);
        assert_eq!(pools.windows(), [None, Some(10)]);
        let bytes = plan.kv[0].block_bytes();
        let pools = Pools::new(&plan, Some(32 * bytes)).unwrap();
        assert_eq!(pools.blocks(), [20, 12]);
        let part = plan.kv[0].part_bytes() as usize;
        let end = pools.part(1, 1, KvPart::Value) as usize + 12 * part;
        assert!(end <= pools.mapping.start() as usize + pools.mapping.len());
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
