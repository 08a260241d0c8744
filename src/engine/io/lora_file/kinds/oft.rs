//! Orthogonal adapters: blocks of the weight's rows or columns are turned by Cayley transforms.
//!
//! The files of different tools are not interchangeable: LyCORIS turns the output side and PEFT the input side, each with
//! senses of its own.

use faer::linalg::solvers::Solve as _;
use faer::{Mat, Scale};

use crate::engine::io::lora_file::kinds::Read;
use crate::engine::io::lora_file::parts::{Array, Parts, Wrong};
use crate::engine::io::lora_file::relative::{Axis, Order, Relative, Rotation, Turn};

/// LyCORIS's diag-OFT (`oft_blocks [blocks, b, b]`), its BOFT (one axis more) and kohya's OFT: `W' = rescale ∘ Rᵀ·W` of
/// the first, `R·W` of the second, `R = (I + Q)(I − Q)⁻¹`, `Q = P − Pᵀ`.
pub fn output_side(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let rescale = parts.maybe("rescale")?.map(|rescale| rescale.values);
    let turns = match parts.maybe("oft_diag")? {
        Some(blocks) => {
            // R itself.
            let blocks = squares(&blocks, "oft_diag")?.map(|r| r.transpose().to_owned()).collect();
            vec![Turn { order: Order::Neighbours, blocks }]
        }
        None => bounded_turns(parts)?,
    };
    Ok(Read::Relative(Relative::Rotation(Rotation { axis: Axis::Output, turns, rescale })))
}

fn bounded_turns(parts: &Parts<'_>) -> Result<Vec<Turn>, Wrong> {
    let blocks = parts.array("oft_blocks")?;
    let bound = parts.number("alpha")?.unwrap_or(0.0);
    let skew: Vec<Mat<f64>> = squares(&blocks, "oft_blocks")?.map(|p| &p - p.transpose()).collect();
    let (b, stages) = match blocks.shape[..] {
        [_, b, _] => (b, None),
        [stages, _, b, _] => (b, Some(stages)),
        _ => return Err(format!("its oft_blocks have the shape {:?}", blocks.shape)),
    };
    let width = skew.len() / stages.unwrap_or(1) * b;
    let skew = bounded(skew, f64::from(bound) * width as f64, bound > 0.0 || parts.numbers.always_bounded);
    let Some(stages) = stages else {
        let blocks = skew.iter().map(|q| cayley(&-q)).collect::<Result<_, _>>()?;
        return Ok(vec![Turn { order: Order::Neighbours, blocks }]);
    };
    let turn = |(stage, skew): (usize, &[Mat<f64>])| {
        let apart = (b / 2).checked_mul(1 << stage.min(32)).filter(|&apart| apart > 0);
        let order = Order::Apart(apart.ok_or("its blocks cannot be halved")?);
        Ok(Turn { order, blocks: skew.iter().map(cayley).collect::<Result<_, _>>()? })
    };
    skew.chunks(skew.len() / stages).enumerate().map(turn).collect()
}

/// PEFT's OFT: `W'ᵀ = R·Wᵀ`, with the upper triangle of each `Q` stored. Its exact R is `(I − Q)(I + Q)⁻¹`; the series that
/// it takes by default stands for the opposite sense.
pub fn input_side(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let triangles = parts.array("oft_R")?;
    let n = triangles.columns();
    let b = (1..=n).find(|b| b * (b + 1) / 2 == n).map(|b| b + 1);
    let b = b.ok_or_else(|| format!("its oft_R has {n} columns, which is no triangle"))?;
    // OneTrainer's mark.
    let scale = if parts.has("oft_scaled") { 1.0 / (2.0 * ((b - 1) as f64).sqrt()) } else { 1.0 };
    let blocks = (0..triangles.rows()).map(|block| {
        let (mut q, mut at) = (Mat::zeros(b, b), 0);
        for i in 0..b {
            for j in i + 1..b {
                let x = scale * f64::from(triangles.row(block)[at]);
                (q[(i, j)], q[(j, i)]) = (x, -x);
                at += 1;
            }
        }
        match parts.numbers.series {
            Some(terms) => Ok(series(&q, terms)),
            None => cayley(&-q),
        }
    });
    let turns = vec![Turn { order: Order::Neighbours, blocks: blocks.collect::<Result<_, Wrong>>()? }];
    Ok(Read::Relative(Relative::Rotation(Rotation { axis: Axis::Input, turns, rescale: None })))
}

/// PEFT's BOFT: `W'ᵀ = R·Wᵀ`, scaled on the output side; `R_t [stages, blocks, b, b]`, `Q = ½(R_t − R_tᵀ)`.
pub fn butterflies(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let all = parts.array("boft_R")?;
    let [_, blocks, b, _] = all.axes("boft_R")?;
    let factors = squares(&all, "boft_R")?.map(|r| cayley(&(Scale(0.5) * (r.transpose() - &r))));
    let factors: Vec<Mat<f64>> = factors.collect::<Result<_, _>>()?;
    let turns = factors.chunks(blocks).enumerate().map(|(stage, blocks)| {
        let order = Order::EvenFirst { group: b << stage.min(32), chunk: b / 2 };
        Turn { order: if stage == 0 { Order::Neighbours } else { order }, blocks: blocks.to_vec() }
    });
    let turns: Vec<Turn> = turns.collect();
    let rescale = parts.maybe("boft_s")?.map(|scale| scale.values);
    Ok(Read::Relative(Relative::Rotation(Rotation { axis: Axis::Input, turns, rescale })))
}

/// The square matrices on the last two axes.
fn squares<'a>(blocks: &'a Array, name: &str) -> Result<impl Iterator<Item = Mat<f64>> + 'a, Wrong> {
    let side = match blocks.shape[..] {
        [.., a, b] if a == b && blocks.shape.len() > 2 => b,
        _ => return Err(format!("its {name} has the shape {:?}", blocks.shape)),
    };
    let square = move |values: &[f32]| Mat::from_fn(side, side, |i, j| f64::from(values[i * side + j]));
    Ok(blocks.values.chunks_exact(side * side).map(square))
}

/// All blocks shrunk together until their norm is no larger than `bound`.
fn bounded(skew: Vec<Mat<f64>>, bound: f64, applies: bool) -> Vec<Mat<f64>> {
    let norm = skew.iter().map(Mat::squared_norm_l2).sum::<f64>().sqrt();
    if !applies || norm <= bound {
        return skew;
    }
    skew.into_iter().map(|q| Scale(bound / norm) * q).collect()
}

/// `(I + Q)(I − Q)⁻¹` of a skew-symmetric Q: orthogonal.
fn cayley(q: &Mat<f64>) -> Result<Mat<f64>, Wrong> {
    let n = q.nrows();
    let one = Mat::<f64>::identity(n, n);
    // The two commute.
    let r = (&one - q).partial_piv_lu().solve(&one + q);
    if r.is_all_finite() { Ok(r) } else { Err("its rotation is not finite".into()) }
}

/// `I + 2Q + 2Q² + … + Qⁿ⁻¹`: the first `terms` of Neumann's series, the last of them once.
fn series(q: &Mat<f64>, terms: usize) -> Mat<f64> {
    let n = q.nrows();
    let mut sum = Mat::<f64>::identity(n, n);
    let mut power = Mat::<f64>::identity(n, n);
    for term in 1..terms {
        power = &power * q;
        let weight = if term + 1 == terms && terms > 2 { 1.0 } else { 2.0 };
        sum += Scale(weight) * &power;
    }
    sum
}
