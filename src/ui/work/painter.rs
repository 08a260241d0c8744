//! Pictures for the window: the latest request wins, coarse first and then refined.
//!
//! One thread for all pictures. What is asked for now interrupts what may come later, and a newer request the one
//! before: at the next step of the sampler, so that no request waits for a picture nobody wants any more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use egui::{ColorImage, Context, TextureHandle, TextureOptions};
use image::RgbImage;

use crate::engine::adapter::mount::Strength;
use crate::engine::event::Event;
use crate::engine::io::lora_file::LoraFile;
use crate::engine::preview::Request;
use crate::engine::project::stem;
use crate::engine::session::Used;
use crate::engine::{Error, Result};
use crate::ui::work::{Opened, Post, Report, guarded};

/// Steps of a coarse picture.
const COARSE: usize = 6;
/// Coarse pictures that take no longer are finished even when a newer request waits: interrupted each time, none would
/// ever be seen while a fader is drawn.
const QUICK: Duration = Duration::from_millis(400);
/// Wider pictures are smoothed where they are shown enlarged.
const SMALL: u32 = 128;

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
    let look = if image.width() <= SMALL { TextureOptions::NEAREST } else { TextureOptions::LINEAR };
    ctx.load_texture("picture", color, look)
}

struct Inbox<T = Order> {
    /// Done in order; a newer request replaces them all.
    now: VecDeque<(T, Instant)>,
    later: VecDeque<(T, Instant)>,
    /// Goes up with every request that is to be done now.
    number: u64,
    /// Goes up when what may come later is forgotten: work on its way then does not come back.
    drops: u64,
    closed: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { now: VecDeque::new(), later: VecDeque::new(), number: 0, drops: 0, closed: false }
    }
}

impl<T> Inbox<T> {
    fn replace(&mut self, orders: impl IntoIterator<Item = T>, at: Instant) {
        self.number += 1;
        self.now = orders.into_iter().map(|order| (order, at)).collect();
    }

    /// The next order, and whether it is one of now.
    fn take(&mut self) -> Option<(T, Instant, bool)> {
        if let Some((order, at)) = self.now.pop_front() {
            return Some((order, at, true));
        }
        self.later.pop_front().map(|(order, at)| (order, at, false))
    }

    /// Interrupted work comes first again.
    fn put_back(&mut self, order: T, at: Instant) {
        self.later.push_front((order, at));
    }
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
        lock(&self.inbox.0).replace(orders, Instant::now());
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
        let mut inbox = lock(&self.inbox.0);
        inbox.drops += 1;
        inbox.later.retain(|(order, _)| kept(order.tag));
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
    let mut quick = false;
    while let Some((order, at, number, urgent)) = next(inbox) {
        let drops = lock(&inbox.0).drops;
        let steps = order.request.steps;
        let stages = if order.tag == Tag::Mixed && steps > COARSE { vec![COARSE, steps] } else { vec![steps] };
        for steps in stages {
            let coarse = steps < order.request.steps;
            let stale = || {
                let inbox = lock(&inbox.0);
                inbox.closed || (inbox.number != number && !(coarse && quick))
            };
            let begun = Instant::now();
            let picture = guarded(|| {
                let image = one(&order, steps, &stale, post)?;
                let texture = texture(&image, post.ctx());
                let seconds = at.elapsed().as_secs_f32();
                Ok(Picture { image: Arc::new(image), texture, coarse, seconds, heard: heard(&order.mix) })
            });
            if coarse && picture.is_ok() {
                quick = begun.elapsed() <= QUICK;
            }
            match picture {
                Err(error) if error.kind == crate::engine::error::Kind::Cancelled => {
                    let mut inbox = lock(&inbox.0);
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

/// Waits for work; `None` when the window is gone.
fn next(inbox: &(Mutex<Inbox>, Condvar)) -> Option<(Order, Instant, u64, bool)> {
    let mut waiting = lock(&inbox.0);
    loop {
        if waiting.closed {
            return None;
        }
        let number = waiting.number;
        if let Some((order, at, urgent)) = waiting.take() {
            return Some((order, at, number, urgent));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn take(inbox: &mut Inbox<u8>) -> Option<(u8, bool)> {
        inbox.take().map(|(order, _, urgent)| (order, urgent))
    }

    #[test]
    fn the_latest_request_replaces_the_ones_before() {
        let (mut inbox, at) = (Inbox::default(), Instant::now());
        inbox.replace([1, 2], at);
        let number = inbox.number;
        inbox.replace([3, 4], at);
        assert_ne!(inbox.number, number, "what is made now must notice");
        assert_eq!([(); 3].map(|()| take(&mut inbox)), [Some((3, true)), Some((4, true)), None]);
    }

    #[test]
    fn interrupted_work_comes_again_after_what_interrupted_it() {
        let (mut inbox, at) = (Inbox::default(), Instant::now());
        inbox.later.extend([(7, at), (8, at)]);
        assert_eq!(take(&mut inbox), Some((7, false)));
        inbox.replace([1], at);
        inbox.put_back(7, at);
        let order = [(); 4].map(|()| take(&mut inbox));
        assert_eq!(order, [Some((1, true)), Some((7, false)), Some((8, false)), None]);
    }
}
