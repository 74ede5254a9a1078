//! How many blocks each KV group gets of a device's memory.

use bundle_format::plan::{KV_BLOCK, KvGroup, Limits};

use super::blocks_for;

/// Steps whose tokens a sequence may have on their way, and one that it makes room for.
const STEPS: u32 = 3;

/// Blocks that slots, which are 32 bits wide, can number.
const SLOTS: u64 = (u32::MAX / KV_BLOCK as u32) as u64;

/// Blocks of each group that all sequences together can fill.
pub fn most_blocks(groups: &[KvGroup], limits: &Limits) -> Vec<u64> {
    let context = blocks_for(limits.context);
    let kept = is_kept(groups);
    let most = |group: &KvGroup| {
        let sequence = match group.window.filter(|_| !kept(group)) {
            // What its steps see and write, at both ends a block that is partly needed.
            Some(window) => {
                let positions = limits
                    .max_tokens
                    .saturating_mul(STEPS)
                    .saturating_add(window);
                context.min(blocks_for(positions).saturating_add(2))
            }
            None => context,
        };
        (u64::from(sequence) * u64::from(limits.max_seqs)).min(SLOTS)
    };
    groups.iter().map(most).collect()
}

/// Groups whose blocks are kept to the end of their sequence: those that see everything or, where there are none, the first.
fn is_kept(groups: &[KvGroup]) -> impl Fn(&KvGroup) -> bool + '_ {
    let no_whole = groups.iter().all(|group| group.window.is_some());
    move |group| group.window.is_none() || no_whole && std::ptr::eq(group, &groups[0])
}

/// Shares `bytes` out: the same number of blocks to each group, but that groups which see a window get no more than all sequences
/// can fill, and the others what that leaves, be it more than sequences fill: prefixes are kept in it. So none gets fewer than if
/// all were alike, unless it has all that it can use. None where there is no block for each.
pub fn share_out(groups: &[KvGroup], limits: &Limits, bytes: u64) -> Option<Vec<u32>> {
    let (most, kept) = (most_blocks(groups, limits), is_kept(groups));
    let all: u64 = groups.iter().map(KvGroup::block_bytes).sum();
    // Without groups there is nothing to share.
    let alike = bytes.checked_div(all).unwrap_or(SLOTS);
    if alike == 0 {
        return None;
    }
    let (mut left, mut cost) = (bytes, 0);
    for (group, &most) in groups.iter().zip(&most) {
        match kept(group) {
            true => cost += group.block_bytes(),
            false => left -= most.min(alike) * group.block_bytes(),
        }
    }
    let left = left.checked_div(cost).unwrap_or(SLOTS);
    let share = |(group, &most): (&KvGroup, &u64)| {
        let share = if kept(group) { left } else { alike.min(most) };
        share.min(SLOTS) as u32
    };
    Some(groups.iter().zip(&most).map(share).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_format::plan::KvDType;

    fn group(layers: u32, window: Option<u32>) -> KvGroup {
        KvGroup {
            dtype: KvDType::F16,
            layers,
            kv_heads: 1,
            head_dim: 256,
            window,
        }
    }

    const LIMITS: Limits = Limits {
        max_tokens: 512,
        max_seqs: 8,
        max_rows: 8,
        context: 32768,
    };

    #[test]
    fn windows_leave_the_rest_to_those_that_see_everything() {
        // Gemma 3 270M.
        let groups = [group(15, Some(512)), group(3, None)];
        let one: u64 = groups.iter().map(KvGroup::block_bytes).sum();
        // 512 + 3 * 512 positions, and two blocks.
        assert_eq!(most_blocks(&groups, &LIMITS), [130 * 8, 2048 * 8]);
        for blocks in [1, 100, 1040, 2000, 5000, 1 << 20] {
            let found = share_out(&groups, &LIMITS, blocks * one + 1).expect("it holds a block");
            let found: Vec<u64> = found.into_iter().map(u64::from).collect();
            assert_eq!(found[0], blocks.min(1040));
            // Never fewer than if all were alike, and no more bytes than there are.
            assert!(found[1] >= blocks.min(16384), "{found:?}");
            let taken: u64 = groups
                .iter()
                .zip(&found)
                .map(|(g, n)| g.block_bytes() * n)
                .sum();
            assert!(taken <= blocks * one + 1);
        }
        // 2000 blocks alike would be 32,000 positions: now they are 108,800.
        assert_eq!(
            share_out(&groups, &LIMITS, 2000 * one),
            Some(vec![1040, 6800])
        );
        assert_eq!(share_out(&groups, &LIMITS, one - 1), None);
    }

    #[test]
    fn without_a_window_or_with_nothing_else_all_are_alike() {
        let bytes = group(2, None).block_bytes();
        let share = |groups: &[KvGroup], blocks| share_out(groups, &LIMITS, blocks * bytes);
        assert_eq!(share(&[group(2, None)], 7), Some(vec![7]));
        assert_eq!(
            share(&[group(1, None), group(1, None)], 7),
            Some(vec![7, 7])
        );
        assert_eq!(share(&[group(2, Some(100))], 7), Some(vec![7]));
        assert_eq!(share(&[group(2, None)], 20_000), Some(vec![20_000]));
        assert_eq!(share_out(&[], &LIMITS, 1), Some(vec![]));
    }
}
