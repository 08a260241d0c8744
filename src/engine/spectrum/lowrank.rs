//! One layer's delta `ΔW = scale · up · down`, measured without ever forming it.
//!
//! The triangles of both factors' thin QR leave a core no larger than the rank, whose SVD is that of ΔW (Golub & Van Loan, *Matrix
//! Computations*, §5.4); norms and inner products follow from Gram matrices. Every result belongs to the product, so
//! (up·G, G⁻¹·down) measures the same as (up, down).

use faer::linalg::solvers::SvdError;
use faer::{Mat, MatRef, Scale};
use serde::Serialize;

use crate::engine::ops::triangle;
use crate::engine::{Error, Result};

/// Directions weaker than this share of the strongest are rounding or masked ranks, and would dilute an overlap.
const RELATIVE_RANK: f64 = 1e-4;

/// `up [out, rank]` · `down [rank, input]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub out: usize,
    pub rank: usize,
    pub input: usize,
}

/// The write side `up` and the read side `down` of one adapted layer, in f64.
#[derive(Clone, Debug)]
pub struct LowRank {
    up: Mat<f64>,
    down: Mat<f64>,
    scale: f64,
}

/// `ΔW = u · diag(s) · vᵀ` with `s` non-increasing and the largest entry of each column of `u` positive.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[out, k]`
    pub u: Mat<f64>,
    pub s: Vec<f64>,
    /// `[input, k]`
    pub v: Mat<f64>,
}

/// How much of one side two adapters share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    /// `‖QᵢᵀQⱼ‖² / min(rᵢ, rⱼ)`: 0 when the subspaces are orthogonal, 1 when one holds the other.
    pub observed: f64,
    /// What two random subspaces of these ranks share on average: `max(rᵢ, rⱼ) / width`.
    pub chance: f64,
    /// observed / chance; 0 where there is nothing to share.
    pub times_chance: f64,
}

impl LowRank {
    /// Takes row-major factors, as files store them.
    pub fn new(up: &[f32], down: &[f32], shape: Shape, scale: f64) -> Result<Self> {
        let Shape { out, rank, input } = shape;
        let advice = "The file is damaged or mislabelled; export the adapter again";
        if out == 0 || rank == 0 || input == 0 {
            let what = format!("A low-rank pair has an empty side: {out} outputs, rank {rank}, {input} inputs");
            return Err(Error::new(what, advice));
        }
        for (side, values, rows, columns) in [("write", up, out, rank), ("read", down, rank, input)] {
            if rows.checked_mul(columns) != Some(values.len()) {
                let what = format!("The {side} side holds {} numbers instead of {rows} × {columns}", values.len());
                return Err(Error::new(what, advice));
            }
            if let Some(bad) = values.iter().find(|x| !x.is_finite()) {
                let advice = "Training diverged; use an earlier checkpoint or a lower learning rate";
                return Err(Error::new(format!("The {side} side contains {bad}"), advice));
            }
        }
        // Files store alpha in f32; anything larger would overflow the squares below.
        if !(scale as f32).is_finite() {
            return Err(Error::new(format!("The scale alpha / rank is {scale}"), advice));
        }
        let up = MatRef::from_row_major_slice(up, out, rank).map(|&x| f64::from(x));
        let down = MatRef::from_row_major_slice(down, rank, input).map(|&x| f64::from(x));
        Ok(Self { up, down, scale })
    }

    /// Factors computed here: `up [out, rank]` and `down [rank, input]`.
    pub fn of(up: Mat<f64>, down: Mat<f64>) -> Self {
        Self { up, down, scale: 1.0 }
    }

    /// A full difference as the exact pair with the fewest directions: the identity stands on the shorter side.
    pub fn from_dense(delta: Mat<f64>) -> Self {
        match (delta.nrows(), delta.ncols()) {
            (out, input) if out <= input => Self::of(Mat::identity(out, out), delta),
            (_, input) => Self::of(delta, Mat::identity(input, input)),
        }
    }

