//! AdamW's step in one pass over a parameter.

use pulp::{Arch, Simd, WithSimd};

#[derive(Clone, Copy)]
pub struct Factors {
    /// β₁ and 1 − β₁, β₂ and 1 − β₂: differences that f32 would not keep.
    pub beta1: [f32; 2],
    pub beta2: [f32; 2],
    pub eps: f32,
    /// Of the value, behind its decay.
    pub left: f32,
    /// With the mean's bias taken out.
    pub rate: f32,
    /// Divides the root of the mean square.
    pub unbias: f32,
}

/// Moves value, running mean and running mean square.
pub fn step(state: [&mut [f32]; 3], gradient: &[f32], factors: Factors) {
    Arch::new().dispatch(Step { state, gradient, factors });
}

struct Step<'a> {
    state: [&'a mut [f32]; 3],
    gradient: &'a [f32],
    factors: Factors,
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { state: [values, means, squares], gradient, factors } = self;
        let Factors { beta1, beta2, eps, left, rate, unbias } = factors;
        for (((x, m), v), &g) in values.iter_mut().zip(means).zip(squares).zip(gradient) {
            *m = *m * beta1[0] + g * beta1[1];
            *v = *v * beta2[0] + g * g * beta2[1];
            *x = *x * left - *m / (v.sqrt() / unbias + eps) * rate;
        }
    }
}
