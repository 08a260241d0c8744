//! The same pixels from the engine's memory as from the host's, wherever a tensor lies in it.

use std::sync::{Arc, OnceLock};

use burn::backend::DispatchDevice;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use egui::Color32;

use super::colors::picture;
use super::*;
use crate::engine::device::{self, Buffer, Opened, WgpuSetup};
use crate::engine::preview::Pictures;
use crate::ui::work::glimpse::{self, Glimpse};
use crate::ui::work::painter::Tag;
use crate::ui::work::{Post, Report};

/// The adapter, with the engine on the device that paints. A runtime is there once for a device.
fn shared() -> Option<&'static (Gpu, Opened)> {
    static SHARED: OnceLock<Option<(Gpu, Opened)>> = OnceLock::new();
    let open = || {
        let gpu = open(wgpu::Adapter::limits)?;
        let Gpu { instance, adapter, device, queue } = &gpu;
        let setup = WgpuSetup {
            instance: instance.clone(),
            adapter: adapter.clone(),
            device: device.clone(),
            queue: queue.clone(),
            backend: adapter.get_info().backend,
        };
        let opened = device::share(setup).unwrap();
        Some((gpu, opened))
    };
    SHARED.get_or_init(open).as_ref()
}

/// Odd on every side, so that rows and planes begin at no round place.
const SIDES: [u32; 2] = [7, 5];

fn split(numbers: Numbers, before: &Planes) -> Painting {
    let after = Planes { numbers, size: SIDES, soft: true };
    let divider = Divider { at: 0.3, width: 1.5, color: Color32::RED };
    Split { picture: &after, before: Some((before, divider)) }.painting(place(), 1.0)
}

#[test]
fn a_tensor_is_painted_where_it_lies() {
    let Some((gpu, opened)) = shared() else { return };
    let host = Planes::of(&picture(7, 5), true);
    let before = Planes::of(&picture(3, 3), false);
    let Numbers::Host(values) = &host.numbers else { return };
    let expected = pixels(gpu, FORMATS[0], &split(host.numbers.clone(), &before));
    // Behind other values, then computed there: halves and doubles are exact.
    let list: Vec<f32> = [9.0; 64].into_iter().chain(values.iter().map(|x| x / 2.0)).chain([9.0; 64]).collect();
    let whole = Tensor::<1>::from_data(TensorData::new(list, [values.len() + 128]), &opened.device);
    let inside = whole.narrow(0, 64, values.len()).reshape([1, 3, 5, 7]) * 2.0;
    let buffer = Arc::new(opened.buffer(inside.clone()).expect("an f32 tensor of the shared device"));
    assert_eq!(buffer.size(), 4 * values.len() as u64);
    assert_eq!(pixels(gpu, FORMATS[0], &split(Numbers::Engine(Arc::clone(&buffer)), &before)), expected);
    // What is shown stays as it is, whatever the engine does with the tensor, and with its memory once that is dropped.
    let mut next = inside * 0.0 + 9.0;
    for _ in 0..4 {
        next = next * 1.5;
    }
    let others: Vec<Tensor<1>> = (0..8).map(|i| Tensor::full([values.len()], f64::from(i), &opened.device)).collect();
    assert!(device::read(next).is_ok() && others.into_iter().all(|other| device::read(other * 2.0).is_ok()));
    assert_eq!(pixels(gpu, FORMATS[0], &split(Numbers::Engine(buffer), &before)), expected);
}

/// Where no binding can begin, and where one can.
#[test]
fn a_list_begins_anywhere_in_its_memory() {
    let Some((gpu, opened)) = shared() else { return };
    let DispatchDevice::Cube(device) = opened.device.as_dispatch() else { panic!("{:?} is no GPU", opened.device) };
    let values: Vec<f32> = (0..15).map(|i| 0.01 * 1.6_f32.powi(i)).collect();
    let strip = |values| HeatStrip { values, columns: 5, rows: 3, low: 0.01, high: 10.0, gap: 1.0 };
    let expected = pixels(gpu, FORMATS[0], &strip(Numbers::Host(values.as_slice().into())).painting(place(), 1.0));
    for past in [0, 1, 7, 64, 65] {
        let list: Vec<f32> = vec![-1.0; past].into_iter().chain(values.iter().copied()).chain([-1.0; 9]).collect();
        let bytes: Vec<u8> = list.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let client = device.client();
        let handle = client.create_from_slice(&bytes).offset_start(4 * past as u64);
        let tensor = CubeTensor::new_contiguous(client, device.clone(), Shape::from([5, 3]), handle, DType::F32);
        let numbers = Numbers::Engine(Buffer::behind(tensor).unwrap().into());
        let found = pixels(gpu, FORMATS[0], &strip(numbers).painting(place(), 1.0));
        assert_eq!(found, expected, "behind {past} numbers");
    }
}

#[test]
fn only_memory_that_the_window_can_read_is_handed_over() {
    let tensor = |device| Tensor::<1>::from_floats([1.0, 2.0], device);
    let cpu = device::open(device::Choice::Cpu).unwrap();
    assert!(cpu.buffer(tensor(&cpu.device)).is_none());
    let Some((_, opened)) = shared() else { return };
    assert!(opened.buffer(tensor(&opened.device)).is_some());
    assert!(opened.buffer(tensor(&cpu.device)).is_none(), "of a model that fell back to the CPU");
    assert!(Opened { shared: false, ..opened.clone() }.buffer(tensor(&opened.device)).is_none());
}

/// Of a picture whose values are `values`, on `device`: what the preview is told, and whether the picture came out.
fn seen(values: &[f32], device: &Opened) -> (Option<Planes>, Option<image::RgbImage>) {
    let ctx = Context::default();
    ctx.data_mut(|data| data.insert_temp(flag(), true));
    let (post, reports) = Post::new(&ctx);
    let pixels = Tensor::from_data(TensorData::new(values.to_vec(), [1, 3, 5, 7]), &device.device);
    let pictures = Pictures { latents: pixels.clone(), pixels };
    let image = glimpse::image(Tag::Mixed, device, &pictures, &post).ok();
    let planes = reports.try_iter().find_map(|report| match report {
        Report::Glimpsed(Glimpse { planes, .. }) => Some(planes),
        _ => None,
    });
    (planes, image)
}

#[test]
fn a_picture_is_seen_before_it_is_read() {
    let Some((gpu, opened)) = shared() else { return };
    let before = Planes::of(&picture(3, 3), false);
    let Numbers::Host(values) = Planes::of(&picture(7, 5), false).numbers else { return };
    let (planes, image) = seen(&values, opened);
    assert_eq!(image, Some(picture(7, 5)));
    let planes = planes.expect("a glimpse");
    assert!(matches!(planes.numbers, Numbers::Engine(_)) && planes.size == SIDES, "{planes:?}");
    let painted = |numbers| pixels(gpu, FORMATS[0], &split(numbers, &before));
    let expected = painted(planes.numbers);
    // Of a failed picture there is a glimpse, and then the sentence.
    let (planes, image) = seen(&[f32::NAN; 105], opened);
    assert!(planes.is_some() && image.is_none());
    // The processor's pictures are seen when they are there.
    let cpu = device::open(device::Choice::Cpu).unwrap();
    let (planes, _) = seen(&values, &cpu);
    assert_eq!(painted(planes.expect("a picture").numbers), expected);
    assert!(seen(&[f32::NAN; 105], &cpu).0.is_none());
}
