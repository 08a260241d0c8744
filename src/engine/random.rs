//! Philox 4×32-10 laid out as PyTorch's CUDA generator, so that one seed gives one noise on every device.
//!
//! Source: Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011). Element `index` of draw `offset`
//! reads the counter `(offset, stream, index, 0)` under the key `seed`; A1111 (source "NV") and stable-diffusion.cpp
//! (`--rng cuda`) number their initial noise the same way with stream 0. Every value is a function of its
//! coordinates alone, so a resumed run draws what the uninterrupted one would have drawn.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// 2⁻³² as cuRAND spells it.
const TWO_POW_32_INV: f64 = 2.328_306_4e-10_f32 as f64;
const TWO_PI: f64 = 6.283_185_5_f32 as f64;

/// A stateless generator: no draw changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u32,
}

impl Philox {
    /// The key is the two halves of the seed.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream: 0 }
    }

    /// An independent sequence under the same seed. Stream 0 is the one other programs know.
    #[must_use]
    pub fn stream(self, stream: u32) -> Self {
        Self { stream, ..self }
    }

    /// `n` standard normal values of draw `offset`.
    pub fn normal(&self, offset: u32, n: usize) -> Vec<f32> {
        self.normal_from(offset, 0, n)
    }

    /// `n` of them from the `first` on: a part of a larger draw.
    pub fn normal_from(&self, offset: u32, first: usize, n: usize) -> Vec<f32> {
        (index32(first)..index32(first.saturating_add(n))).map(|i| self.normal_f64(offset, i) as f32).collect()
    }

    /// One standard normal value (Box–Muller, the sine branch, as cuRAND returns it first).
    pub fn normal_f64(&self, offset: u32, index: u32) -> f64 {
        let [x, y, ..] = self.block(offset, index);
        let u = f64::from(x) * TWO_POW_32_INV + TWO_POW_32_INV / 2.0;
        let v = f64::from(y) * (TWO_POW_32_INV * TWO_PI) + TWO_POW_32_INV * TWO_PI / 2.0;
        // libm, not std: the system's logarithm differs in the last bit between platforms.
        libm::sqrt(-2.0 * libm::log(u)) * libm::sin(v)
    }

    /// `n` values uniform in `[0, 1)` of draw `offset`.
    pub fn uniform(&self, offset: u32, n: usize) -> Vec<f32> {
        (0..index32(n)).map(|i| (self.block(offset, i)[0] >> 8) as f32 / (1 << 24) as f32).collect()
    }

    /// One integer in `0..bound` (Lemire's multiply-shift; the bias is below `bound / 2³²`).
    pub fn below(&self, offset: u32, index: u32, bound: usize) -> usize {
        ((u64::from(self.block(offset, index)[0]) * bound as u64) >> 32) as usize
    }

    /// A permutation of `0..n` (Fisher–Yates).
    pub fn permutation(&self, offset: u32, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(offset, index32(i), i + 1));
        }
        order
    }

    fn block(&self, offset: u32, index: u32) -> [u32; 4] {
        let mut counter = [offset, self.stream, index, 0];
        let mut key = self.key;
        for round in 0..10 {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            let (low0, high0) = multiply(MULTIPLIER[0], counter[0]);
            let (low1, high1) = multiply(MULTIPLIER[1], counter[2]);
            counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        }
        counter
    }
}

/// The two halves of the product, the low one first.
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    (product as u32, (product >> 32) as u32)
}

/// A tensor of more than 2³² values would repeat its noise; none that fits in memory here does.
fn index32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn matches_random123() {
        let zero = Philox { key: [0, 0], stream: 0 };
        assert_eq!(zero.block(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    /// `torch.manual_seed(0); torch.randn(8, device="cuda")`, as A1111's `rng_philox.py` documents it.
    #[test]
    fn matches_pytorch_on_cuda() {
        let expected = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284];
        for (found, expected) in Philox::new(0).normal(0, 8).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
        }
    }

    #[test]
    fn normal_values_have_unit_moments() {
        let x = Philox::new(7).normal(3, 100_000);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
        let second = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.01 && (second - 1.0).abs() < 0.02, "mean {mean}, second moment {second}");
    }

    #[test]
    fn draws_and_streams_differ_but_repeat() {
        let philox = Philox::new(42);
        assert_eq!(philox.normal(5, 8), philox.normal(5, 8));
        assert_ne!(philox.normal(5, 8), philox.normal(6, 8));
        assert_ne!(philox.normal(5, 8), philox.stream(1).normal(5, 8));
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = Philox::new(1).permutation(0, 100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
