//! The shared orthogonal basis of Orthogonal Adaptation: which directions of a layer's input a concept may read.
//!
//! Source: Po et al., *Orthogonal Adaptation for Modular Customization of Diffusion Models* (CVPR 2024), §3.5. The
//! paper gives each concept random columns of one orthogonal matrix per input width (two concepts then share a few),
//! or Gaussian rows (orthogonal only in expectation). [`BasisKind::Slots`] hands out disjoint blocks of columns, so
//! that concepts trained apart are orthogonal exactly. A basis is regenerated from its identity text, never stored:
//!
//! - up to 4096 wide, slots read a Haar-random matrix: Gram–Schmidt (R's diagonal positive) on Gaussian columns;
//! - above that, and for random subsets at every width, the closed-form DCT-II with random signs, whose columns are
//!   computed one by one. A random subset of the Haar matrix would need all of its columns.
//!
//! Scalar f64 and libm throughout, so machines agree. Any change to the numbers needs a new [`VERSION`].

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::engine::random::Philox;
use crate::engine::{Error, Result};

/// The generation rule written here.
pub const VERSION: u32 = 1;

/// The last slot at this width already takes a minute of Gram–Schmidt.
const HAAR_WIDEST: usize = 4096;

// Keys of their own: a basis must not repeat the training noise of an equal seed.
const HAAR: u64 = u64::from_be_bytes(*b"orthhaar");
const SIGNS: u64 = u64::from_be_bytes(*b"orthsign");
const SUBSET: u64 = u64::from_be_bytes(*b"orthpick");
const GAUSSIAN: u64 = u64::from_be_bytes(*b"orthgaus");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasisKind {
    /// Disjoint blocks of columns: exactly orthogonal.
    Slots,
    /// Random columns, drawn by the slot number: needs no agreement, overlaps by chance.
    RandomSubset,
    /// Random rows, drawn by the slot number: orthogonal only in expectation.
    Gaussian,
}

/// One basis for every input width. Its text form, `slots v1 seed 0 block 8`, is what files record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    pub kind: BasisKind,
    pub version: u32,
    pub seed: u64,
    /// Columns per slot, fixed per project so that slots stay disjoint at mixed ranks.
    pub block: usize,
}

impl Basis {
    /// How many disjoint slots a layer of this input width holds.
    pub fn capacity(&self, width: usize) -> usize {
        width.checked_div(self.block).unwrap_or(0)
    }

    /// The columns of the width × width matrix that a slot reads at this rank.
    pub fn columns(&self, width: usize, slot: usize, rank: usize) -> Result<Vec<usize>> {
        let number = self.check(width, slot, rank)?;
        match self.kind {
            BasisKind::Slots => Ok((slot * self.block..).take(rank).collect()),
            BasisKind::RandomSubset => {
                let mut order = Philox::new(self.seed ^ SUBSET).stream(number).permutation(width as u32, width);
                order.truncate(rank);
                Ok(order)
            }
            BasisKind::Gaussian => Err(Error::new(
                "A gaussian basis has no columns to compare",
                "Measure the overlap of the two adapters instead",
            )),
        }
    }

    /// The slot's read side: `[rank, width]` row-major, orthonormal unless the kind is Gaussian.
    ///
    /// A lower rank gives the first rows of a higher one. Late slots of wide layers take seconds: ask once per width.
    pub fn rows(&self, width: usize, slot: usize, rank: usize) -> Result<Vec<f32>> {
        let number = self.check(width, slot, rank)?;
        let rows: Vec<f64> = match self.kind {
            BasisKind::Slots if width <= HAAR_WIDEST => {
                let start = slot * self.block;
                haar_columns(self.seed, width, start + rank).split_off(start * width)
            }
            BasisKind::Slots | BasisKind::RandomSubset => {
                self.columns(width, slot, rank)?.into_iter().flat_map(|c| dct_column(self.seed, width, c)).collect()
            }
            BasisKind::Gaussian => {
                let philox = Philox::new(self.seed ^ GAUSSIAN).stream(number);
                let norm = (width as f64).sqrt();
                (0..rank * width).map(|i| philox.normal_f64(width as u32, i as u32) / norm).collect()
            }
        };
        Ok(rows.into_iter().map(|x| x as f32).collect())
    }

