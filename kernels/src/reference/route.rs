//! `Op::Route`: the experts of each token, and the list of pairs.

/// How tokens are sent to experts.
#[derive(Clone, Copy, Debug)]
pub struct RouteSpec {
    /// Experts of a token.
    pub used: usize,
    /// Whether a token's weights are to sum to 1 before they are scaled.
    pub renormalise: bool,
    pub scale: f32,
}

/// A token's experts, slot by slot, and the weight of each; none where a logit is not finite. Of equal logits the lower index
/// comes first.
///
/// # Panics
/// Where there are fewer logits than experts of a token.
pub fn choose(logits: &[f32], spec: &RouteSpec) -> Option<Vec<(u32, f32)>> {
    assert!(spec.used <= logits.len(), "experts of a token");
    if !logits.iter().all(|l| l.is_finite()) {
        return None;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable.
    let by_logit = |&a: &usize, &b: &usize| logits[b].partial_cmp(&logits[a]);
    order.sort_by(|a, b| by_logit(a, b).unwrap_or(std::cmp::Ordering::Equal));
    let chosen = &order[..spec.used];
    let share = |expert: usize| f64::from(logits[expert] - logits[order[0]]).exp();
    let sum: f64 = match spec.renormalise {
        true => chosen.iter().map(|&e| share(e)).sum(),
        false => order.iter().map(|&e| share(e)).sum(),
    };
    let slot = |&expert: &usize| {
        let weight = share(expert) / sum * f64::from(spec.scale);
        (expert as u32, weight as f32)
    };
    Some(chosen.iter().map(slot).collect())
}

/// The list of pairs: by expert, and of one expert by token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairList {
    /// The token at each place.
    pub tokens: Vec<u32>,
    /// The place of each token's slots, token by token.
    pub places: Vec<u32>,
    /// Where each expert's part starts, and where the last one's ends.
    pub starts: Vec<u32>,
}

/// Lists the pairs of tokens that go to `used` of `experts` each; `chosen` are those, token by token.
///
/// # Panics
/// Where an expert is not below `experts`.
pub fn list_pairs(chosen: &[u32], used: usize, experts: usize) -> PairList {
    let mut pairs: Vec<usize> = (0..chosen.len()).collect();
    pairs.sort_by_key(|&pair| (chosen[pair], pair));
    let mut list = PairList {
        places: vec![0; chosen.len()],
        starts: vec![0; experts + 1],
        ..PairList::default()
    };
    for (place, &pair) in pairs.iter().enumerate() {
        list.tokens.push((pair / used) as u32);
        list.places[pair] = place as u32;
        list.starts[chosen[pair] as usize + 1] += 1;
    }
    for expert in 0..experts {
        list.starts[expert + 1] += list.starts[expert];
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_go_first_and_ties_to_the_lower_index() {
        let spec = RouteSpec {
            used: 3,
            renormalise: true,
            scale: 2.0,
        };
        let found = choose(&[1.0, 2.0, 1.0, -0.0, 2.0, 0.0], &spec).unwrap();
        let experts: Vec<u32> = found.iter().map(|f| f.0).collect();
        assert_eq!(experts, [1, 4, 0]);
        assert_eq!(found[0].1, found[1].1);
        let sum: f32 = found.iter().map(|f| f.1).sum();
        assert!((sum - 2.0).abs() < 1e-6);
        // -0 and 0 are equal.
        let spec = RouteSpec { used: 2, ..spec };
        let found = choose(&[-0.0, 0.0], &spec).unwrap();
        assert_eq!((found[0].0, found[1].0), (0, 1));
        assert!(choose(&[0.0, f32::NAN], &spec).is_none());
    }

    #[test]
    fn pairs_are_listed_by_expert_then_token() {
        // Tokens 0, 1, 2 of two slots; nobody goes to expert 1.
        let list = list_pairs(&[3, 0, 0, 2, 3, 0], 2, 4);
        assert_eq!(list.starts, [0, 3, 3, 4, 6]);
        assert_eq!(list.tokens, [0, 1, 2, 1, 0, 2]);
        assert_eq!(list.places, [4, 0, 1, 3, 5, 2]);
    }
}
