use std::path::{Path, PathBuf};
use burn::tensor::Tensor;
use triptych::engine::adapter::{self, mount::Strength};
use triptych::engine::concept::{self, Fit, Picture, latents};
use triptych::engine::device::Choice;
use triptych::engine::event::Event;
use triptych::engine::preview::{Mounted, Request};
use triptych::engine::session::*;
use triptych::engine::similarity::Judge;
use triptych::engine::train::config::plain_caption;
// args: outdir concept1 class1 concept2 class2 methods k=v...
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let out = PathBuf::from(&a[0]);
    std::fs::create_dir_all(&out).unwrap();
    let s = Session::open(Choice::Cpu, &mut |_| Ok(())).unwrap();
    let model = s.model("starter").unwrap();
    let judge = Judge::new(&model.device).unwrap();
    let tpl = template(&model);
    let changes: Vec<(String, String)> = a[6..].iter().map(|c| { let (k, v) = c.split_once('=').unwrap(); (k.into(), v.into()) }).collect();
    let cs: Vec<(String, String)> = vec![(a[1].clone(), a[2].clone()), (a[3].clone(), a[4].clone())];
    let mut train = vec![]; let mut held = vec![];
    for (dir, _) in &cs {
        let mut c = concept::open(Path::new(dir)).unwrap();
        if std::env::var_os("NOCAP").is_some() { for p in &mut c.images { p.caption = None; } }
        let h: Vec<usize> = (1..c.images.len()).step_by(5).take(3).collect();
        let hp: Vec<Picture> = h.iter().map(|&i| c.images[i].clone()).collect();
        let px: Vec<Tensor<4>> = hp.iter().map(|p| latents::pixels(&concept::load(&p.path, [64, 64], [255; 3], Fit::Pad).unwrap(), &model)).collect();
        held.push(Tensor::cat(px, 0));
        c.images = c.images.iter().enumerate().filter(|(i, _)| !h.contains(i)).map(|(_, p)| p.clone()).collect();
        train.push(c);
    }
    let toks = ["<one>", "<two>"];
    let n = 6;
    let req = |p: String| Request { prompt: p, count: n, seed: 3, ..Request::default() };
    let mut sheet: Vec<image::RgbImage> = vec![];
    let go = |m: &Mounted, p: String| s.sample(&model, m, &req(p), &mut |_| Ok(())).unwrap();
    let mut base = vec![];
    for i in 0..2 {
        let b = go(&Mounted::default(), plain_caption(&tpl, &cs[i].1));
        base.push(judge.similarity(b.pixels.clone() * 2.0 - 1.0, held[i].clone()).unwrap());
        sheet.extend(b.rgb().unwrap());
    }
    for method in a[5].split(',') {
        let mut used = vec![];
        for i in 0..2 {
            let t = std::time::Instant::now();
            let m = adapter::method(method).unwrap();
            let tr = Training { token: toks[i].into(), class_word: Some(cs[i].1.clone()), method: m, changes: changes.clone(), slot: None, project: None, seed: 1, out: out.join(format!("{method}{i}.safetensors")), resume: false, stamp: false };
            let r = s.train(&model, &train[i], &tr, &mut |e| { if let Event::Step { step, loss, prior, .. } = e { if step % 50 == 0 { eprintln!("{step} {loss} {prior:?}"); } } Ok(()) }).unwrap();
            let l = &r.losses; let k = 20.min(l.len());
            println!("{method}{i} loss {:.4} -> {:.4} {:.3}s/step", l[..k].iter().sum::<f32>() / k as f32, l[l.len() - k..].iter().sum::<f32>() / k as f32, t.elapsed().as_secs_f32() / l.len() as f32);
            used.push(Used { file: r.file, strength: Strength::default() });
        }
        let both = s.mount(&model, &used).unwrap();
        for i in 0..2 {
            let solo = s.mount(&model, &used[i..=i]).unwrap();
            let p = tpl.replace("{token}", toks[i]).replace("{class}", &cs[i].1);
            let (a, b) = (go(&solo, p.clone()), go(&both, p));
            let sim = |x: &triptych::engine::preview::Pictures| judge.similarity(x.pixels.clone() * 2.0 - 1.0, held[i].clone()).unwrap();
            let (sa, sb) = (sim(&a), sim(&b));
            println!("{method}{i}: base {:.3} solo {:.3} merged {:.3} kept {:.2}", base[i], sa, sb, (sb - base[i]) / (sa - base[i]));
            sheet.extend(a.rgb().unwrap()); sheet.extend(b.rgb().unwrap());
        }
    }
    let rows = sheet.len() / n;
    let mut img = image::RgbImage::new((n * 100) as u32, (rows * 100) as u32);
    for (k, p) in sheet.iter().enumerate() {
        let p = image::imageops::resize(p, 96, 96, image::imageops::FilterType::Nearest);
        image::imageops::replace(&mut img, &p, ((k % n) * 100) as i64, ((k / n) * 100) as i64);
    }
    img.save(out.join("sheet.png")).unwrap();
}