    /// Proves that a file's read side is the slot it claims: 1e-5 allows for f32, 1e-3 for f16.
    pub fn check_rows(&self, width: usize, slot: usize, rank: usize, stored: &[f32], tolerance: f32) -> Result<()> {
        let rows = self.rows(width, slot, rank)?;
        let advice = "Its metadata describes another adapter: merge it without the orthogonal guarantee, or retrain it";
        if stored.len() != rows.len() {
            let what = format!("The read side holds {} numbers instead of {rank} × {width}", stored.len());
            return Err(Error::new(what, advice));
        }
        // NaN compares false, so it must be asked for what is right, not for what is wrong.
        if rows.iter().zip(stored).all(|(a, b)| (a - b).abs() <= tolerance) {
            return Ok(());
        }
        Err(Error::new(format!("The read side at width {width} is not slot {slot} of the basis \"{self}\""), advice))
    }

    /// The slot as a random stream, once everything about it is possible.
    fn check(&self, width: usize, slot: usize, rank: usize) -> Result<u32> {
        let Self { kind, version, block, .. } = *self;
        if version != VERSION {
            let what = format!("The shared basis is version {version}, and this program knows version {VERSION}");
            return Err(Error::new(what, "Update the program, or retrain the adapter"));
        }
        if rank == 0 || rank > width {
            let what = format!("Rank {rank} is impossible for a layer with {width} inputs");
            return Err(Error::new(what, format!("Choose a rank from 1 to {width}")));
        }
        let Ok(number) = u32::try_from(slot) else {
            return Err(Error::new(format!("There is no slot {slot}"), "Choose a lower slot"));
        };
        if kind == BasisKind::Slots {
            if rank > block {
                let what = format!("Rank {rank} does not fit into slots of {block} columns");
                let advice = format!("Choose a rank up to {block}, or start a project with wider slots");
                return Err(Error::new(what, advice));
            }
            let fits = self.capacity(width);
            if slot >= fits {
                let what = format!(
                    "There is no slot {slot}, counted from 0: a layer with {width} inputs holds {fits} concepts \
                    of {block} columns"
                );
                return Err(Error::new(what, "Choose a free lower slot, or the random basis"));
            }
        }
        Ok(number)
    }
}

/// The first `count` columns of a Haar-random orthogonal matrix, one after the other. They do not depend on later ones.
fn haar_columns(seed: u64, width: usize, count: usize) -> Vec<f64> {
    let philox = Philox::new(seed ^ HAAR);
    let mut done: Vec<f64> = Vec::with_capacity(width * count);
    for c in 0..count {
        let mut column: Vec<f64> =
            (0..width).map(|t| philox.normal_f64(width as u32, (c * width + t) as u32)).collect();
        // The second pass removes what rounding left in the first ("twice is enough", Giraud et al. 2005).
        for _ in 0..2 {
            for earlier in done.chunks_exact(width) {
                let along = dot(earlier, &column);
                column.iter_mut().zip(earlier).for_each(|(x, e)| *x -= along * e);
            }
        }
        let norm = dot(&column, &column).sqrt();
        done.extend(column.iter().map(|x| x / norm));
    }
    done
}

/// `σ_t · √((2 − δ_c0) / d) · cos(π(2t + 1)c / 2d)`: an orthonormal DCT-II column under random signs.
fn dct_column(seed: u64, width: usize, c: usize) -> impl Iterator<Item = f64> {
    let philox = Philox::new(seed ^ SIGNS);
    let norm = ((if c == 0 { 1.0 } else { 2.0 }) / width as f64).sqrt();
    (0..width).map(move |t| {
        let sign = if philox.below(width as u32, t as u32, 2) == 0 { norm } else { -norm };
        // Whole turns are taken off in integers, where they cost no digits.
        let quarter_turns = ((2 * t + 1) * c) % (4 * width);
        sign * libm::cos(PI * quarter_turns as f64 / (2 * width) as f64)
    })
}

/// Eight running sums in a fixed order: one alone could not use vector registers, and the order fixes the last bit.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let (x, x_tail) = x.as_chunks::<8>();
    let (y, y_tail) = y.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in x.iter().zip(y) {
        for k in 0..8 {
            sums[k] += x[k] * y[k];
        }
    }
    sums.iter().sum::<f64>() + x_tail.iter().zip(y_tail).map(|(a, b)| a * b).sum::<f64>()
}

