//! One operation on a device and on the CPU, with the same numbers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use half::f16;

use super::rows::Row;
use super::{Check, Verdict};
use crate::engine::device::{cpu, read};
use crate::engine::ops::{Case, Input, OPS, Op};
use crate::engine::random::Philox;

/// Largest difference, as a share of the largest value. Drivers may fuse and reorder; a wrong kernel is far off.
const TOLERANCE: f32 = 1e-3;
/// Where results are rounded to f16: twice what a rounding can make of the largest value, once for each device.
const HALF_TOLERANCE: f32 = 4e-3;
/// Tiles and groups of the kernels are powers of two: none of these is.
const SIZES: Case = Case { rows: 17, columns: 33, inner: 5, rank: 3, scale: 0.75, elements: [DType::F32; 2] };

type Run = Box<dyn Fn(&[Tensor<2>]) -> Vec<Tensor<2>>>;

pub struct Trial {
    pub name: String,
    inputs: Vec<Input>,
    /// The inputs whose gradients are compared too.
    tracked: Vec<usize>,
    run: Run,
    /// The same in f32, for the CPU.
    twin: Run,
    /// What the results are rounded to.
    result: DType,
}

impl Trial {
    pub fn new(
        name: String,
        inputs: Vec<Input>,
        tracked: &[usize],
        run: impl Fn(&[Tensor<2>]) -> Vec<Tensor<2>> + Clone + 'static,
    ) -> Self {
        let twin = Box::new(run.clone());
        Self { name, inputs, tracked: tracked.to_vec(), run: Box::new(run), twin, result: DType::F32 }
    }

    pub fn of_row(row: &'static Row) -> Self {
        Self::new(row.name.into(), row.inputs.to_vec(), row.tracked, row.run)
    }

    /// Every kernel in every type that it is written for.
    pub fn of_kernels() -> impl Iterator<Item = Self> {
        OPS.iter().flat_map(|op| op.elements.iter().map(move |&elements| Self::of_kernel(op, elements)))
    }

    fn of_kernel(op: &'static Op, elements: [DType; 2]) -> Self {
        let case = Case { elements, ..SIZES };
        // Training computes in f32.
        let tracked = if elements == SIZES.elements { op.differentiable } else { &[] };
        let ([input, output], [_, result]) = (elements.map(|dtype| dtype.name()), elements);
        Self {
            twin: Box::new(move |t| (op.run)(&SIZES, t)),
            result,
            ..Self::new(format!("{} ({input} → {output})", op.name), (op.inputs)(&case), tracked, move |t| {
                (op.run)(&case, t)
            })
        }
    }

    /// The result alone.
    #[must_use]
    pub fn without_gradients(self) -> Self {
        Self { tracked: Vec::new(), ..self }
    }

    pub fn check(self, device: &Device) -> Check {
        let check =
            |difference, milliseconds, verdict| Check { name: self.name.clone(), difference, milliseconds, verdict };
        let mut types = self.inputs.iter().map(|&(_, dtype)| dtype).chain([self.result]);
        if types.any(|dtype| dtype != DType::F32 && !device.supports_dtype(dtype)) {
            return check(0.0, 0.0, Verdict::Absent);
        }
        let tolerance = if self.result == DType::F16 { HALF_TOLERANCE } else { TOLERANCE };
        let begun = Instant::now();
        let found = self.values(&self.run, device, |dtype| dtype);
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        match (found, self.values(&self.twin, &cpu(), |_| DType::F32)) {
            (Err(why), _) | (_, Err(why)) => check(f32::NAN, milliseconds, Verdict::Wrong(why)),
            (Ok(found), Ok(expected)) => {
                let [difference, largest] = apart(&found, &expected);
                // Not a number is not close.
                let verdict = match difference <= tolerance {
                    true => Verdict::Right,
                    false => Verdict::Wrong(format!("off by {difference:.1e} of its largest value, {largest}")),
                };
                check(difference, milliseconds, verdict)
            }
        }
    }

