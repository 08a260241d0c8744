//! `KnOTS`: TIES on adapters that were first turned into one shared write basis (Stoica et al. 2024, arXiv 2410.19735).
//!
//! `[ΔW₁ … ΔW_T] = U S [V₁ᵀ … V_Tᵀ]`: in the basis U, adapter t is `S Vₜᵀ`, a few rows that can be compared number by
//! number with the others' although no two adapters wrote in the same directions. The result is `U · ties(S Vₜᵀ)`, of no
//! higher rank than the adapters have together. The authors' code trims over all layers at once; here each layer is
//! trimmed alone, as `ties` does it after PEFT.

use faer::{Mat, MatRef};

use crate::engine::Result;
use crate::engine::event::Watch;
use crate::engine::field::Settings;
use crate::engine::merge::elect::{self, Elected, Rules};
use crate::engine::merge::pack::{Limit, pack};
use crate::engine::merge::terms::{Term, each_layer};
use crate::engine::merge::{Inputs, Merged, Method, Needs, Promise};
use crate::engine::spectrum::LowRank;

pub const METHOD: Method = Method {
    name: "knots",
    title: "Vote in a shared space",
    paper: "KnOTS: Stoica et al. 2024, arXiv 2410.19735",
    help: "Finds directions that all adapters write in, and lets them vote there: resolves conflicts better than a vote on single weights, and the file stays small. Published on classifiers and language models only",
    fields: &[elect::DENSITY, elect::SIGN, elect::LAMBDA],
    needs: Needs::Nothing,
    promises: &[Promise::AnyOrder, Promise::CopiesCountOnce],
    run,
};

/// Directions below this share of the strongest are rounding.
const NULL: f64 = 1e-5;

fn run(inputs: &Inputs<'_>, settings: &Settings, watch: &mut Watch<'_>) -> Result<Merged> {
    let rules = Rules::of(settings);
    let layers = each_layer(inputs.sources, watch, |_, terms| {
        let deltas = terms.iter().map(Term::unit).collect::<Result<Vec<_>>>()?;
        let u = write_basis(&deltas)?;
        let adapters = terms.iter().zip(&deltas).map(|(term, delta)| {
            let rows = u.transpose() * delta.up() * delta.down() * faer::Scale(delta.scale());
            (f64::from(term.w), rows.col_iter().flat_map(|column| column.iter().copied()).collect())
        });
        let Elected { values, votes, lost } = rules.elect(adapters.collect());
        let rows = MatRef::from_column_major_slice(&values, u.ncols(), terms[0].layer.input()).to_owned();
        let merged = LowRank::of(u, rows);
        Ok((pack(&merged.svd()?, merged.energy(), Limit::NONE, terms).layer, [lost, votes]))
    })?;
    let notes = elect::conflicts(layers.iter().map(|(module, (_, votes))| (module.clone(), *votes)));
    Ok(Merged { layers: layers.into_iter().map(|(m, (layer, _))| (m, layer)).collect(), notes, ..Merged::default() })
}

/// The left singular vectors of `[ΔW₁ … ΔW_T]`: those of the concatenation's square root `Q·R`, where the reads have
/// become the small triangles of their QR.
fn write_basis(deltas: &[LowRank]) -> Result<Mat<f64>> {
    let writes: Vec<Mat<f64>> = deltas
        .iter()
        .map(|delta| delta.up() * delta.down().transpose().qr().thin_R().transpose() * faer::Scale(delta.scale()))
        .collect();
    let (out, columns) = (writes[0].nrows(), writes.iter().map(Mat::ncols).sum());
    let (mut all, mut at) = (Mat::zeros(out, columns), 0);
    for write in &writes {
        all.subcols_mut(at, write.ncols()).copy_from(write);
        at += write.ncols();
    }
    let svd = LowRank::of(all, Mat::identity(columns, columns)).svd()?;
    let strongest = svd.s.first().copied().unwrap_or(0.0);
    let rank = svd.s.iter().take_while(|&&s| s > NULL * strongest).count();
    Ok(svd.u.subcols(0, rank.max(1)).to_owned())
}
