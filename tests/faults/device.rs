//! A device that goes while it is at work, as when its cable is pulled or its driver starts anew.

use burn::tensor::Tensor;
use triptych::engine::adapter;
use triptych::engine::device::{self, Choice, Opened, WgpuSetup};
use triptych::engine::event::Event;
use triptych::engine::io::safetensors::Checkpoint;
use triptych::engine::model::StableDiffusion;
use triptych::engine::session::{Lesson, Session, Training};

use crate::command::{Desk, tree};
use crate::gpu_device;

/// A device of its own, with what lets it be lost.
fn open() -> Option<(Opened, wgpu::Device)> {
    let _guard = gpu_device::gpu()?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter
            .features()
            .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
            .difference(wgpu::Features::all_experimental_mask()),
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device: device.clone(), queue, backend };
    Some((device::share(setup).unwrap(), device))
}

/// A driver tells of a lost device when it is next asked.
fn unplug(device: &wgpu::Device) {
    device.destroy();
    device.poll(wgpu::PollType::wait_indefinitely()).ok();
}

#[test]
fn a_lost_device_is_a_sentence() {
    let Some((opened, handle)) = open() else { return };
    let numbers = || Tensor::<1>::from_floats([1.0, 2.0], &opened.device) * 3.0;
    assert_eq!(device::read(numbers()).unwrap(), [3.0, 6.0]);
    let begun = numbers();
    unplug(&handle);
    for tensor in [begun, numbers()] {
        let error = device::read(tensor).unwrap_err();
        assert!(
            error.what.contains("The device did not return its result") && error.advice.contains("--device cpu"),
            "{error}"
        );
        assert!(!error.what.contains('\n'), "{error}");
    }
}

#[test]
fn a_training_whose_device_goes_keeps_its_last_state_and_the_earlier_file() {
    let Some((opened, handle)) = open() else { return };
    let desk = Desk::new();
    // Training happens where the model is.
    let session = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let folder = StableDiffusion::folder(&tree("tests/reference/sd").to_string_lossy());
    let model = StableDiffusion::open(&folder, &opened.device).unwrap();
    let concept = session.concept(&desk.path("robot")).unwrap();
    let out = desk.path("a.safetensors");
    desk.write("a.safetensors", "an earlier file");
    let set = [
        ("steps", "4"),
        ("batch", "1"),
        ("prior", "0"),
        ("rank", "2"),
        ("targets", "keys_values"),
        ("save_every", "1"),
    ];
    let training = Training {
        lessons: vec![Lesson::new("<a>", Some("robot".into()))],
        method: adapter::method("lora").unwrap(),
        changes: set.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        slot: None,
        project: None,
        seed: 0,
        out: out.clone(),
        resume: false,
        stamp: false,
        wishes: None,
    };
    let mut watch = |event: Event| {
        if let Event::Step { step: 2, .. } = event {
            unplug(&handle);
        }
        Ok(())
    };
    let error = session.train(&model, &[concept], &training, &mut watch).err().expect("nothing computed the rest");
    assert!(error.what.contains("The device did not return its result"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"an earlier file");
    // The state of the step before, whole.
    let state = Checkpoint::open(&desk.path("a.safetensors.state/state.safetensors")).unwrap();
    assert_eq!(state.shape("losses").unwrap(), [1]);
    assert!(desk.half_written().is_empty());
}