    /// Results, then gradients.
    fn values(&self, run: &Run, device: &Device, held: fn(DType) -> DType) -> Result<Vec<Vec<f32>>, String> {
        // A kernel that cannot be made is a panic in cubecl 0.11.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let tensors = self.outputs(run, device, held);
            tensors.into_iter().map(|tensor| read(tensor.cast(FloatDType::F32))).collect::<Result<Vec<_>, _>>()
        }));
        match made {
            Ok(values) => values.map_err(|error| error.what),
            Err(panic) => Err(format!("it did not run ({})", reason(panic.as_ref()))),
        }
    }

    fn outputs(&self, run: &Run, device: &Device, held: fn(DType) -> DType) -> Vec<Tensor<2>> {
        let input = |(i, &input): (u64, &Input)| fill(i, input, device).cast(FloatDType::from(held(input.1)));
        let mut inputs: Vec<Tensor<2>> = (0..).zip(&self.inputs).map(input).collect();
        for &i in &self.tracked {
            inputs[i] = inputs[i].clone().autodiff().require_grad();
        }
        let mut outputs = run(&inputs);
        if !self.tracked.is_empty() {
            let result = outputs.swap_remove(0);
            let pull = fill(99, (result.dims(), DType::F32), device);
            let gradients = (result.clone() * pull).sum().backward();
            outputs = vec![result.inner()];
            let gradient =
                |i: &usize| inputs[*i].grad(&gradients).unwrap_or_else(|| inputs[*i].clone().inner().zeros_like());
            outputs.extend(self.tracked.iter().map(gradient));
        }
        outputs
    }
}

/// The values of input `i` in f32, rounded to the type that the device under test holds.
fn fill(i: u64, (shape, dtype): Input, device: &Device) -> Tensor<2> {
    let n = shape[0] * shape[1];
    // A prime number of values, repeated: drawing the weights of a wide layer would take longer than its product.
    let values = Philox::new(i).normal(0, n.min(4093)).into_iter().cycle().take(n);
    let values: Vec<f32> = match dtype {
        DType::F16 => values.map(|x| f16::from_f32(x).to_f32()).collect(),
        _ => values.collect(),
    };
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let n = tensor.shape().num_elements();
    tensor.reshape([1, n])
}

/// The largest difference as a share of the largest value of its tensor, and that value.
fn apart(found: &[Vec<f32>], expected: &[Vec<f32>]) -> [f32; 2] {
    if found.iter().map(Vec::len).ne(expected.iter().map(Vec::len)) {
        return [f32::INFINITY, 0.0];
    }
    let each = found.iter().zip(expected).map(|(found, expected)| {
        let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest);
        [differences.fold(0.0_f32, |m, x| if x > m || x.is_nan() { x } else { m }), largest]
    });
    each.fold([0.0, 0.0], |worst, one| if one[0] > worst[0] || one[0].is_nan() { one } else { worst })
}

/// The first line of what a panic says.
pub(in crate::engine) fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next()).unwrap_or("no reason was given")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wrong on the device under test, right where it is compared.
    fn spoilt(spoil: fn(Tensor<2>) -> Tensor<2>) -> Check {
        let inputs = vec![([3, 4], DType::F32)];
        let trial = Trial::new("square".into(), inputs, &[0], |t| vec![t[0].clone() * t[0].clone()]);
        let run = move |t: &[Tensor<2>]| vec![spoil(t[0].clone() * t[0].clone())];
        Trial { run: Box::new(run), ..trial }.check(&cpu())
    }

    #[test]
    fn what_differs_or_does_not_run_is_told() {
        assert_eq!(spoilt(|x| x).fault(), None);
        for (spoil, said) in [
            (|x| x * 1.002, "off by"),
            (|x| x.log() * f32::NAN, "off by NaN"),
            (|x| x.clone().narrow(0, 0, 2), "off by inf"),
            (|_| panic!("no kernel\nmore"), "it did not run (no kernel)"),
            // The gradient alone.
            (|x| x.clone().detach() * 2.0 - x, "off by"),
        ] as [(fn(Tensor<2>) -> Tensor<2>, &str); 5]
        {
            let fault = spoilt(spoil).fault().unwrap_or_default();
            assert!(fault.starts_with("square: ") && fault.contains(said), "{said}: {fault}");
        }
    }
}
