//! The contract of every adapter method. Tests loop over `METHODS`: registering a method is having it tested, by what
//! its row declares and nothing else. What a paper promises beyond that is in `rules`, `departures` and `choices`.
//!
//! f32 on the CPU. The layers of one test are a few numbers wide; the whole model is the reference's, whatever its
//! sizes. Each tolerance stands beside what was measured.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod case;
mod choices;
mod counts;
mod departures;
mod files;
mod gradients;
mod kinds;
mod layer;
mod layers;
mod model;
#[path = "../reference/mod.rs"]
mod reference;
mod registry;
mod rules;
mod runs;
mod slots;
mod whole;

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use faer::{Mat, MatRef};
use triptych::engine::adapter::{self, Adapter, Context, Method};
use triptych::engine::device;
use triptych::engine::field::Settings;

/// Two slots of this width fit into the narrowest layer of the small model.
const BLOCK: usize = 4;
const CONTEXT: Context = Context { seed: 7, slot: 1, block: BLOCK };

/// For the rows that have such a field: alpha is not the rank, so that a forgotten scale shows; a row with a period
/// reaches its second one within a short run.
const SETTINGS: [(&str, &str); 3] = [("rank", "3"), ("alpha", "5"), ("period", "2")];

fn has(row: &Method, field: &str) -> bool {
    row.fields.iter().any(|f| f.name == field)
}

/// [`SETTINGS`] as far as they are the row's, then `changes`.
fn settings(row: &Method, changes: &[(&str, &str)]) -> Settings {
    let usual = SETTINGS.into_iter().filter(|(name, _)| has(row, name));
    Settings::new(row.fields, usual.chain(changes.iter().copied())).unwrap_or_else(|e| panic!("{}: {e}", row.name))
}

fn build(row: &Method, changes: &[(&str, &str)]) -> Arc<dyn Adapter> {
    (row.build)(&settings(row, changes), &CONTEXT).unwrap_or_else(|e| panic!("{}: {e}", row.name)).into()
}

fn row(name: &str) -> &'static Method {
    adapter::method(name).unwrap()
}

fn matrix(values: &[f32], [rows, columns]: [usize; 2]) -> Mat<f64> {
    MatRef::from_row_major_slice(values, rows, columns).map(|&x| f64::from(x))
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    device::read(tensor.clone()).unwrap()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &device::cpu())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Largest difference, as a share of the largest expected value.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()), "not finite");
    let difference = found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    difference / largest(expected)
}
