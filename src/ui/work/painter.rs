//! Pictures for the window: the latest request wins, coarse first and then refined.
//!
//! One thread for all pictures. What is asked for now interrupts what may come later, and a newer request the one
//! before: at the next step of the sampler, so that no request waits for a picture nobody wants any more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use egui::{ColorImage, TextureHandle, TextureOptions};
use image::RgbImage;

use crate::engine::adapter::mount::Strength;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::preview::Request;
use crate::engine::session::Used;
use crate::engine::{Error, Result};
use crate::ui::work::{Opened, Post, Report, guarded};

/// Steps of a coarse picture.
const COARSE: usize = 6;

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
}

#[derive(Default)]
struct Inbox {
    /// Done in order; a newer request replaces them all.
    now: VecDeque<(Order, Instant)>,
    later: VecDeque<(Order, Instant)>,
    /// Goes up with every request that is to be done now.
    number: u64,
    closed: bool,
}

pub struct Painter {
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
}

impl Painter {
    pub fn start(post: &Post) -> Self {
        let inbox = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let theirs = Arc::clone(&inbox);
        let work = move |post: &Post| {
            paint(&theirs, post);
            Ok("The painter has stopped".into())
        };
        post.spawn("preview", work, Report::Done);
        Self { inbox }
    }

    /// These instead of whatever is being made now.
    pub fn now(&self, orders: Vec<Order>) {
        let mut inbox = lock(&self.inbox.0);
        inbox.number += 1;
        let at = Instant::now();
        inbox.now = orders.into_iter().map(|order| (order, at)).collect();
        self.inbox.1.notify_one();
    }

    /// When nothing else is to be made.
    pub fn later(&self, orders: Vec<Order>) {
        let at = Instant::now();
        lock(&self.inbox.0).later.extend(orders.into_iter().map(|order| (order, at)));
        self.inbox.1.notify_one();
    }

    /// Forgets what may come later and is not `kept`.
    pub fn drop_later(&self, kept: impl Fn(Tag) -> bool) {
        lock(&self.inbox.0).later.retain(|(order, _)| kept(order.tag));
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        let mut inbox = lock(&self.inbox.0);
        inbox.closed = true;
        inbox.number += 1;
        self.inbox.1.notify_one();
    }
}

fn lock(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

fn paint(inbox: &(Mutex<Inbox>, Condvar), post: &Post) {
    while let Some((order, at, number, urgent)) = next(inbox) {
        let stale = || lock(&inbox.0).number != number;
        let steps = order.request.steps;
        let stages = if order.tag == Tag::Mixed && steps > COARSE { vec![COARSE, steps] } else { vec![steps] };
        for steps in stages {
            let coarse = steps < order.request.steps;
            let picture = guarded(|| {
                let image = one(&order, steps, &stale, post)?;
                let color = ColorImage::from_rgb([image.width() as usize, image.height() as usize], &image);
                let texture = post.ctx().load_texture("preview", color, TextureOptions::NEAREST);
                Ok(Picture { image: Arc::new(image), texture, coarse, seconds: at.elapsed().as_secs_f32() })
            });
            match picture {
                Err(error) if error.kind == crate::engine::error::Kind::Cancelled => {
                    if !urgent {
                        lock(&inbox.0).later.push_front((order.clone(), at));
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

/// Waits for work; `None` when the window is gone.
fn next(inbox: &(Mutex<Inbox>, Condvar)) -> Option<(Order, Instant, u64, bool)> {
    let mut waiting = lock(&inbox.0);
    loop {
        if waiting.closed {
            return None;
        }
        let number = waiting.number;
        if let Some((order, at)) = waiting.now.pop_front() {
            return Some((order, at, number, true));
        }
        if let Some((order, at)) = waiting.later.pop_front() {
            return Some((order, at, number, false));
        }
        waiting = inbox.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
    }
}

fn one(order: &Order, steps: usize, stale: &dyn Fn() -> bool, post: &Post) -> Result<RgbImage> {
    let Order { with: Opened { session, model }, mix, request, .. } = order;
    let heard = mix.iter().filter(|(_, strength)| strength.unet != 0.0 || strength.text != 0.0);
    let used: Vec<Used> =
        heard.map(|(file, strength)| Used { file: LoraFile::clone(file), strength: strength.clone() }).collect();
    let mut mounted = session.mount(model, &used)?;
    // A silent adapter keeps its word: at strength 0 the prompt still reads.
    for (file, _) in mix.iter().filter(|(_, strength)| strength.unet == 0.0 && strength.text == 0.0) {
        let word = LoraFile { tokens: file.tokens.clone(), path: file.path.clone(), ..LoraFile::default() };
        mounted.tokens.extend(session.mount(model, &[Used { file: word, strength: Strength::default() }])?.tokens);
    }
    let request = Request { steps, count: 1, ..request.clone() };
    let mut watch = |event: Event| {
        if stale() {
            return Err(Error::cancelled());
        }
        if let Event::Warning { .. } = event {
            post.send(Report::Said(event));
        }
        Ok(())
    };
    let pictures = session.sample(model, &mounted, &request, &mut watch)?;
    pictures.rgb()?.pop().ok_or_else(|| Error::new("No picture was made", "Try again"))
}
