//! Every kernel of `ops::OPS` against its plain twin: the shader alone between canaries, the public function on the CPU
//! and on a GPU, and gradients against finite differences.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

mod gpu_device;

use std::ops::Range;

use burn::backend::DispatchDevice;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Device, FloatDType, Shape, Tensor, TensorData};
use gpu_device::gpu;
use half::f16;
use triptych::engine::device;
use triptych::engine::ops::{Case, OPS, Op};
use triptych::engine::random::Philox;

/// Rows, columns, inner and rank. Tiles are 16 on a side, spans of columns 256, passes 64 ranks.
const SIZES: &[(&str, [usize; 4])] = &[
    ("one of each", [1, 1, 1, 1]),
    ("odd sizes", [17, 33, 6, 3]),
    ("whole tiles", [32, 256, 32, 64]),
    ("beyond a span and a pass", [19, 261, 35, 83]),
];

/// More groups of 16 rows than one axis of a grid holds, and not a whole number of them.
const MANY_GROUPS: [usize; 4] = [16 * 65_535 + 21, 1, 1, 1];

/// Around inputs and in and around outputs: not a number in f32, nor in either half of it in f16. Two, because a sum
/// with the one keeps its bits, and must not pass for the other.
const INPUT_POISON: u32 = 0x7FC2_7FC2;
const POISON: u32 = 0x7FC1_7FC1;

/// Before and after each tensor: a multiple of every alignment that a GPU asks for.
const FENCE: usize = 4096;

fn case([rows, columns, inner, rank]: [usize; 4], elements: [DType; 2]) -> Case {
    Case { rows, columns, inner, rank, scale: 0.75, elements }
}

/// Largest difference, as a share of the largest value, and of the terms it is a sum of.
fn tolerance(op: &Op, case: &Case) -> f32 {
    if case.elements.contains(&DType::F16) { 2e-3 } else { op.tolerance }
}

/// The same values for each device, rounded to the type they will have.
fn inputs(op: &Op, case: &Case) -> Vec<(Vec<f32>, [usize; 2], DType)> {
    let fill = |(i, (shape, dtype)): (usize, ([usize; 2], DType))| {
        let n = shape[0] * shape[1];
        // A prime number of values, repeated: drawing a million would take longer than the kernel.
        let values = Philox::new(i as u64).normal(0, n.min(4093)).into_iter().cycle().take(n);
        (values.map(|x| if dtype == DType::F16 { f16::from_f32(x).to_f32() } else { x }).collect(), shape, dtype)
    };
    (op.inputs)(case).into_iter().enumerate().map(fill).collect()
}

fn tensor(values: &[f32], shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device).cast(FloatDType::from(dtype))
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.cast(FloatDType::F32).into_data().try_to_vec().unwrap()
}

/// What the plain twin makes of it in f32, output by output.
fn expected(op: &Op, case: &Case) -> Vec<Vec<f32>> {
    let case = Case { elements: [DType::F32; 2], ..*case };
    let on_cpu = |(values, shape, _): (Vec<f32>, _, _)| tensor(&values, shape, DType::F32, &device::cpu());
    let tensors: Vec<_> = inputs(op, &case).into_iter().map(on_cpu).collect();
    (op.run)(&case, &tensors).into_iter().map(values).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        // Not a number is not close.
        assert!((a - b).abs() <= tolerance * largest, "{what}: element {i} is {a} instead of {b}");
    }
}

fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Memory full of `poison` on a GPU, with `content` behind a first fence. The tensor is bound to the end of that memory,
/// so a kernel that reads or writes past its tensor does so, whatever the driver does to accesses out of bounds.
fn fenced(content: &[u8], shape: [usize; 2], dtype: DType, poison: u32, device: &Device) -> CubeTensor {
    let DispatchDevice::Cube(device) = device.as_dispatch() else { panic!("{device:?} is no GPU") };
    let mut memory = poison.to_le_bytes().repeat(FENCE / 2 + content.len().div_ceil(4));
    memory[FENCE..FENCE + content.len()].copy_from_slice(content);
    let client = device.client();
    let handle = client.create_from_slice(&memory).offset_start(FENCE as u64);
    CubeTensor::new_contiguous(client, device.clone(), Shape::from(shape), handle, dtype)
}

/// Runs the shader alone between fences; nothing but the whole output may change.
fn check_fenced(op: &Op, case: &Case, device: &Device) {
    let what = format!("{} {case:?}", op.name);
    let kernel = (op.kernel)(case.elements).unwrap();
    let tensors: Vec<CubeTensor> = inputs(op, case)
        .into_iter()
        .map(|(values, shape, dtype)| fenced(&bytes(&values, dtype), shape, dtype, INPUT_POISON, device))
        .collect();
    let dtype = case.elements[1];
    let length = |[rows, columns]: [usize; 2]| rows * columns * dtype.size();
    let poisoned = |shape| {
        let poison = POISON.to_le_bytes().into_iter().cycle().take(length(shape)).collect::<Vec<_>>();
        fenced(&poison, shape, dtype, POISON, device)
    };
    let shapes = (op.outputs)(case);
    let outputs: Vec<CubeTensor> = shapes.iter().copied().map(poisoned).collect();

    (op.launch)(case, kernel, &tensors, &outputs);

    let mut expected = expected(op, case).into_iter();
    for (out, shape) in outputs.into_iter().zip(shapes) {
        let mut whole = out.handle.clone();
        whole.offset_start = None;
        let (memory, end) = (out.client.read_one(whole).unwrap(), FENCE + length(shape));
        let intact = |mut range: Range<usize>| range.all(|i| memory[i] == POISON.to_le_bytes()[i % 4]);
        assert!(intact(0..FENCE), "{what} wrote before its output");
        assert!(memory.len() >= FENCE + end && intact(end..memory.len()), "{what} wrote behind its output");
        let Some(expected) = expected.next() else { continue };
        assert_close(&what, &floats(&memory[FENCE..end], dtype), &expected, tolerance(op, case));
    }
}

