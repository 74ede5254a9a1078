//! Where everything lies in the GPU's memory: weights, the arena, KV pools, the inputs of a step, what launches need for
//! themselves.

use bundle_format::gpu::{Arg, DRAW_BYTES, DRAWN_BYTES, Extent, Kernel, counts};
use bundle_format::plan::{Input, KV_BLOCK, Plan, Role, WeightLayout};
use bundle_format::region::KvPart;

use crate::Error;
use crate::kv::{most_blocks, share_out};

/// Alignment of everything.
const ALIGN: u64 = 256;

/// Columns of a fragment, and rows that a kernel may read behind a weight's last one.
const READ_AHEAD_ROWS: u64 = 128;

/// The inputs of a step, in one block that is copied at once: counts, indices, tiles, tables. Offsets in bytes from its
/// start.
#[derive(Debug)]
pub struct Inputs {
    pub counts: usize,
    pub tokens: usize,
    pub positions: usize,
    pub sequences: usize,
    pub rows: usize,
    /// How to draw from each row.
    pub draws: usize,
    /// By KV group.
    pub slots: Vec<usize>,
    pub tiles: usize,
    /// By KV group: `[S][stride]`.
    pub tables: Vec<usize>,
    /// Entries of a table.
    pub table_stride: usize,
    /// Rows of a tile.
    pub tile_rows: u32,
    pub bytes: usize,
}

/// Offsets in the GPU's memory.
#[derive(Debug)]
pub struct Layout {
    pub weights: u64,
    pub arena: u64,
    /// Of the steps of two turns: one's are written while the other's are read.
    pub inputs_at: [u64; 2],
    pub inputs: Inputs,
    /// Drawn tokens, for the steps of two turns.
    pub drawn: u64,
    pub workspace: u64,
    pub tickets: u64,
    pub tickets_bytes: u64,
    pub pools: u64,
    /// Blocks of each KV group.
    pub blocks: Vec<u32>,
    pub bytes: u64,
}

impl Layout {
    /// Divides `available` bytes: as many KV blocks as fit, or as `kv_bytes` asks for.
    ///
    /// # Errors
    /// [`Error::User`] where they don't fit, with the numbers.
    pub fn new(
        plan: &Plan,
        weights_bytes: u64,
        available: u64,
        kv_bytes: Option<u64>,
    ) -> Result<Layout, Error> {
        let inputs = Inputs::new(plan)?;
        let mut end = 0;
        let mut place = |bytes: u64| {
            let start = end;
            end = (end + bytes).next_multiple_of(ALIGN);
            start
        };
        let weights = place(weights_bytes + read_ahead(plan));
        let arena = place(plan.arena_bytes);
        let inputs_at = [place(inputs.bytes as u64), place(inputs.bytes as u64)];
        let drawn = place(2 * u64::from(plan.limits.max_rows) * DRAWN_BYTES as u64);
        let workspace = place(plan.kernels().map(|k| k.workspace).max().unwrap_or(0));
        let counters = plan.kernels().map(|k| u64::from(k.tickets)).max();
        let tickets_bytes = counters.unwrap_or(0) * 4;
        let tickets = place(tickets_bytes);
        let pools = place(0);
        let blocks = blocks(plan, available, pools, kv_bytes)?;
        let groups = plan.kv.iter().zip(&blocks);
        let pool_bytes: u64 = groups.map(|(kv, &n)| kv.block_bytes() * u64::from(n)).sum();
        Ok(Layout {
            weights,
            arena,
            inputs_at,
            inputs,
            drawn,
            workspace,
            tickets,
            tickets_bytes,
            pools,
            blocks,
            bytes: pools + pool_bytes,
        })
    }

    /// Block 0 of the keys or values of a layer, and the bytes of a block.
    pub fn pool(&self, plan: &Plan, group: u32, layer: u32, part: KvPart) -> (u64, u64) {
        let mut start = self.pools;
        let group = group as usize;
        for (kv, &blocks) in plan.kv[..group].iter().zip(&self.blocks) {
            start += kv.block_bytes() * u64::from(blocks);
        }
        let bytes = plan.kv[group].part_bytes();
        let index = 2 * u64::from(layer) + u64::from(part == KvPart::Value);
        (start + index * bytes * u64::from(self.blocks[group]), bytes)
    }

