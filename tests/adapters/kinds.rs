//! A row's [`FileKind`] is neither more nor less than what its layers do, measured from outside: by what goes in and
//! what comes out.

use faer::MatRef;
use triptych::engine::adapter::{FileKind, METHODS, Method, Stored};
use triptych::engine::model::{Mounts, Signal};
use triptych::engine::random::Philox;

use crate::case::{Case, alone, delta, wide};
use crate::{apart, build, largest, tensor};

/// What the adapter adds to the layer's answer to `x`, `[rows, out]`.
struct Heard<'a> {
    case: &'a Case,
    mounts: Mounts,
}

impl Heard<'_> {
    fn to(&self, x: &[f32]) -> Vec<f32> {
        let input = self.case.layer.input();
        let x = Signal::Tokens(tensor(x, [x.len() / input, input]));
        let [with, without] = [&self.mounts, &Mounts::none()].map(|mounts| self.case.values(mounts, &x));
        with.iter().zip(without).map(|(a, b)| a - b).collect()
    }

    fn offset(&self) -> Vec<f32> {
        self.to(&vec![0.0; self.case.layer.input()])
    }

    /// How far it is from one change of the weight and bias: 0 where the answers to two inputs add up.
    fn bent(&self) -> f32 {
        let input = self.case.layer.input();
        let Signal::Tokens(x) = self.case.x() else { panic!("a linear layer") };
        let x = x.into_data().try_to_vec::<f32>().unwrap();
        let (a, b) = (&x[..input], &x[input..2 * input]);
        let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
        let [a, b, sum, offset] = [self.to(a), self.to(b), self.to(&sum), self.offset()];
        let added: Vec<f32> = a.iter().zip(&b).zip(&offset).map(|((a, b), offset)| a + b - offset).collect();
        apart(&sum, &added)
    }

    /// Directions of the change that hold more than rounding.
    fn rank(&self) -> usize {
        let (out, input) = (self.case.layer.out, self.case.layer.input());
        let unit = (0..input * input).map(|at| if at % input == at / input { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let offset = self.offset();
        let change: Vec<f32> =
            self.to(&unit).chunks_exact(out).flat_map(|row| row.iter().zip(&offset).map(|(a, b)| a - b)).collect();
        let singular = MatRef::from_row_major_slice(&change, input, out).map(|&x| f64::from(x)).singular_values();
        let singular = singular.unwrap();
        // Rounding leaves 3e-7 of the largest; the weakest direction that is meant has 5e-3.
        singular.iter().filter(|s| **s > 3e-5 * singular[0]).count()
    }
}

#[test]
fn what_a_row_declares_is_what_its_layers_do() {
    for row in METHODS {
        for case in [wide(), wide().without_bias()].map(|case| case.at_depth(0.5)) {
            let adapter = build(row, &[]);
            let t = case.trained(adapter.as_ref());
            let stored = adapter.store(&t, &case.weight).unwrap();
            let heard = Heard { case: &case, mounts: alone(&adapter, &t) };
            let (bent, rank, offset) = (heard.bent(), heard.rank(), largest(&heard.offset()));
            println!("{} on a {}: rank {rank}, offset {offset:.1e}, bent {bent:.1e}", row.name, case.what);
            assert_declared(row, &case, &stored, (bent, rank, offset));
        }
    }
}

fn assert_declared(row: &Method, case: &Case, stored: &Stored, (bent, rank, offset): (f32, usize, f32)) {
    let context = format!("{} on a {}", row.name, case.what);
    let full = case.layer.out.min(case.layer.input());
    // Measured: 1e-6 where it is straight, 0.1 where it is not.
    let straight = bent < 1e-5;
    assert_eq!(straight, row.file != FileKind::Own, "{context}: {bent}");
    match (row.file, stored) {
        (FileKind::Lora, Stored::Lora { rank: declared, bias: None, .. }) => {
            assert!((1..=*declared).contains(&rank) && rank < full, "{context}: rank {rank} of {declared}");
            assert!(offset == 0.0, "{context}: an offset that the file has no place for");
        }
        (FileKind::LoraAndBias, Stored::Lora { rank: declared, bias, .. }) => {
            assert!((1..=*declared).contains(&rank) && rank < full, "{context}: rank {rank} of {declared}");
            assert_eq!(bias.is_some(), case.weight.bias.is_some(), "{context}");
            assert_eq!(offset > 1e-3, case.weight.bias.is_some(), "{context}: no file with bias differences is needed");
        }
        (FileKind::Difference, Stored::Difference(_)) => {
            assert_eq!(rank, full, "{context}: a LoRA would do");
            assert!(offset == 0.0, "{context}: an offset that the file has no place for");
        }
        (FileKind::Own, Stored::Own) => {}
        (declared, stored) => panic!("{context}: {declared:?} declared, {stored:?} stored"),
    }
}

/// After a short training ΔW is far smaller than the tensors it may be made of, and rounding these must not drown it.
#[test]
fn half_precision_costs_little_of_what_was_learnt() {
    for row in METHODS.iter().filter(|row| matches!(row.file, FileKind::Lora | FileKind::LoraAndBias)) {
        let (case, adapter) = (wide(), build(row, &[]));
        let mut starts = case.start(adapter.as_ref());
        for (k, start) in starts.iter_mut().enumerate().filter(|(_, start)| start.trains) {
            let noise = Philox::new(5).normal(k as u32, start.values.len());
            start.values.iter_mut().zip(noise).for_each(|(x, d)| *x += 1e-3 * d);
        }
        let Stored::Lora { down, up, rank, alpha, .. } = adapter.store(&case.tensors(&starts), &case.weight).unwrap()
        else {
            panic!("{} stores a LoRA", row.name)
        };
        let change = |round: fn(f32) -> f32| -> Vec<f64> {
            let [down, up] = [&down, &up].map(|side| side.iter().map(|&x| round(x)).collect());
            delta(&Stored::Lora { down, up, rank, alpha, bias: None }, case.weight.oi.dims()).0
        };
        let (exact, rounded) = (change(|x| x), change(|x| half::f16::from_f32(x).to_f32()));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let lost = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
        // Measured: 3e-4 throughout; PiSSA written as [up | −up₀]·[down; down₀] loses 5e-2.
        println!("{}: {lost:.1e} of what was learnt is lost in f16", row.name);
        assert!(lost < 1e-3, "{}: {lost}", row.name);
    }
}