fn has_half(device: &Device) -> bool {
    device.supports_dtype(DType::F16)
}

#[test]
fn shaders_fill_their_output_and_nothing_else() {
    let Some((device, _guard)) = gpu() else { return };
    for op in OPS {
        for &elements in op.elements {
            if elements.contains(&DType::F16) && !has_half(&device) {
                println!("skipped: {} in {elements:?}, which this GPU lacks", op.name);
                continue;
            }
            for &(_, sizes) in SIZES {
                check_fenced(op, &case(sizes, elements), &device);
            }
        }
        check_fenced(op, &case(MANY_GROUPS, op.elements[0]), &device);
    }
}

/// The public function on `device`, with inputs that lie transposed in memory.
fn check_public(device: &Device) {
    for op in OPS {
        for &elements in op.elements {
            if elements.contains(&DType::F16) && !has_half(device) {
                continue;
            }
            for &(name, sizes) in &SIZES[..2] {
                let case = case(sizes, elements);
                let transposed = |(values, [rows, columns], dtype): (Vec<f32>, [usize; 2], DType)| {
                    let across = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect::<Vec<_>>();
                    tensor(&across, [columns, rows], dtype, device).transpose()
                };
                let tensors: Vec<_> = inputs(op, &case).into_iter().map(transposed).collect();
                let found = (op.run)(&case, &tensors);
                for (found, expected) in found.into_iter().zip(expected(op, &case)) {
                    assert_eq!(found.dtype(), elements[1], "{} {name}", op.name);
                    // The plain twin rounds each product where the shader rounds once.
                    let tolerance = 2.0 * tolerance(op, &case);
                    assert_close(&format!("{} {name}", op.name), &values(found), &expected, tolerance);
                }
            }
        }
        for empty in 0..4 {
            let mut sizes = [3, 4, 5, 6];
            sizes[empty] = 0;
            let case = case(sizes, op.elements[0]);
            let given: Vec<_> = inputs(op, &case).into_iter().map(|(v, s, d)| tensor(&v, s, d, device)).collect();
            let found: Vec<_> = (op.run)(&case, &given).iter().map(Tensor::dims).collect();
            assert_eq!(found, (op.outputs)(&case)[..found.len()], "{} of {sizes:?}", op.name);
        }
    }
}

#[test]
fn public_functions_agree_with_the_formula_on_the_cpu() {
    check_public(&device::cpu());
}

#[test]
fn public_functions_agree_with_the_cpu_on_a_gpu() {
    let Some((device, _guard)) = gpu() else { return };
    check_public(&device);
}

/// Gradients of `Σ weights · op(inputs)`, with every set of inputs tracked, against central differences.
fn check_gradients(device: &Device) {
    for op in OPS {
        let case = case([4, 6, 5, 3], [DType::F32; 2]);
        let given = inputs(op, &case);
        let shape = (op.outputs)(&case)[0];
        let weights = Philox::new(99).normal(0, shape[0] * shape[1]);
        let loss = |given: &[(Vec<f32>, [usize; 2], DType)]| -> f64 {
            let tensors: Vec<_> = given.iter().map(|(v, s, d)| tensor(v, *s, *d, device)).collect();
            let out = values((op.run)(&case, &tensors).remove(0));
            out.iter().zip(&weights).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        // Small enough for what bends, large enough for f32.
        let step = 0.015_625;
        let difference = |input: usize, element: usize| {
            let at = |step: f32| {
                let mut moved = given.clone();
                moved[input].0[element] += step;
                loss(&moved)
            };
            ((at(step) - at(-step)) / f64::from(2.0 * step)) as f32
        };
        let differences: Vec<Vec<f32>> =
            op.differentiable.iter().map(|&i| (0..given[i].0.len()).map(|k| difference(i, k)).collect()).collect();

        let untracked: Vec<_> = given.iter().map(|(v, s, d)| tensor(v, *s, *d, device)).collect();
        let forward = values((op.run)(&case, &untracked).remove(0));
        for set in 1..1_usize << op.differentiable.len() {
            let mut tensors = untracked.clone();
            let tracked = |place: &usize| set >> place & 1 == 1;
            let places: Vec<usize> = (0..op.differentiable.len()).filter(tracked).collect();
            for &place in &places {
                let tensor = &mut tensors[op.differentiable[place]];
                *tensor = tensor.clone().autodiff().require_grad();
            }
            let out = (op.run)(&case, &tensors).remove(0);
            let what = format!("{} with inputs {places:?} tracked", op.name);
            assert_close(&what, &values(out.clone().inner()), &forward, 1e-5);
            let gradients = (out * tensor(&weights, shape, DType::F32, device)).sum().backward();
            for &place in &places {
                let input = op.differentiable[place];
                let found = values(tensors[input].grad(&gradients).unwrap());
                assert_close(&format!("{what}, gradient of {input}"), &found, &differences[place], 1e-3);
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences_on_the_cpu() {
    check_gradients(&device::cpu());
}

#[test]
fn gradients_match_finite_differences_through_the_shader() {
    let Some((device, _guard)) = gpu() else { return };
    check_gradients(&device);
}
