use burn::tensor::{Tensor, TensorData};
use std::time::Instant;
use triptych::engine::adapter::{self, Context};
use triptych::engine::device;
use triptych::engine::diffusion::Schedule;
use triptych::engine::field::Settings;
use triptych::engine::model::*;
use triptych::engine::random::Philox;
use triptych::engine::train::step::*;
fn main() {
    let dev = device::cpu();
    let t = Instant::now();
    let model = StableDiffusion::open(&StableDiffusion::folder("starter"), &dev).unwrap();
    println!("load {:?}", t.elapsed());
    let schedule = Schedule::new(&model.schedule).unwrap();
    let b: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let p: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let ph = Philox::new(1);
    let z = Tensor::<4>::from_data(TensorData::new(ph.normal(0, b * 4 * 256), [b, 4, 16, 16]), &dev);
    let prompts = vec![model.tokenizer.encode("a 3d emoji of <x> robot", &[tokenizer::Word { text: "<x>".into(), vectors: 1 }]).unwrap()];
    let ctx = model.condition(&[model.tokenizer.encode("a 3d emoji of robot", &[]).unwrap()], &[], &Mounts::none());
    let m = adapter::method("orthogonal").unwrap();
    let ad = (m.build)(&Settings::new(m.fields, []).unwrap(), &Context { seed: 0, slot: 0, block: 8 }).unwrap();
    let mut tr = Trainee { parameters: vec![], layers: vec![], token: None };
    for id in adapter::target::select(adapter::target::DEFAULT, &model.layers).unwrap() {
        let f = ad.init(model.layer(id), &ph).unwrap();
        tr.add_layer(id, &model.layer(id).module(), f, &model);
    }
    tr.token = Some(tr.add("tok".into(), model.text.embed(&[vec![5]]).reshape([1, 128]), Group::Token));
    for i in 0..4 {
        let t = Instant::now();
        let o = model.unet.forward(z.clone(), &vec![500.0; b], &ctx.clone().expand([b, 77, 128]), &Mounts::none());
        let _ = read(o).unwrap();
        println!("forward b{b} {:?}", t.elapsed());
        let t = Instant::now();
        let batch = Batch { latents: z.clone(), noise: z.clone(), timesteps: vec![500; b], text: Text::Prompts(prompts.clone(), vec![0; b]), weights: vec![1.0; b], prior: (p > 0).then(|| Prior { context: ctx.clone().expand([p, 77, 128]), weight: 0.5 }) };
        let out = tr.gradients(&model, &schedule, &batch);
        let t1 = t.elapsed();
        tr.update(out.gradients, i + 1, Rates { adapter: 5e-3, token: 2e-2, decay: 1e-2, clip: 1.0 });
        println!("step b{b} p{p}: {t1:?} + {:?} loss {:?}", t.elapsed() - t1, read(out.loss).unwrap());
    }
}
