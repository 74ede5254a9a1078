//! Random weights: a counter-based generator, so that any element can be made on any thread.

/// The increment of SplitMix64's counter: 2^64 over the golden ratio, odd.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: every bit of the input changes about half of the output's.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The random numbers of one tensor: bell-shaped, given by the seed, the tensor's name and an element's index alone.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: u64,
    mean: f32,
    /// Standard deviation of an element over that of [`bell`].
    scale: f32,
}

impl Stream {
    pub fn new(seed: u64, name: &str, mean: f32, deviation: f32) -> Self {
        let key = name
            .bytes()
            .fold(mix(seed), |key, byte| mix(key ^ byte as u64));
        Stream {
            key,
            mean,
            scale: deviation / BELL_DEVIATION,
        }
    }

    /// Elements `first ..` of the tensor.
    pub fn fill(&self, first: u64, out: &mut [f32]) {
        let mut counter = self.key.wrapping_add(first.wrapping_mul(INCREMENT));
        for element in out {
            *element = self.mean + self.scale * bell(mix(counter)) as f32;
            counter = counter.wrapping_add(INCREMENT);
        }
    }
}

/// The sum of four uniform 16-bit numbers, less its mean: a bell within 3.5 deviations. Integers, so that the result is
/// exact in f32 and the same everywhere.
fn bell(word: u64) -> i32 {
    const PAIRS: u64 = 0x0000_ffff_0000_ffff;
    let sums = (word & PAIRS) + ((word >> 16) & PAIRS);
    (sums as u32 + (sums >> 32) as u32) as i32 - 2 * 0xffff
}

/// Standard deviation of [`bell`]: the root of 4 (2^32 - 1) / 12.
const BELL_DEVIATION: f32 = 37_837.227;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_as_asked() {
        let mut x = vec![0.0; 1 << 18];
        Stream::new(7, "a", 1.0, 0.25).fill(0, &mut x);
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
        // Five standard errors of each.
        assert!((mean - 1.0).abs() < 5.0 * 0.25 / n.sqrt(), "{mean}");
        assert!(
            (variance.sqrt() / 0.25 - 1.0).abs() < 5.0 / n.sqrt(),
            "{variance}"
        );
    }

    #[test]
    fn bell_deviation_is_the_formula() {
        let exact = (4.0 * ((1u64 << 32) - 1) as f64 / 12.0).sqrt();
        assert_eq!(BELL_DEVIATION, exact as f32);
    }

    #[test]
    fn an_element_depends_on_its_index_alone() {
        let stream = Stream::new(7, "a", 0.0, 1.0);
        let mut whole = [0.0; 64];
        stream.fill(100, &mut whole);
        let mut part = [0.0; 5];
        stream.fill(137, &mut part);
        assert_eq!(part, whole[37..42]);
    }

    #[test]
    fn seeds_and_names_give_different_numbers() {
        let first = |seed, name| {
            let mut x = [0.0; 8];
            Stream::new(seed, name, 0.0, 1.0).fill(0, &mut x);
            x
        };
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert_ne!(first(1, "ab"), first(1, "ba"));
    }
}
