//! Functions whose bits every level shares: exp, sine and cosine, and the order in which a tile is summed.

use super::TILE;

/// Constants of exp on f32: x = n ln 2 + r, |r| <= ln 2 / 2, e^x = 2^n e^r.
pub mod exp_constants {
    /// Below it the result is 0 (2^n would be subnormal).
    pub const MIN: f32 = -87.3;
    pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// ln 2 in two parts; the first has ten bits, so that its product with n is exact.
    pub const LN2_HIGH: f32 = 0.693_359_4;
    pub const LN2_LOW: f32 = -0.000_212_194_44;
    /// (e^r - 1 - r) / r^2 by ascending powers of r, interpolated at five Chebyshev nodes. e^x is within 1 ulp.
    pub const POLYNOMIAL: [f32; 5] = [
        0.5,
        0.166_665_76,
        0.041_666_552,
        0.008_363_233,
        0.001_392_625,
    ];
}

/// e^x for x <= 0; 0 below [`exp_constants::MIN`] and for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    use exp_constants::*;
    if x.is_nan() || x < MIN {
        return 0.0;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = POLYNOMIAL[4];
    for c in POLYNOMIAL[..4].iter().rev() {
        p = p.mul_add(r, *c);
    }
    let e = p.mul_add(r, 1.0).mul_add(r, 1.0);
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The sum of a tile: eight lanes, lane i the sum of elements i, i + 8, i + 16 ... ascending; then
/// ((0+4) + (2+6)) + ((1+5) + (3+7)).
pub fn sum_tile(tile: &[f32; TILE]) -> f32 {
    let mut lanes: [f32; 8] = std::array::from_fn(|i| tile[i]);
    for chunk in tile[8..].chunks_exact(8) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    let quarter: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
}

/// Cosine and sine of an angle of up to 2^32, to within about 1e-13.
#[inline(always)]
pub fn cos_sin(angle: f64) -> (f64, f64) {
    /// pi / 2 in two parts.
    const HALF_PI_HIGH: f64 = std::f64::consts::FRAC_PI_2;
    const HALF_PI_LOW: f64 = 6.123_233_995_736_766e-17;
    let n = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = n.mul_add(-HALF_PI_LOW, n.mul_add(-HALF_PI_HIGH, angle));
    let r2 = r * r;
    let sine = r * horner(r2, &SINE);
    let cosine = horner(r2, &COSINE);
    match n as i64 & 3 {
        0 => (cosine, sine),
        1 => (-sine, cosine),
        2 => (-cosine, -sine),
        _ => (sine, -cosine),
    }
}

/// The Taylor series of sin(r) / r and cos(r) in r^2, by ascending powers: on |r| <= pi / 4 the first term left out is
/// below 1e-15.
const SINE: [f64; 8] = taylor(1);
const COSINE: [f64; 9] = taylor(0);

/// (-1)^i / (2 i + first)!
const fn taylor<const N: usize>(first: u32) -> [f64; N] {
    let mut out = [0.0; N];
    let mut term = 1.0;
    let mut i = 0;
    while i < N {
        out[i] = term;
        let next = 2 * i as u32 + first;
        term = -term / ((next + 1) * (next + 2)) as f64;
        i += 1;
    }
    out
}

#[inline(always)]
fn horner<const N: usize>(x: f64, coefficients: &[f64; N]) -> f64 {
    let mut p = coefficients[N - 1];
    for c in coefficients[..N - 1].iter().rev() {
        p = p.mul_add(x, *c);
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_an_ulp() {
        for i in 0..200_000 {
            let x = -(i as f32) * 0.000_436;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 1.2e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
    }

    #[test]
    fn cosine_and_sine_of_large_angles() {
        for i in 0..100_000u64 {
            let angle = (i * i) as f64 * 0.4;
            let (cosine, sine) = cos_sin(angle);
            assert!((cosine - angle.cos()).abs() < 1e-12, "cos({angle})");
            assert!((sine - angle.sin()).abs() < 1e-12, "sin({angle})");
        }
    }
}