    /// What a kernel's argument is in steps of a turn: an offset from the memory's start, or a number.
    pub fn argument(&self, plan: &Plan, arg: Arg, turn: usize) -> Argument {
        let input = |at: usize| Argument::At(self.inputs_at[turn] + at as u64);
        match arg {
            Arg::Counts => input(self.inputs.counts),
            Arg::Buffer(index) => {
                let place = plan.buffers[index as usize].place;
                match place.role {
                    Role::Input(Input::Tokens) => input(self.inputs.tokens),
                    Role::Input(Input::Positions) => input(self.inputs.positions),
                    Role::Input(Input::Sequences) => input(self.inputs.sequences),
                    Role::Input(Input::Rows) => input(self.inputs.rows),
                    Role::Input(Input::Slots(group)) => input(self.inputs.slots[group as usize]),
                    Role::Scratch | Role::Output(_) => Argument::At(self.arena + place.offset),
                }
            }
            Arg::Weight(index) => Argument::At(self.weights + plan.weights[index as usize].offset),
            Arg::Kv { group, layer, part } => Argument::At(self.pool(plan, group, layer, part).0),
            Arg::Tables(group) => input(self.inputs.tables[group as usize]),
            Arg::TableStride => Argument::Number(self.inputs.table_stride as u64),
            Arg::Tiles => input(self.inputs.tiles),
            Arg::Workspace => Argument::At(self.workspace),
            Arg::Tickets => Argument::At(self.tickets),
            Arg::Draws => input(self.inputs.draws),
            Arg::Drawn => Argument::At(self.drawn),
            // All groups have as many where a kernel asks: see `blocks`.
            Arg::KvBlocks => Argument::Number(self.blocks.first().map_or(0, |&n| u64::from(n))),
        }
    }
}

/// Blocks of each KV group, in pools that lie behind `fixed` other bytes.
fn blocks(
    plan: &Plan,
    available: u64,
    fixed: u64,
    kv_bytes: Option<u64>,
) -> Result<Vec<u32>, Error> {
    let block: u64 = plan.kv.iter().map(|kv| kv.block_bytes()).sum();
    // Never more than all sequences can fill. `Arg::KvBlocks` is one number for all groups: where a kernel takes it, they have
    // as many blocks as one another.
    let mut args = plan.kernels().flat_map(|kernel| &kernel.args);
    let alike = args.any(|&arg| arg == Arg::KvBlocks);
    let mut most = most_blocks(&plan.kv, &plan.limits);
    if alike {
        let largest = most.iter().copied().max().unwrap_or(0);
        most.fill(largest);
    }
    let all: u64 = plan
        .kv
        .iter()
        .zip(&most)
        .map(|(kv, n)| kv.block_bytes() * n)
        .sum();
    let short = |text: String| Err(Error::User(text));
    let Some(left) = available.checked_sub(fixed) else {
        return short(format!(
            "the GPU has {available} bytes free for this bundle, whose weights and buffers take {fixed}; free some of its \
             memory, or take a smaller model or a GPU with more"
        ));
    };
    let room = match kv_bytes {
        Some(bytes) if bytes < block => {
            return short(format!(
                "{bytes} bytes of KV memory hold no block of {KV_BLOCK} positions; give at least {block} bytes"
            ));
        }
        Some(bytes) if bytes.min(all) > left => {
            return short(format!(
                "{bytes} bytes of KV memory are asked for, but the GPU has {left} left beside this bundle's weights and buffers \
                 of {fixed} bytes; ask for less, or free some of its memory"
            ));
        }
        Some(bytes) => bytes,
        None if left < block => {
            return short(format!(
                "the GPU has {available} bytes free for this bundle, whose weights and buffers take {fixed} and each {KV_BLOCK} \
                 positions {block} more; free some of its memory"
            ));
        }
        None => left,
    };
    let shares = match alike {
        true => room
            .checked_div(block)
            .map(|n| vec![n.min(u64::from(u32::MAX)) as u32; most.len()]),
        false => share_out(&plan.kv, &plan.limits, room),
    };
    let shares = shares
        .unwrap_or_else(|| vec![u32::MAX; most.len()])
        .into_iter();
    let shares = shares
        .zip(most)
        .map(|(share, most)| u64::from(share).min(most) as u32);
    Ok(shares.collect())
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A place, from the memory's start.
    At(u64),
    Number(u64),
}

/// Bytes that kernels may read behind the last weight: an item of theirs may have fewer rows than they take at a time.
fn read_ahead(plan: &Plan) -> u64 {
    let per_row = |w: &bundle_format::plan::Weight| match w.layout {
        WeightLayout::Fragment16 => w.len / u64::from(w.rows.max(1)) + 1,
        WeightLayout::RowMajor | WeightLayout::Interleave8 | WeightLayout::Pairs8 => 0,
    };
    plan.weights.iter().map(per_row).max().unwrap_or(0) * READ_AHEAD_ROWS
}

