//! The exponential without branches and calls, so that a loop over it becomes vector instructions.

/// `eˣ` to two units in the last place; 0 and infinity beyond what f32 holds, NaN of NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, Cody and Waite's two-part `ln 2`, and the polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // The largest finite result is below e^88.73, the smallest normal one above e^−87.34.
    let bounded = x.clamp(-87.3, 88.7);
    let n = (bounded * std::f32::consts::LOG2_E).round_ties_even();
    let r = (bounded - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let tail = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_65)
        * r
        + 0.5;
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    let e = (tail * r * r + r + 1.0) * power;
    match () {
        () if x > 88.7 => f32::INFINITY,
        () if x < -87.3 => 0.0,
        () => e,
    }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential() {
        for i in -880_000..880_000 {
            let x = i as f32 * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            if x > -87.3 {
                assert!((found - expected).abs() <= 3e-7 * expected, "e^{x} = {expected}, not {found}");
            }
        }
        assert_eq!([exp(f32::NEG_INFINITY), exp(-100.0), exp(0.0), exp(f32::INFINITY)], [0.0, 0.0, 1.0, f32::INFINITY]);
        assert!(exp(f32::NAN).is_nan());
    }
}
