//! The triangle of a thin QR.

use faer::{Mat, MatRef, Side};

/// Least over largest entry on the diagonal of a Cholesky factor that is taken: some twelve digits are right then.
const NEAR_SINGULAR: f64 = 1e-3;

/// `R` of `A = QR`, up to the signs of its rows.
///
/// Cholesky's factor of `AᵀA` is that R, with an error of ε·κ(A) of the largest singular value (Golub & Van Loan, §5.3.2)
/// for a sixth of the time; where A is too near to losing a direction, reflections take its place.
pub fn triangle(a: MatRef<'_, f64>) -> Mat<f64> {
    if let Ok(cholesky) = (a.transpose() * a).llt(Side::Lower) {
        let diagonal = cholesky.L().diagonal().column_vector();
        let (least, most) = diagonal.iter().fold((f64::MAX, 0.0), |(least, most), &x| (x.min(least), x.max(most)));
        if least > NEAR_SINGULAR * most {
            return cholesky.L().transpose().to_owned();
        }
    }
    a.qr().thin_R().to_owned()
}
