//! The list of pairs of tokens and experts, by expert: a counting sort.

/// Rows of u32, `stride` apart.
pub struct Rows {
    pub start: *mut u32,
    pub stride: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// Makes the list of `bundle_format::plan::Op::Route` of `rows` tokens. `slots` holds each token's experts, and then their
/// places. `starts` is one longer than there are experts.
///
/// # Safety
/// `slots` has `rows` rows that nobody else uses, and `tokens` as many elements as those have; all experts are below
/// `starts.len() - 1`.
pub unsafe fn list_pairs(slots: &Rows, rows: usize, tokens: &mut [u32], starts: &mut [u32]) {
    // SAFETY: the caller's promise.
    let row = |token: usize| unsafe {
        std::slice::from_raw_parts_mut(slots.start.add(token * slots.stride), slots.cols)
    };
    starts.fill(0);
    // Each expert's pairs are counted two behind it, so that after the sums a start is one behind; placing pairs moves it up
    // to where the next one's is.
    for token in 0..rows {
        for &mut expert in row(token) {
            if let Some(count) = starts.get_mut(expert as usize + 2) {
                *count += 1;
            }
        }
    }
    for at in 2..starts.len() {
        starts[at] += starts[at - 1];
    }
    for token in 0..rows {
        for slot in row(token) {
            let next = &mut starts[*slot as usize + 1];
            tokens[*next as usize] = token as u32;
            *slot = *next;
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_references() {
        let mut random = 7u32;
        let mut below = |n: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % n
        };
        for (experts, used, rows) in [(1, 1, 3), (2, 1, 1), (8, 2, 100), (128, 8, 512), (60, 4, 1)]
        {
            for all_to_one in [false, true] {
                let chosen: Vec<u32> = (0..used * rows)
                    .map(|_| {
                        if all_to_one {
                            experts - 1
                        } else {
                            below(experts)
                        }
                    })
                    .collect();
                let expected =
                    kernels::reference::list_pairs(&chosen, used as usize, experts as usize);
                let stride = used as usize + 5;
                let mut slots = vec![u32::MAX; stride * rows as usize];
                for (row, chosen) in slots
                    .chunks_exact_mut(stride)
                    .zip(chosen.chunks(used as usize))
                {
                    row[..used as usize].copy_from_slice(chosen);
                }
                let mut tokens = vec![9; chosen.len()];
                let mut starts = vec![9; experts as usize + 1];
                let view = Rows {
                    start: slots.as_mut_ptr(),
                    stride,
                    cols: used as usize,
                };
                // SAFETY: buffers of these sizes.
                unsafe { list_pairs(&view, rows as usize, &mut tokens, &mut starts) };
                let places: Vec<u32> = slots
                    .chunks_exact(stride)
                    .flat_map(|row| row[..used as usize].to_vec())
                    .collect();
                assert_eq!(tokens, expected.tokens);
                assert_eq!(starts, expected.starts);
                assert_eq!(places, expected.places);
            }
        }
    }
}