impl Inputs {
    fn new(plan: &Plan) -> Result<Inputs, Error> {
        let limits = &plan.limits;
        let tokens = limits.max_tokens as usize;
        let table_stride = (limits.context as usize)
            .div_ceil(KV_BLOCK)
            .next_multiple_of(4);
        let tile_rows = tile_rows(plan)?;
        let mut end = 0;
        let mut place = |words: usize| {
            let start = end;
            end = (end + 4 * words).next_multiple_of(ALIGN as usize);
            start
        };
        let counts = place(counts::WORDS);
        let all = [(); 3].map(|()| place(tokens));
        let rows = place(limits.max_rows as usize);
        let draws = place(limits.max_rows as usize * DRAW_BYTES / 4);
        let slots = plan.kv.iter().map(|_| place(tokens)).collect();
        let tiles = place(4 * (tokens / tile_rows as usize + limits.max_seqs as usize + 1));
        let tables = plan
            .kv
            .iter()
            .map(|_| place(table_stride * limits.max_seqs as usize))
            .collect();
        Ok(Inputs {
            counts,
            tokens: all[0],
            positions: all[1],
            sequences: all[2],
            rows,
            draws,
            slots,
            tiles,
            tables,
            table_stride,
            tile_rows,
            bytes: end,
        })
    }
}

/// Rows of a tile, as all kernels have it.
fn tile_rows(plan: &Plan) -> Result<u32, Error> {
    let extents = |k: &Kernel| k.grid;
    let mut found = None;
    for extent in plan.kernels().flat_map(extents) {
        if let Extent::Tiles(rows) = extent {
            if found.is_some_and(|other| other != rows) {
                return Err(Error::Bug(format!(
                    "the plan's kernels take tiles of {rows} rows and of others"
                )));
            }
            found = Some(rows);
        }
    }
    Ok(found.unwrap_or(64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::plan::{KvDType, KvGroup, Limits};

    fn plan() -> Plan {
        Plan {
            limits: Limits {
                max_tokens: 64,
                max_seqs: 4,
                max_rows: 8,
                context: 100,
            },
            world_size: 1,
            kv: vec![KvGroup {
                dtype: KvDType::F16Rows,
                layers: 2,
                kv_heads: 3,
                head_dim: 16,
                window: None,
            }],
            buffers: vec![],
            arena_bytes: 1000,
            weights: vec![],
            launches: vec![],
            sampling: None,
            stability: Vec::new(),
        }
    }

    #[test]
    fn pools_take_what_is_free_or_asked_for() {
        let block = plan().kv[0].block_bytes();
        let new = |available, kv_bytes| Layout::new(&plan(), 5000, available, kv_bytes).unwrap();
        // 7 blocks a sequence.
        let all = new(1 << 30, None);
        assert_eq!(all.blocks, [28]);
        assert_eq!(all.bytes, all.pools + 28 * block);
        assert_eq!(new(all.pools + 5 * block + 1, None).blocks, [5]);
        assert_eq!(new(1 << 30, Some(3 * block)).blocks, [3]);
        assert_eq!(new(1 << 30, Some(1 << 40)).blocks, [28]);
        let (keys, bytes) = all.pool(&plan(), 0, 1, KvPart::Key);
        assert_eq!((keys, bytes), (all.pools + 28 * block / 2, block / 4));
        let (values, _) = all.pool(&plan(), 0, 1, KvPart::Value);
        assert_eq!(values + 28 * bytes, all.bytes);
    }

    #[test]
    fn a_group_that_sees_a_window_has_fewer_blocks() {
        let mut plan = plan();
        plan.limits.max_tokens = 2;
        plan.kv.push(KvGroup {
            window: Some(10),
            ..plan.kv[0].clone()
        });
        let layout = Layout::new(&plan, 5000, 1 << 30, None).unwrap();
        assert_eq!(layout.blocks, [28, 12]);
        let block = plan.kv[0].block_bytes();
        assert_eq!(layout.bytes, layout.pools + 40 * block);
        let (values, bytes) = layout.pool(&plan, 1, 1, KvPart::Value);
        assert_eq!(values + 12 * bytes, layout.bytes);
        // What the window leaves is the other's.
        let asked = Layout::new(&plan, 5000, 1 << 30, Some(32 * block)).unwrap();
        assert_eq!(asked.blocks, [20, 12]);
    }

    #[test]
    fn what_does_not_fit_is_told_with_numbers() {
        let block = plan().kv[0].block_bytes();
        let pools = Layout::new(&plan(), 5000, 1 << 30, None).unwrap().pools;
        let text = |available, kv_bytes| match Layout::new(&plan(), 5000, available, kv_bytes) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?}"),
        };
        let contains = |text: String, numbers: &[u64]| {
            for number in numbers {
                assert!(text.contains(&number.to_string()), "{number}: {text}");
            }
        };
        contains(text(4000, None), &[4000, pools]);
        contains(text(pools + block - 1, None), &[pools, block]);
        contains(text(1 << 30, Some(7)), &[7, block]);
        let asked = 20 * block;
        contains(text(pools + block, Some(asked)), &[asked, block, pools]);
    }
}
