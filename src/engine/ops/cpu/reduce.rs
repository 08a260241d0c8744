//! Sums of rows. Several run side by side, as one after the other would wait for each addition.

use pulp::Simd;

#[inline(always)]
pub fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, rest) = S::as_simd_f32s(x);
    let mut sums = [s.splat_f32s(0.0); 4];
    for (i, &chunk) in chunks.iter().enumerate() {
        sums[i % 4] = s.add_f32s(sums[i % 4], chunk);
    }
    total(s, sums) + rest.iter().sum::<f32>()
}

#[inline(always)]
pub fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, rest) = S::as_simd_f32s(x);
    let most = chunks.iter().fold(s.splat_f32s(f32::NEG_INFINITY), |most, &chunk| s.max_f32s(most, chunk));
    rest.iter().fold(s.reduce_max_f32s(most), |most, &x| most.max(x))
}

/// `Σ(x − mean)²`.
#[inline(always)]
pub fn spread<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let (chunks, rest) = S::as_simd_f32s(x);
    let (mut sums, means) = ([s.splat_f32s(0.0); 4], s.splat_f32s(mean));
    for (i, &chunk) in chunks.iter().enumerate() {
        let d = s.sub_f32s(chunk, means);
        sums[i % 4] = s.mul_add_f32s(d, d, sums[i % 4]);
    }
    total(s, sums) + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// `Σg·(x − mean)`.
#[inline(always)]
pub fn along<S: Simd>(s: S, g: &[f32], x: &[f32], mean: f32) -> f32 {
    let ((chunks, rest), (x_chunks, x_rest)) = (S::as_simd_f32s(g), S::as_simd_f32s(x));
    let (mut sums, means) = ([s.splat_f32s(0.0); 4], s.splat_f32s(mean));
    for (i, (&g, &x)) in chunks.iter().zip(x_chunks).enumerate() {
        sums[i % 4] = s.mul_add_f32s(g, s.sub_f32s(x, means), sums[i % 4]);
    }
    total(s, sums) + rest.iter().zip(x_rest).map(|(g, x)| g * (x - mean)).sum::<f32>()
}

#[inline(always)]
fn total<S: Simd>(s: S, [a, b, c, d]: [S::f32s; 4]) -> f32 {
    s.reduce_sum_f32s(s.add_f32s(s.add_f32s(a, b), s.add_f32s(c, d)))
}