    /// `Σ ΔWₜ`: the columns of all `up` beside each other, the rows of all `down` below each other. Products are
    /// added, never factors.
    pub fn stack(terms: &[Self]) -> Self {
        let rank = terms.iter().map(|term| term.up.ncols()).sum();
        let (out, input) = terms.first().map_or((0, 0), |term| (term.up.nrows(), term.down.ncols()));
        let (mut up, mut down) = (Mat::zeros(out, rank), Mat::zeros(rank, input));
        let mut at = 0;
        for term in terms {
            let r = term.up.ncols();
            up.subcols_mut(at, r).copy_from(Scale(term.scale) * &term.up);
            down.subrows_mut(at, r).copy_from(&term.down);
            at += r;
        }
        Self::of(up, down)
    }

    /// `c·ΔW`.
    #[must_use]
    pub fn scaled(self, c: f64) -> Self {
        Self { scale: c * self.scale, ..self }
    }

    pub fn shape(&self) -> Shape {
        Shape { out: self.up.nrows(), rank: self.up.ncols(), input: self.down.ncols() }
    }

    /// `[out, rank]`
    pub fn up(&self) -> MatRef<'_, f64> {
        self.up.as_ref()
    }

    /// `[rank, input]`
    pub fn down(&self) -> MatRef<'_, f64> {
        self.down.as_ref()
    }

    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The min(out, rank, input) largest singular values of ΔW, non-increasing.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        let core = Scale(self.scale) * (triangle(self.up()) * triangle(self.down().transpose()).transpose());
        core.singular_values().map_err(no_convergence)
    }

    /// The thin SVD of ΔW, its signs fixed so that equal deltas give equal factors.
    pub fn svd(&self) -> Result<Svd> {
        let (up, down) = (self.up.qr(), self.down.transpose().qr());
        let core = Scale(self.scale) * (up.thin_R() * down.thin_R().transpose());
        let small = core.thin_svd().map_err(no_convergence)?;
        let mut u = up.compute_thin_Q() * small.U();
        let mut v = down.compute_thin_Q() * small.V();
        for k in 0..u.ncols() {
            let strongest = u.col(k).iter().fold(0.0_f64, |best, &x| if x.abs() > best.abs() { x } else { best });
            if strongest < 0.0 {
                u.col_mut(k).iter_mut().chain(v.col_mut(k).iter_mut()).for_each(|x| *x = -*x);
            }
        }
        Ok(Svd { u, s: small.S().column_vector().iter().copied().collect(), v })
    }

    /// `‖ΔW‖²`.
    pub fn energy(&self) -> f64 {
        // Factors that cancel can leave a rounding error below zero.
        self.gram(self).max(0.0)
    }

    /// `⟨ΔWᵢ, ΔWⱼ⟩ = sᵢ sⱼ Σ (upᵢᵀ upⱼ) ∘ (downᵢ downⱼᵀ)`.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        self.same_layer(other)?;
        Ok(self.gram(other))
    }

    /// `‖ΔWᵢ ΔWⱼᵀ‖`: 0 exactly when their row spaces are orthogonal, so that each is deaf to what the other reads.
    pub fn product_norm(&self, other: &Self) -> Result<f64> {
        self.same_layer(other)?;
        let core = triangle(self.up()) * (&self.down * other.down.transpose()) * triangle(other.up()).transpose();
        Ok((self.scale * other.scale).abs() * core.norm_l2())
    }

    /// Overlap of what the two listen to (row spaces of ΔW).
    pub fn read_overlap(&self, other: &Self) -> Result<Overlap> {
        self.same_layer(other)?;
        Ok(Overlap::between(self.svd()?.read_basis(), other.svd()?.read_basis()))
    }

    /// Overlap of what the two change (column spaces of ΔW).
    pub fn write_overlap(&self, other: &Self) -> Result<Overlap> {
        self.same_layer(other)?;
        Ok(Overlap::between(self.svd()?.write_basis(), other.svd()?.write_basis()))
    }

    /// ΔW itself, `[out, input]`: for conversions to dense formats and for tests.
    pub fn dense(&self) -> Mat<f64> {
        Scale(self.scale) * (&self.up * &self.down)
    }

    fn gram(&self, other: &Self) -> f64 {
        let writes = self.up.transpose() * &other.up;
        let reads = &self.down * other.down.transpose();
        let sum: f64 = writes.col_iter().zip(reads.col_iter()).map(|(w, r)| w.transpose() * r).sum();
        self.scale * other.scale * sum
    }

    pub(super) fn same_layer(&self, other: &Self) -> Result<()> {
        let (a, b) = (self.shape(), other.shape());
        if (a.out, a.input) == (b.out, b.input) {
            return Ok(());
        }
        let what =
            format!("One adapter changes a {} × {} weight, the other a {} × {} one", a.out, a.input, b.out, b.input);
        Err(Error::new(what, "Compare adapters made for the same model"))
    }
}

