//! Everything measured on adapters: low-rank spectra, the room two adapters share, and the words for it.
//!
//! The scalar measures below read singular values in non-increasing order, as [`LowRank::singular_values`] returns
//! them. They ignore the overall strength, and a delta that changes nothing measures 0 throughout.

pub mod adapter;
mod leading;
mod lowrank;
mod many;
mod overlap;
mod pairs;

pub use leading::leading;
pub use lowrank::{LowRank, Overlap, Shape, Svd};
pub use many::singular_values;
pub use overlap::{LayerOverlap, PairOverlap, Verdict, overlap};
pub use pairs::overlaps;

/// exp(−Σ p ln p) with p = σ / Σσ: how many directions the delta really uses (Roy & Vetterli, EUSIPCO 2007).
pub fn effective_rank(singular_values: &[f64]) -> f64 {
    if strongest(singular_values) > 0.0 { entropy(singular_values).exp() } else { 0.0 }
}

/// Entropy over its largest possible value ln r, in `[0, 1]`. A lone direction counts as evenly used: 1.
pub fn normalised_entropy(singular_values: &[f64]) -> f64 {
    if strongest(singular_values) == 0.0 {
        return 0.0;
    }
    match singular_values.len() {
        1 => 1.0,
        r => entropy(singular_values) / (r as f64).ln(),
    }
}

/// Σσ² / σ₁².
pub fn stable_rank(singular_values: &[f64]) -> f64 {
    relative(singular_values).map(|x| x * x).sum()
}

/// (Σσ²)² / Σσ⁴.
pub fn participation_ratio(singular_values: &[f64]) -> f64 {
    let fourth: f64 = relative(singular_values).map(|x| x.powi(4)).sum();
    if fourth > 0.0 { stable_rank(singular_values).powi(2) / fourth } else { 0.0 }
}

/// The fewest leading directions that hold `fraction` of the energy Σσ².
pub fn rank_for_energy(singular_values: &[f64], fraction: f64) -> usize {
    let needed = fraction * stable_rank(singular_values);
    let mut held = 0.0;
    relative(singular_values)
        .take_while(|x| {
            let short = held < needed;
            held += x * x;
            short
        })
        .count()
}

fn entropy(singular_values: &[f64]) -> f64 {
    let sum: f64 = relative(singular_values).sum();
    // A vanished direction adds p ln p = 0, which 0 · ln 0 would turn into NaN.
    -relative(singular_values).map(|x| x / sum).filter(|&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

fn strongest(singular_values: &[f64]) -> f64 {
    singular_values.iter().copied().fold(0.0, f64::max)
}

/// σ / σ₁, so that squares of denormal values do not vanish; nothing for a zero spectrum.
fn relative(singular_values: &[f64]) -> impl Iterator<Item = f64> {
    let largest = strongest(singular_values);
    singular_values.iter().filter(move |_| largest > 0.0).map(move |x| x / largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURES: [fn(&[f64]) -> f64; 4] = [effective_rank, normalised_entropy, stable_rank, participation_ratio];

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn flat_spectrum_uses_every_direction() {
        let flat = [0.3; 7];
        for measure in [effective_rank, stable_rank, participation_ratio] {
            assert!(near(measure(&flat), 7.0), "{}", measure(&flat));
        }
        assert!(near(normalised_entropy(&flat), 1.0));
        assert_eq!(rank_for_energy(&flat, 0.9), 7);
        assert_eq!(rank_for_energy(&flat, 0.5), 4);
    }

    #[test]
    fn single_direction_counts_as_one() {
        for spectrum in [&[4.0][..], &[4.0, 0.0, 0.0]] {
            for measure in [effective_rank, stable_rank, participation_ratio] {
                assert!(near(measure(spectrum), 1.0));
            }
            assert_eq!(rank_for_energy(spectrum, 1.0), 1);
        }
        assert!(near(normalised_entropy(&[4.0]), 1.0));
        assert!(near(normalised_entropy(&[4.0, 0.0, 0.0]), 0.0));
    }

    #[test]
    fn zero_spectrum_measures_nothing() {
        for spectrum in [&[][..], &[0.0], &[0.0; 5]] {
            assert!(MEASURES.iter().all(|measure| measure(spectrum) == 0.0));
            assert_eq!(rank_for_energy(spectrum, 0.99), 0);
        }
    }

    #[test]
    fn strength_does_not_matter() {
        let spectrum = [5.0, 3.0, 0.5, 0.01];
        for scale in [1e-200, 1e-3, 1e200] {
            let scaled = spectrum.map(|x| x * scale);
            for measure in MEASURES {
                assert!((measure(&scaled) - measure(&spectrum)).abs() < 1e-9);
            }
            assert_eq!(rank_for_energy(&scaled, 0.99), rank_for_energy(&spectrum, 0.99));
        }
    }

    #[test]
    fn measures_keep_their_bounds() {
        let spectrum = [5.0, 3.0, 0.5, 0.01];
        // (25 + 9 + …) / 25, and 99 % of 34.2501 needs the third value.
        assert!(near(stable_rank(&spectrum), 34.2501 / 25.0));
        assert_eq!([0.7, 0.9, 0.99, 0.999, 1.0].map(|f| rank_for_energy(&spectrum, f)), [1, 2, 2, 3, 4]);
        assert!(stable_rank(&spectrum) <= participation_ratio(&spectrum));
        assert!(participation_ratio(&spectrum) <= effective_rank(&spectrum) && effective_rank(&spectrum) <= 4.0);
    }
}