impl fmt::Display for BasisKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slots => "slots",
            Self::RandomSubset => "random",
            Self::Gaussian => "gaussian",
        })
    }
}

impl FromStr for BasisKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Slots, Self::RandomSubset, Self::Gaussian]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| Error::usage(format!("There is no basis \"{text}\""), "Choose slots, random or gaussian"))
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} seed {} block {}", self.kind, self.version, self.seed, self.block)
    }
}

impl FromStr for Basis {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let [kind, version, "seed", seed, "block", block] = text.split(' ').collect::<Vec<_>>()[..] else {
                return None;
            };
            let version = version.strip_prefix('v')?.parse().ok()?;
            Some(Self { kind: kind.parse().ok()?, version, seed: seed.parse().ok()?, block: block.parse().ok()? })
        };
        parse().ok_or_else(|| {
            Error::new(
                format!("The file names its shared basis as \"{text}\", which this program cannot read"),
                "Expected something like \"slots v1 seed 0 block 8\"",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [BasisKind; 3] = [BasisKind::Slots, BasisKind::RandomSubset, BasisKind::Gaussian];

    fn basis(kind: BasisKind) -> Basis {
        Basis { kind, version: VERSION, seed: 0, block: 8 }
    }

    /// Largest |entry| of `x · yᵀ`, less the identity where they are the same rows.
    fn cross(x: &[f32], y: &[f32], width: usize) -> f64 {
        let entry = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let rows = |x: &[f32]| x.chunks_exact(width).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let one = f64::from(u8::from(x == y));
        let mut worst = 0.0_f64;
        for (i, a) in rows(x).iter().enumerate() {
            for (j, b) in rows(y).iter().enumerate() {
                worst = worst.max((entry(a, b) - if i == j { one } else { 0.0 }).abs());
            }
        }
        worst
    }

    #[test]
    fn slots_are_orthonormal_and_disjoint() {
        // 4104 takes the closed form; 37 leaves five columns unused.
        for width in [8, 37, 64, 320, 4104] {
            let slots = basis(BasisKind::Slots);
            let last = slots.capacity(width) - 1;
            let chosen = [0, last / 2, last].map(|slot| slots.rows(width, slot, 8).unwrap());
            for (i, a) in chosen.iter().enumerate() {
                assert!(cross(a, a, width) < 1e-6, "width {width}");
                for b in chosen[i + 1..].iter().filter(|&b| a != b) {
                    assert!(cross(a, b, width) < 1e-6, "width {width}: {}", cross(a, b, width));
                }
            }
        }
    }

    #[test]
    fn mixed_ranks_stay_disjoint_and_nested() {
        let slots = basis(BasisKind::Slots);
        assert_eq!(slots.columns(64, 1, 3).unwrap(), [8, 9, 10]);
        assert!(cross(&slots.rows(64, 0, 8).unwrap(), &slots.rows(64, 1, 3).unwrap(), 64) < 1e-6);
        for kind in KINDS {
            let (few, many) = (basis(kind).rows(64, 2, 3).unwrap(), basis(kind).rows(64, 2, 8).unwrap());
            assert_eq!(few, many[..3 * 64], "{kind}");
        }
    }

    #[test]
    fn full_matrices_are_orthogonal() {
        for width in [1, 2, 33] {
            let dct: Vec<f64> = (0..width).flat_map(|c| dct_column(3, width, c)).collect();
            for columns in [haar_columns(3, width, width), dct] {
                for (i, a) in columns.chunks_exact(width).enumerate() {
                    for (j, b) in columns.chunks_exact(width).enumerate() {
                        let expected = f64::from(u8::from(i == j));
                        assert!((dot(a, b) - expected).abs() < 1e-14, "{i} {j}: {}", dot(a, b));
                    }
                }
            }
        }
    }

    #[test]
    fn random_subsets_overlap_by_chance() {
        let random = Basis { block: 20, ..basis(BasisKind::RandomSubset) };
        let rows = random.rows(320, 5, 20).unwrap();
        assert!(cross(&rows, &rows, 320) < 1e-6);
        let subsets: Vec<_> = (0..400).map(|slot| random.columns(320, slot, 20).unwrap()).collect();
        let apart = subsets.chunks_exact(2).filter(|p| p[0].iter().all(|c| !p[1].contains(c))).count();
        // C(300, 20) / C(320, 20) = 0.264; 200 pairs leave ± 0.031.
        assert!((30..76).contains(&apart), "{apart} of 200 pairs share no column");
    }

    #[test]
    fn gaussian_rows_are_orthogonal_in_expectation_only() {
        let gaussian = basis(BasisKind::Gaussian);
        let (a, b) = (gaussian.rows(1280, 0, 16).unwrap(), gaussian.rows(1280, 1, 16).unwrap());
        let energy = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 16.0;
        assert!((energy - 1.0).abs() < 0.05, "{energy}");
        assert!(cross(&a, &b, 1280) > 0.01 && cross(&a, &b, 1280) < 0.2);
        assert!(gaussian.columns(1280, 0, 16).is_err());
    }

    #[test]
    fn identity_alone_decides_the_rows() {
        for kind in KINDS {
            let one = basis(kind);
            let rows = one.rows(40, 1, 4).unwrap();
            assert_eq!(rows, one.to_string().parse::<Basis>().unwrap().rows(40, 1, 4).unwrap());
            assert_ne!(rows, one.rows(40, 2, 4).unwrap());
            assert_ne!(rows, Basis { seed: 1, ..one }.rows(40, 1, 4).unwrap());
            assert_ne!(rows[..40], one.rows(48, 1, 4).unwrap()[..40]);
        }
        assert_eq!(basis(BasisKind::Slots).to_string(), "slots v1 seed 0 block 8");
        for bad in ["", "slots", "slots v1 seed 0 block", "slots v1 seed 0 block 8 ", "haar v1 seed 0 block 8"] {
            assert!(bad.parse::<Basis>().is_err(), "{bad}");
        }
    }

    /// Files made with version 1 must stay readable: change the numbers only together with `VERSION`.
    #[test]
    fn version_1_is_pinned() {
        let pinned: [(BasisKind, usize, [f32; 3]); 4] = [
            (BasisKind::Slots, 24, [0.356_461_08, 0.206_609_13, -0.229_332_37]),
            (BasisKind::Slots, 4800, [-0.020_412_344, 0.020_411_786, -0.020_410_666]),
            (BasisKind::RandomSubset, 24, [0.190_336_75, 0.240_024_6, 0.127_677_75]),
            (BasisKind::Gaussian, 24, [0.077_377_16, 0.070_837_03, -0.022_615_494]),
        ];
        for (kind, width, expected) in pinned {
            let rows = basis(kind).rows(width, 1, 1).unwrap();
            assert!(rows.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{kind} {width}: {:?}", &rows[..3]);
        }
        assert_eq!(basis(BasisKind::RandomSubset).columns(24, 1, 4).unwrap(), [13, 23, 9, 16]);
    }

    #[test]
    fn impossible_slots_are_explained() {
        let slots = basis(BasisKind::Slots);
        let says = |width, slot, rank| slots.rows(width, slot, rank).unwrap_err().what;
        assert_eq!(says(64, 0, 9), "Rank 9 does not fit into slots of 8 columns");
        assert!(says(64, 8, 8).contains("64 inputs holds 8 concepts"));
        assert!(says(4, 0, 4).contains("holds 0 concepts"));
        assert!(says(64, 0, 0).contains("Rank 0") && says(4, 0, 5).contains("Rank 5"));
        assert!(Basis { block: 0, ..slots }.rows(64, 0, 1).is_err());
        assert!(Basis { version: 2, ..slots }.rows(64, 0, 1).unwrap_err().what.contains("version 2"));
        assert!(basis(BasisKind::RandomSubset).rows(64, usize::MAX, 1).is_err());
    }

    #[test]
    fn stored_rows_are_checked() {
        let slots = basis(BasisKind::Slots);
        let mut stored = slots.rows(64, 3, 4).unwrap();
        slots.check_rows(64, 3, 4, &stored, 1e-5).unwrap();
        assert!(slots.check_rows(64, 4, 4, &stored, 1e-3).is_err());
        assert!(slots.check_rows(64, 3, 4, &stored[1..], 1e-3).is_err());
        stored[7] += 1e-4;
        assert!(
            slots.check_rows(64, 3, 4, &stored, 1e-5).is_err() && slots.check_rows(64, 3, 4, &stored, 1e-3).is_ok()
        );
        stored[7] = f32::NAN;
        assert!(slots.check_rows(64, 3, 4, &stored, 1e-3).is_err());
    }
}