impl Svd {
    /// Orthonormal `[input, rank]`: the directions ΔW listens to.
    pub fn read_basis(&self) -> MatRef<'_, f64> {
        self.v.subcols(0, self.rank())
    }

    /// Orthonormal `[out, rank]`: the directions ΔW writes into.
    pub fn write_basis(&self) -> MatRef<'_, f64> {
        self.u.subcols(0, self.rank())
    }

    /// The `k` strongest directions as factors, `√σ` on each side: half precision then loses least.
    pub fn truncated(&self, k: usize) -> LowRank {
        let root = |j: usize| self.s[j].sqrt();
        LowRank::of(
            Mat::from_fn(self.u.nrows(), k, |i, j| self.u[(i, j)] * root(j)),
            Mat::from_fn(k, self.v.nrows(), |i, j| root(i) * self.v[(j, i)]),
        )
    }

    /// Directions stronger than 1e-4 of the strongest.
    pub fn rank(&self) -> usize {
        let floor = self.s.first().map_or(0.0, |largest| RELATIVE_RANK * largest);
        self.s.iter().take_while(|&&s| s > floor).count()
    }
}

impl Overlap {
    pub fn new(observed: f64, chance: f64) -> Self {
        Self { observed, chance, times_chance: if chance > 0.0 { observed / chance } else { 0.0 } }
    }

    /// Of two orthonormal bases of one space, directions in columns (Hu et al., ICLR 2022, §7.2).
    pub fn between(first: MatRef<'_, f64>, second: MatRef<'_, f64>) -> Self {
        let (fewer, more) = (first.ncols().min(second.ncols()), first.ncols().max(second.ncols()));
        if fewer == 0 {
            return Self::default();
        }
        let shared = (first.transpose() * second).squared_norm_l2();
        Self::new(shared / fewer as f64, more as f64 / first.nrows() as f64)
    }
}

