//! TSV-M: the adapters' singular directions made orthogonal to each other (Gargiulo et al. 2025, arXiv 2412.00081).
//!
//! `U = [U₁ … U_T]` and V hold each adapter's strongest directions, `S` how strong they are; both are replaced by their
//! nearest orthonormal matrices, and the result is `U⊥ S V⊥ᵀ`. The thin SVDs span the layer's core already, so nothing
//! of `out × in` is formed.

use faer::{Mat, MatRef};

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::field::Settings;
use crate::engine::merge::note::shares;
use crate::engine::merge::pack::{Limit, pack};
use crate::engine::merge::terms::each_layer;
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise};
use crate::engine::spectrum::{LowRank, Svd};

pub const METHOD: Method = Method {
    name: "tsv",
    title: "De-overlap",
    paper: "TSV-M: Gargiulo et al. 2025, arXiv 2412.00081",
    help: "Turns the adapters' directions until none overlaps another, and adds them at full strength. For adapters that crowd each other; published on classifiers only, and best without near-copies",
    fields: &[],
    needs: Needs::Nothing,
    promises: &[
        Promise::AnyOrder,
        Promise::CopiesCountOnce,
        Promise::AloneUnchanged,
        Promise::Rotates,
        Promise::AddsTheUnrelated,
        Promise::ReadsWithin,
    ],
    run,
};

/// Directions of the concatenation below this share of the strongest are copies of each other. A bf16 file rounds to
/// 4e-3; without the cut, two copies would come with arbitrary directions at full strength.
const SAME: f64 = 1e-2;

fn run(inputs: &Inputs<'_>, _: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let layers = each_layer(inputs.sources, watch, |_, terms| {
        let svds = terms.iter().map(|term| term.delta()?.svd()).collect::<Result<Vec<_>>>()?;
        // Together no more directions than the layer has.
        let shape = (terms[0].layer.out(), terms[0].layer.input());
        let share = (shape.0.min(shape.1) / terms.len()).max(1);
        let kept = |svd: &Svd| svd.rank().min(share);
        let k = svds.iter().map(kept).sum();
        let (mut u, mut v) = (Mat::zeros(shape.0, k), Mat::zeros(shape.1, k));
        let mut s = Vec::new();
        for svd in &svds {
            u.subcols_mut(s.len(), kept(svd)).copy_from(svd.u.subcols(0, kept(svd)));
            v.subcols_mut(s.len(), kept(svd)).copy_from(svd.v.subcols(0, kept(svd)));
            s.extend(&svd.s[..kept(svd)]);
        }
        let energy = |svd: &Svd, from: usize| svd.s[from..].iter().fold(0.0, |sum, s| sum + s * s);
        let all = |of: &dyn Fn(&Svd) -> f64| svds.iter().fold(0.0, |sum, svd| sum + of(svd));
        let cut = [all(&|svd| energy(svd, kept(svd))), all(&|svd| energy(svd, 0))];
        let overlap = [interference(u.as_ref(), &s, v.as_ref()), s.iter().sum()];
        let merged = LowRank::of(scaled_columns(&orthonormal(u)?, &s), orthonormal(v)?.transpose().to_owned());
        Ok((pack(&merged.svd()?, merged.energy(), Limit::NONE, terms).layer, overlap, cut))
    })?;
    let overlaps = layers.iter().map(|(module, (_, overlap, _))| (module.clone(), *overlap));
    let cuts = layers.iter().map(|(module, (.., cut))| (module.clone(), *cut));
    let mut notes = shares("interference", "Overlap turned away, beside the adapters' whole strength", overlaps);
    notes.extend(shares("cut", "Energy beyond each adapter's share of directions, left out", cuts));
    let layers = layers.into_iter().map(|(module, (layer, ..))| (module, layer)).collect();
    Ok(Merged { layers, notes, ..Merged::default() })
}

/// `Σ|(UᵀU − I) S (VᵀV − I)|`: 0 as soon as the adapters are orthogonal on either side.
fn interference(u: MatRef<'_, f64>, s: &[f64], v: MatRef<'_, f64>) -> f64 {
    let eye = Mat::<f64>::identity(s.len(), s.len());
    let product = scaled_columns(&(u.transpose() * u - &eye), s) * (v.transpose() * v - &eye);
    product.norm_l1()
}

/// The nearest matrix with orthonormal columns, `PQᵀ` of the SVD `PΣQᵀ`; a partial isometry where columns repeat.
fn orthonormal(columns: Mat<f64>) -> Result<Mat<f64>> {
    let eye = Mat::identity(columns.ncols(), columns.ncols());
    let Svd { u, s, v } = LowRank::of(columns, eye).svd()?;
    let rank = s.iter().take_while(|&&sigma| sigma > SAME * s[0]).count();
    Ok(u.subcols(0, rank) * v.subcols(0, rank).transpose())
}

fn scaled_columns(columns: &Mat<f64>, by: &[f64]) -> Mat<f64> {
    Mat::from_fn(columns.nrows(), columns.ncols(), |i, j| columns[(i, j)] * by[j])
}
