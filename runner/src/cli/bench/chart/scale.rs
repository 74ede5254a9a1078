//! From values to places on a logarithmic axis, and the values to mark on it.

/// A logarithmic axis: `low` lies at `from`, `high` at `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From `low` to `high`, which are positive; one value alone gets an octave on either side.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let (low, high) = match low < high {
            true => (low, high),
            false => (low / 2.0, low * 2.0),
        };
        Scale {
            low,
            high,
            from,
            to,
        }
    }

    /// Over all values, out to round ones with some room on either side.
    pub fn around(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Scale {
        let values = values.into_iter().filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| {
            (low.min(v), high.max(v))
        });
        Scale::new(round_below(low / 1.5), round_above(high * 1.25), from, to)
    }

    pub fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }

    /// Round values on the axis, the ends included where they are round; at most about `most` of them.
    pub fn ticks(&self, most: usize) -> Vec<f64> {
        let (low, high) = (self.low * (1.0 - 1e-9), self.high * (1.0 + 1e-9));
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let ticks = |steps: &[f64]| -> Vec<f64> {
            let all = decades
                .clone()
                .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
            all.filter(|t| (low..=high).contains(t)).collect()
        };
        let fine = ticks(&[1.0, 2.0, 5.0]);
        if fine.len() <= most {
            return fine;
        }
        let coarse = ticks(&[1.0]);
        let every = coarse.len().div_ceil(most.max(1)).max(1);
        coarse.into_iter().step_by(every).collect()
    }
}

/// The largest of 1, 2 and 5 times a power of ten that is no larger than `value`.
fn round_below(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let fits = [5.0, 2.0].into_iter().find(|s| s * decade <= value);
    fits.unwrap_or(1.0) * decade
}

/// The smallest of 1, 2 and 5 times a power of ten that is no smaller than `value`.
fn round_above(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let fits = [1.0, 2.0, 5.0].into_iter().find(|s| s * decade >= value);
    fits.unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_are_equal_distances() {
        let scale = Scale::new(1.0, 16.0, 100.0, 500.0);
        let places: Vec<f64> = [1.0, 2.0, 4.0, 16.0].map(|v| scale.at(v).round()).to_vec();
        assert_eq!(places, [100.0, 200.0, 300.0, 500.0]);
        // Downwards, as values are drawn.
        assert_eq!(Scale::new(1.0, 100.0, 300.0, 100.0).at(10.0).round(), 200.0);
    }

    #[test]
    fn one_value_lies_in_the_middle() {
        assert_eq!(Scale::new(8.0, 8.0, 0.0, 10.0).at(8.0), 5.0);
        let scale = Scale::around([7.0], 0.0, 1.0);
        assert_eq!((scale.low, scale.high), (2.0, 10.0));
    }

    #[test]
    fn ticks_are_round_and_few() {
        let scale = Scale::around([12.0, 430.0], 0.0, 1.0);
        assert_eq!((scale.low, scale.high), (5.0, 1000.0));
        let ticks: Vec<f64> = scale.ticks(9).into_iter().map(f64::round).collect();
        assert_eq!(ticks, [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(scale.ticks(7).len(), 3);
        assert!(Scale::new(1e-3, 1e9, 0.0, 1.0).ticks(6).len() <= 7);
        for ratio in [1.1, 3.0, 700.0] {
            assert!(Scale::around([3.3, 3.3 * ratio], 0.0, 1.0).ticks(8).len() >= 2);
        }
    }
}