fn no_convergence(SvdError::NoConvergence: SvdError) -> Error {
    Error::new(
        "The singular values of a layer could not be computed",
        "Export the adapter again; its numbers are extreme",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Philox;

    fn gaussian(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let values = Philox::new(seed).normal(0, rows * columns);
        MatRef::from_row_major_slice(&values, rows, columns).map(|&x| f64::from(x))
    }

    fn random(out: usize, rank: usize, input: usize, seed: u64) -> LowRank {
        LowRank { up: gaussian(out, rank, seed), down: gaussian(rank, input, seed + 1000), scale: -0.7 }
    }

    /// Tall, wide, one row, one column, rank above both sides.
    const SHAPES: [(usize, usize, usize); 5] = [(24, 4, 10), (6, 5, 40), (1, 3, 9), (9, 2, 1), (5, 12, 7)];

    fn assert_near(a: f64, b: f64, scale: f64) {
        assert!((a - b).abs() <= 1e-11 * scale, "{a} is not {b}");
    }

    fn assert_orthonormal(q: &Mat<f64>) {
        let error = (q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_max();
        assert!(error < 1e-12, "{error}");
    }

    #[test]
    fn svd_equals_the_dense_one() {
        for (i, (out, rank, input)) in SHAPES.into_iter().enumerate() {
            let delta = random(out, rank, input, i as u64);
            let dense = delta.dense();
            let svd = delta.svd().unwrap();
            assert_eq!(svd.s.len(), out.min(rank).min(input));
            for (k, (a, b)) in svd.s.iter().zip(dense.singular_values().unwrap()).enumerate() {
                assert_near(*a, b, svd.s[0]);
                assert_near(*a, delta.singular_values().unwrap()[k], svd.s[0]);
            }
            assert_orthonormal(&svd.u);
            assert_orthonormal(&svd.v);
            let s = Mat::from_fn(svd.s.len(), svd.s.len(), |a, b| if a == b { svd.s[a] } else { 0.0 });
            assert!((&svd.u * s * svd.v.transpose() - dense).norm_max() < 1e-12 * svd.s[0].max(1.0));
            for column in svd.u.col_iter() {
                let largest = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert!(column.iter().all(|x| -x <= largest));
            }
        }
    }

    /// Around the condition at which Cholesky gives way to reflections, and beyond it.
    #[test]
    fn values_are_right_however_close_two_directions_are() {
        for weakest in [1.0, 3e-3, 1e-3, 3e-4, 1e-7, 0.0] {
            let mut delta = random(40, 5, 30, 8);
            let along = delta.up.col(0).to_owned();
            let mut last = delta.up.col_mut(4);
            last *= Scale(weakest);
            last += along;
            let svd = delta.svd().unwrap();
            for (a, b) in delta.singular_values().unwrap().iter().zip(&svd.s) {
                assert_near(*a, *b, svd.s[0]);
            }
        }
    }

    #[test]
    fn deficient_and_zero_factors_stay_clean() {
        let mut deficient = random(12, 4, 9, 3);
        deficient.up.col_mut(2).fill(0.0);
        let svd = deficient.svd().unwrap();
        assert_eq!(svd.rank(), 3);
        assert!(svd.s[3] < 1e-12 && svd.s.iter().all(|s| s.is_finite()));

        let untrained = LowRank { up: Mat::zeros(12, 4), ..random(12, 4, 9, 4) };
        let svd = untrained.svd().unwrap();
        assert_eq!((svd.rank(), svd.s.as_slice()), (0, &[0.0; 4][..]));
        assert_orthonormal(&svd.u);
        assert_eq!(untrained.read_overlap(&deficient).unwrap(), Overlap::default());
        assert_eq!((untrained.energy(), untrained.dot(&deficient).unwrap()), (0.0, 0.0));
    }

    #[test]
    fn gram_identities_equal_dense() {
        for (i, (out, rank, input)) in SHAPES.into_iter().enumerate() {
            let (a, b) = (random(out, rank, input, i as u64), random(out, rank + 2, input, 50 + i as u64));
            let (dense_a, dense_b) = (a.dense(), b.dense());
            let bound = dense_a.norm_l2() * dense_b.norm_l2();
            assert_near(a.energy(), dense_a.squared_norm_l2(), a.energy());
            assert_near(a.energy(), a.singular_values().unwrap().iter().map(|s| s * s).sum(), a.energy());
            assert_near(a.dot(&b).unwrap(), (dense_a.transpose() * &dense_b).diagonal().column_vector().sum(), bound);
            assert!(a.dot(&b).unwrap().abs() <= bound * (1.0 + 1e-12));
            let product = a.product_norm(&b).unwrap();
            assert_near(product, (&dense_a * dense_b.transpose()).norm_l2(), bound);
            assert_near(product, b.product_norm(&a).unwrap(), bound);
            assert!(product <= a.singular_values().unwrap()[0] * dense_b.norm_l2() * (1.0 + 1e-12));
        }
    }

    #[test]
    fn gauge_changes_nothing() {
        let (a, b) = (random(30, 3, 20, 1), random(30, 5, 20, 2));
        let gauge = Mat::from_fn(3, 3, |i, j| [[2.0, 1.0, 0.0], [0.0, 0.5, -1.0], [0.0, 0.0, 4.0]][i][j]);
        let inverse = Mat::from_fn(3, 3, |i, j| [[0.5, -1.0, -0.25], [0.0, 2.0, 0.5], [0.0, 0.0, 0.25]][i][j]);
        let same = LowRank { up: &a.up * gauge, down: inverse * &a.down, scale: a.scale };
        assert_near(same.energy(), a.energy(), a.energy());
        assert_near(same.dot(&b).unwrap(), a.dot(&b).unwrap(), a.energy());
        assert_near(same.product_norm(&b).unwrap(), a.product_norm(&b).unwrap(), a.energy());
        assert_near(same.read_overlap(&b).unwrap().observed, a.read_overlap(&b).unwrap().observed, 1.0);
        assert_near(same.write_overlap(&b).unwrap().observed, a.write_overlap(&b).unwrap().observed, 1.0);
        assert!((same.svd().unwrap().u - a.svd().unwrap().u).norm_max() < 1e-11);
        assert!((same.svd().unwrap().v - a.svd().unwrap().v).norm_max() < 1e-11);
    }

    #[test]
    fn overlap_runs_from_none_to_all() {
        let a = random(40, 6, 30, 1);
        assert_near(a.read_overlap(&a).unwrap().observed, 1.0, 1.0);
        assert_near(a.write_overlap(&a).unwrap().observed, 1.0, 1.0);

        let block = |start: usize| Mat::from_fn(4, 30, |i, j| f64::from(u8::from(j == start + i)));
        let (left, right) =
            (LowRank { down: block(0), ..random(40, 4, 30, 2) }, LowRank { down: block(4), ..random(40, 4, 30, 3) });
        assert!(left.read_overlap(&right).unwrap().observed < 1e-24);
        assert!(left.product_norm(&right).unwrap() < 1e-12);

        // A masked rank must not make two equal adapters look 3/4 alike.
        let mut masked = a.clone();
        masked.up.col_mut(5).fill(0.0);
        assert_near(masked.write_overlap(&a).unwrap().observed, 1.0, 1.0);

        let (wide, other) = (random(1000, 32, 1000, 4), random(1000, 32, 1000, 5));
        for overlap in [wide.read_overlap(&other).unwrap(), wide.write_overlap(&other).unwrap()] {
            assert_near(overlap.chance, 0.032, 1.0);
            assert!((overlap.times_chance - 1.0).abs() < 0.15, "{overlap:?}");
        }
    }

    #[test]
    fn bad_data_is_a_sentence() {
        let shape = Shape { out: 2, rank: 1, input: 3 };
        let says =
            |up: &[f32], down: &[f32], shape: Shape, scale: f64| LowRank::new(up, down, shape, scale).unwrap_err().what;
        assert_eq!(says(&[1.0], &[1.0; 3], shape, 1.0), "The write side holds 1 numbers instead of 2 × 1");
        assert_eq!(says(&[1.0; 2], &[1.0, f32::NAN, 0.0], shape, 1.0), "The read side contains NaN");
        assert_eq!(says(&[f32::INFINITY; 2], &[1.0; 3], shape, 1.0), "The write side contains inf");
        assert!(says(&[1.0; 2], &[1.0; 3], shape, f64::NAN).contains("scale"));
        assert!(says(&[], &[], Shape { rank: 0, ..shape }, 1.0).contains("rank 0"));
        assert!(says(&[], &[], Shape { out: usize::MAX, rank: 2, input: 1 }, 1.0).contains("write side"));
        let whole = LowRank::new(&[1.0; 2], &[1.0; 3], shape, 1.0).unwrap();
        assert!(whole.dot(&random(2, 1, 4, 0)).unwrap_err().what.contains("2 × 3"));
    }

    #[test]
    fn extreme_values_stay_finite() {
        let extremes = [0.0, 1e-45, -1e-38, 1.0, -f32::MAX, f32::MAX];
        for seed in 0..200 {
            let philox = Philox::new(seed);
            let pick = |offset: u32, n: usize| -> Vec<f32> {
                (0..n).map(|i| extremes[philox.below(offset, i as u32, extremes.len())]).collect()
            };
            let [out, rank, input] = [0, 1, 2].map(|i| 1 + philox.below(0, i, 6));
            let [a, b] = [0, 10].map(|offset| {
                let (up, down) = (pick(offset + 1, out * rank), pick(offset + 2, rank * input));
                let scale = [1e-38, 1.0, f64::from(f32::MAX)][philox.below(offset + 3, 0, 3)];
                LowRank::new(&up, &down, Shape { out, rank, input }, scale).unwrap()
            });
            let svd = a.svd().unwrap();
            assert!(svd.s.iter().all(|s| s.is_finite()) && svd.u.is_all_finite() && svd.v.is_all_finite());
            assert!(
                a.energy().is_finite() && a.dot(&b).unwrap().is_finite() && a.product_norm(&b).unwrap().is_finite()
            );
            let overlap = a.read_overlap(&b).unwrap();
            assert!((0.0..1.0 + 1e-12).contains(&overlap.observed), "{overlap:?}");
        }
    }
}
