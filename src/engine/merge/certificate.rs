//! Proof that orthogonal adapters do not meet: from the identities in their files, checked against what is stored.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::engine::adapter::basis::{Basis, BasisKind};
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::{Dtype, metadata, names};
use crate::engine::{Error, Result};

/// What the identities prove.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// The common basis, e.g. `slots v1 seed 0 block 8`.
    pub basis: String,
    /// Slots of each adapter, in order.
    pub slots: Vec<Vec<usize>>,
    /// Whether no column of the basis belongs to two of them, in any layer: then `ΔWᵢ·ΔWⱼᵀ = 0` exactly.
    pub disjoint: bool,
    /// Largest share of a stored row that lies outside its adapter's slots: what rounding to the file's number format
    /// costs.
    pub outside: f64,
    /// What follows for the artist.
    pub sentence: String,
}

/// Basis and slots a file claims, or `None` for an adapter of another kind.
pub fn identity(file: &LoraFile) -> Result<Option<(Basis, Vec<usize>)>> {
    let Some(text) = file.metadata.get(metadata::BASIS) else { return Ok(None) };
    let basis = text.parse::<Basis>().map_err(|e| e.at(&file.path))?;
    let slots = file.metadata.get(metadata::SLOT).map_or("", String::as_str);
    let slots =
        slots.split(',').map(|slot| slot.trim().parse().ok()).collect::<Option<Vec<usize>>>().ok_or_else(|| {
            Error::new(
                format!("The file claims the slot “{slots}” of a shared basis"),
                "Its metadata is damaged: export it again",
            )
            .at(&file.path)
        })?;
    Ok(Some((basis, slots)))
}

/// Certifies adapters of one shared basis. `None` if one of them has none; different bases are refused by name.
pub fn certify(files: &[&LoraFile]) -> Result<Option<Certificate>> {
    let mut identities = Vec::new();
    for file in files {
        match identity(file)? {
            Some(identity) => identities.push(identity),
            None => return refuse_mixture(files, &identities).map(|()| None),
        }
    }
    let Some((basis, _)) = identities.first().cloned() else { return Ok(None) };
    refuse_mixture(files, &identities)?;
    let slots: Vec<Vec<usize>> = identities.into_iter().map(|(_, slots)| slots).collect();
    let mut outside: f64 = 0.0;
    for (file, slots) in files.iter().zip(&slots) {
        outside = outside.max(outside_of_slots(file, &basis, slots)?);
    }
    let shared = shared_columns(files, &basis, &slots)?;
    let disjoint = basis.kind != BasisKind::Gaussian && shared.is_none();
    let sentence = match (&basis.kind, shared) {
        (BasisKind::Gaussian, _) => {
            "A gaussian basis is orthogonal only on average: look at the measured overlap".to_owned()
        }
        (_, Some((i, j))) => format!(
            "{} and {} share columns of the basis: train {} again in a free slot",
            files[i].path.display(),
            files[j].path.display(),
            files[j].path.display()
        ),
        (_, None) => {
            "Every adapter reads columns of the basis that no other reads: the sum keeps them apart exactly".to_owned()
        }
    };
    Ok(Some(Certificate { basis: basis.to_string(), slots, disjoint, outside, sentence }))
}

/// All bases must be equal where there are several.
fn refuse_mixture(files: &[&LoraFile], known: &[(Basis, Vec<usize>)]) -> Result<()> {
    let mut seen: Option<(&LoraFile, Basis)> = None;
    for (i, file) in files.iter().enumerate() {
        let basis = match known.get(i) {
            Some((basis, _)) => *basis,
            None => match identity(file)? {
                Some((basis, _)) => basis,
                None => continue,
            },
        };
        match seen {
            Some((first, other)) if other != basis => {
                return Err(Error::new(
                    format!(
                        "{} uses the basis “{other}” and {} uses “{basis}”",
                        first.path.display(),
                        file.path.display()
                    ),
                    "Slots of different bases are not orthogonal to each other: train one of them again in the other's project",
                ));
            }
            _ => seen = Some((file, basis)),
        }
    }
    Ok(())
}

