//! Pictures for the window: the latest request wins, coarse first and then refined.
//!
//! One thread for all pictures. What is asked for now interrupts what may come later, and a newer request the one
//! before: at the next step of the sampler, so that no request waits for a picture nobody wants any more.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbImage;

use crate::engine::adapter::mount::Strength;
use crate::engine::device;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::model::StableDiffusion;
use crate::engine::preview::{Mounted, Request};
use crate::engine::session::{Session, Used};
use crate::engine::words::stem;
use crate::engine::{Error, Result};
use crate::ui::preparing::Preparing;
use crate::ui::work::inbox::Shared;
use crate::ui::work::{Opened, Post, Report, glimpse, guarded};

/// Steps of a coarse picture.
const COARSE: usize = 6;
/// Coarse pictures that take no longer are finished even when a newer request waits: interrupted each time, none would
/// ever be seen while a fader is drawn.
const QUICK: Duration = Duration::from_millis(400);

/// An adapter, and how strongly it is heard.
pub type Mix = Vec<(Arc<LoraFile>, Strength)>;

#[derive(Clone)]
pub struct Order {
    pub tag: Tag,
    pub with: Opened,
    pub mix: Mix,
    pub request: Request,
}

/// What a picture is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The preview, made coarse and then refined.
    Mixed,
    /// What the preview is held against.
    Other,
    /// A sample of a training step.
    Strip { step: usize },
    /// A cell of the grid with this number.
    Grid { run: u64, cell: usize },
}

/// A picture, or why there is none.
pub struct Painted {
    pub tag: Tag,
    pub request: Request,
    pub picture: Result<Picture>,
}

#[derive(Clone)]
pub struct Picture {
    pub image: Arc<RgbImage>,
    pub texture: TextureHandle,
    /// Whether a finer one follows.
    pub coarse: bool,
    /// From the moment it was asked for.
    pub seconds: f32,
    /// The adapters in it by the names of their files, with their strengths.
    pub heard: Arc<[(String, f32)]>,
}

/// A picture for the screen; the pixels of a small one stay square.
pub fn texture(image: &RgbImage, ctx: &Context) -> TextureHandle {
    let color = ColorImage::from_rgb([image.width() as usize, image.height() as usize], image);
    let look = if glimpse::is_soft(image.width()) { TextureOptions::LINEAR } else { TextureOptions::NEAREST };
    ctx.load_texture("picture", color, look)
}

pub struct Painter {
    inbox: Arc<Shared<Order>>,
}

impl Painter {
    pub fn start(post: &Post) -> Self {
        let inbox = Arc::<Shared<Order>>::default();
        let theirs = Arc::clone(&inbox);
        let work = move |post: &Post| {
            device::on_workers("painting", device::cores(), || paint(&theirs, post))?;
            Ok("The painter has stopped".into())
        };
        post.spawn("preview", work, Report::Done);
        Self { inbox }
    }

    /// These instead of whatever is being made now.
    pub fn now(&self, orders: Vec<Order>) {
        self.inbox.change(|inbox| inbox.replace(orders, Instant::now()));
    }

    /// When nothing else is to be made.
    pub fn later(&self, orders: Vec<Order>) {
        let at = Instant::now();
        self.inbox.change(|inbox| inbox.later.extend(orders.into_iter().map(|order| (order, at))));
    }

    /// Forgets what may come later and is not `kept`.
    pub fn drop_later(&self, kept: impl Fn(Tag) -> bool) {
        self.inbox.change(|inbox| {
            inbox.drops += 1;
            inbox.later.retain(|(order, _)| kept(order.tag));
        });
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        self.inbox.change(|inbox| {
            inbox.closed = true;
            inbox.number += 1;
        });
    }
}

/// The adapters that the last picture was made with, still in place: a fader that moves turns them.
#[derive(Default)]
struct Desk {
    files: Vec<Arc<LoraFile>>,
    /// Which opening of the model they sit on.
    model: Weak<StableDiffusion>,
    mounted: Mounted,
}

