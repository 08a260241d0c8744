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
                    let each = rank / slots.len().max(1);
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

/// Largest share of any stored row outside the span of its slots; more than rounding explains is refused.
fn outside_of_slots(file: &LoraFile, basis: &Basis, slots: &[usize]) -> Result<f64> {
    let tolerance = match file.dtype {
        Some(Dtype::F16) => 1e-3,
        Some(Dtype::BF16) => 1e-2,
        _ => 1e-5,
    };
    let mut worst: f64 = 0.0;
    let mut rows_of: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (module, layer) in &file.layers {
        let width = layer.input();
        let rows = match rows_of.entry(width) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let rank = basis.block.min(width);
                let rows = slots.iter().map(|&slot| basis.rows(width, slot, rank)).collect::<Result<Vec<_>>>();
                new.insert(rows.map_err(|e| e.at(&file.path))?.concat())
            }
        };
        for stored in layer.down.chunks_exact(width) {
            let share = outside_share(stored, rows);
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

/// `‖x − RᵀR x‖ / ‖x‖` for orthonormal rows R.
fn outside_share(x: &[f32], rows: &[f32]) -> f64 {
    let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let mut rest: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    for row in rows.chunks_exact(x.len()) {
        let along: f64 = x.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        rest.iter_mut().zip(row).for_each(|(r, &b)| *r -= along * f64::from(b));
    }
    if norm > 0.0 { (rest.iter().map(|r| r * r).sum::<f64>() / norm).sqrt() } else { 0.0 }
}