/// The first two adapters with a common column in a common layer.
fn shared_columns(files: &[&LoraFile], basis: &Basis, slots: &[Vec<usize>]) -> Result<Option<(usize, usize)>> {
    if basis.kind == BasisKind::Gaussian {
        return Ok(None);
    }
    for j in 1..files.len() {
        for i in 0..j {
            let common =
                files[i].layers.iter().filter_map(|(module, layer)| Some((layer, files[j].layers.get(module)?)));
            let shapes: BTreeSet<(usize, usize, usize)> = common.map(|(a, b)| (a.input(), a.rank, b.rank)).collect();
            for (width, rank_i, rank_j) in shapes {
                let columns = |slots: &[usize], rank: usize| -> Result<BTreeSet<usize>> {
                    let each = most_columns(basis, width, rank);
                    let columns =
                        slots.iter().map(|&slot| basis.columns(width, slot, each)).collect::<Result<Vec<_>>>()?;
                    Ok(columns.into_iter().flatten().collect())
                };
                if !columns(&slots[i], rank_i)?.is_disjoint(&columns(&slots[j], rank_j)?) {
                    return Ok(Some((i, j)));
                }
            }
        }
    }
    Ok(None)
}

/// How many columns of one slot a layer of this rank may read. A merged file does not say which of its slots gave how
/// many, but none gave more than all, nor more than the slot has.
fn most_columns(basis: &Basis, width: usize, rank: usize) -> usize {
    match basis.kind {
        BasisKind::Slots => basis.block.min(width),
        BasisKind::RandomSubset | BasisKind::Gaussian => rank.min(width),
    }
}

/// A number format, and how far its rounding may move a row out of its slot.
pub struct Format {
    /// As [`metadata::ROUNDED`] has it.
    pub name: &'static str,
    dtype: Dtype,
    outside: f64,
}

/// The coarsest first.
const FORMATS: [Format; 2] = [
    Format { name: "bf16", dtype: Dtype::BF16, outside: 1e-2 },
    Format { name: "f16", dtype: Dtype::F16, outside: 1e-3 },
];
/// What f32 needs.
const OUTSIDE: f64 = 1e-5;

/// The coarsest format below f32 that any of the files, or a part they were merged from, went through.
pub fn coarsest(files: &[&LoraFile]) -> Option<&'static Format> {
    let went_through = |file: &LoraFile, format: &Format| {
        file.dtype == Some(format.dtype) || file.metadata.get(metadata::ROUNDED).is_some_and(|name| name == format.name)
    };
    FORMATS.iter().find(|format| files.iter().any(|file| went_through(file, format)))
}

/// Largest share of any stored row outside the span of its slots; more than rounding explains is refused.
fn outside_of_slots(file: &LoraFile, basis: &Basis, slots: &[usize]) -> Result<f64> {
    let tolerance = coarsest(&[file]).map_or(OUTSIDE, |format| format.outside);
    let mut worst: f64 = 0.0;
    let mut span_of: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for (module, layer) in &file.layers {
        let width = layer.input();
        let each = most_columns(basis, width, layer.rank);
        let span = match span_of.entry((width, each)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let rows = slots.iter().map(|&slot| basis.rows(width, slot, each)).collect::<Result<Vec<_>>>();
                new.insert(span(&rows.map_err(|e| e.at(&file.path))?.concat(), width))
            }
        };
        for stored in layer.down.chunks_exact(width) {
            let share = outside_share(stored, span);
            if share > tolerance {
                return Err(Error::new(
                    format!("The read side of {} is not in the slot it claims ({share:.1e} of it lies outside)", names::block(module)),
                    "The file was changed after training, or its metadata belongs to another: train it again, or remove triptych.basis",
                )
                .at(&file.path));
            }
            worst = worst.max(share);
        }
    }
    Ok(worst)
}

/// Orthonormal rows with the span of `rows`: Gaussian rows are not orthogonal, and random slots may share columns.
fn span(rows: &[f32], width: usize) -> Vec<f64> {
    let mut span = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(width) {
        let mut rest: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        // The second pass removes what rounding left in the first.
        (0..2).for_each(|_| project_out(&mut rest, &span));
        let length = norm(&rest);
        // All rows are about 1 long; less than this is the rounding of one that is in the span already.
        if length > OUTSIDE {
            span.extend(rest.iter().map(|x| x / length));
        }
    }
    span
}

/// `‖x − RᵀR x‖ / ‖x‖` for orthonormal rows R.
fn outside_share(x: &[f32], rows: &[f64]) -> f64 {
    let mut rest: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let whole = norm(&rest);
    project_out(&mut rest, rows);
    if whole > 0.0 { norm(&rest) / whole } else { 0.0 }
}

fn project_out(x: &mut [f64], rows: &[f64]) {
    for row in rows.chunks_exact(x.len()) {
        let along: f64 = x.iter().zip(row).map(|(a, b)| a * b).sum();
        x.iter_mut().zip(row).for_each(|(x, b)| *x -= along * b);
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
