//! The exponential without branches and calls, so that a loop over it becomes vector instructions.

/// `eˣ` to two units in the last place. Below −87.3 and above 88.3, close to where f32 ends, it is what it is there; NaN of NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, Cody and Waite's two-part `ln 2`, and the polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Added to a number, it rounds it to a whole one, whose low bits are then those of the exponent of a power of two.
    const WHOLE: f32 = 12_582_912.0 + 127.0;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let tail = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_65)
        * r
        + 0.5;
    (tail * r * r + r + 1.0) * f32::from_bits(shifted.to_bits() << 23)
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
        for i in -872_000..883_000 {
            let x = i as f32 * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "e^{x} = {expected}, not {found}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY) > 2e38 && exp(f32::NAN).is_nan());
        assert_eq!(
            [exp(0.0), sigmoid(f32::INFINITY), sigmoid(0.0)].map(f32::to_bits),
            [1.0_f32, 1.0, 0.5].map(f32::to_bits)
        );
    }
}