impl Desk {
    /// The adapters at these strengths.
    fn set(&mut self, session: &Session, model: &Arc<StableDiffusion>, used: &[Used]) -> Result<Mounted> {
        let same = self.files.len() == used.len()
            && self.files.iter().zip(used).all(|(file, used)| Arc::ptr_eq(file, &used.file))
            && self.model.upgrade().is_some_and(|of| Arc::ptr_eq(&of, model));
        if same {
            session.turn(model, &mut self.mounted, used);
        } else {
            let files = used.iter().map(|used| Arc::clone(&used.file)).collect();
            *self = Self { mounted: session.mount(model, used)?, files, model: Arc::downgrade(model) };
        }
        Ok(self.mounted.clone())
    }
}

fn paint(inbox: &Shared<Order>, post: &Post) {
    let mut quick = false;
    // What the preview is held against has other adapters in place, and is made in turn with it.
    let (mut desk, mut other) = (Desk::default(), Desk::default());
    while let Some((order, at, number, urgent)) = inbox.next() {
        let drops = inbox.lock().drops;
        let steps = order.request.steps;
        let stages = if order.tag == Tag::Mixed && steps > COARSE { vec![COARSE, steps] } else { vec![steps] };
        for steps in stages {
            let coarse = steps < order.request.steps;
            let stale = || {
                let inbox = inbox.lock();
                inbox.closed || (inbox.number != number && !(coarse && quick))
            };
            let begun = Instant::now();
            let picture = guarded(|| {
                let desk = if order.tag == Tag::Other { &mut other } else { &mut desk };
                let image = one(&order, desk, steps, &stale, post)?;
                let texture = texture(&image, post.ctx());
                let seconds = at.elapsed().as_secs_f32();
                Ok(Picture { image: Arc::new(image), texture, coarse, seconds, heard: heard(&order.mix) })
            });
            if coarse && picture.is_ok() {
                quick = begun.elapsed() <= QUICK;
            }
            match picture {
                Err(error) if error.kind == crate::engine::error::Kind::Cancelled => {
                    let mut inbox = inbox.lock();
                    if !urgent && (inbox.drops == drops || matches!(order.tag, Tag::Strip { .. })) {
                        inbox.put_back(order.clone(), at);
                    }
                    break;
                }
                picture => {
                    let failed = picture.is_err();
                    post.send(Report::Painted(Painted { tag: order.tag, request: order.request.clone(), picture }));
                    if failed {
                        break;
                    }
                }
            }
        }
    }
}

/// Names and strengths of what is heard.
pub fn heard(mix: &Mix) -> Arc<[(String, f32)]> {
    mix.iter().filter(|(_, s)| s.unet != 0.0).map(|(file, s)| (stem(&file.path), s.unet)).collect()
}

fn one(order: &Order, desk: &mut Desk, steps: usize, stale: &dyn Fn() -> bool, post: &Post) -> Result<RgbImage> {
    let Order { with: Opened { session, model }, mix, request, .. } = order;
    let heard = mix.iter().filter(|(_, strength)| strength.unet != 0.0 || strength.text != 0.0);
    let used: Vec<Used> =
        heard.map(|(file, strength)| Used { file: Arc::clone(file), strength: strength.clone() }).collect();
    let mut mounted = desk.set(session, model, &used)?;
    // A silent adapter keeps its word: at strength 0 the prompt still reads.
    for (file, _) in mix.iter().filter(|(_, strength)| strength.unet == 0.0 && strength.text == 0.0) {
        let (tokens, layer_tokens) = (file.tokens.clone(), file.layer_tokens.clone());
        let word = LoraFile { tokens, layer_tokens, path: file.path.clone(), ..LoraFile::default() };
        mounted
            .tokens
            .extend(session.mount(model, &[Used { file: word.into(), strength: Strength::default() }])?.tokens);
    }
    let request = Request { steps, count: 1, ..request.clone() };
    let mut preparing = None;
    let mut watch = |event: Event| {
        preparing = post.prepares(preparing, Preparing::after(preparing, &event));
        if stale() {
            return Err(Error::cancelled());
        }
        if let Event::Warning { .. } = event {
            post.send(Report::Said(event));
        }
        Ok(())
    };
    let pictures = session.draw(model, &mounted, &request, &mut watch);
    post.prepares(preparing, None);
    glimpse::image(order.tag, &session.device, &pictures?, post)
}
