//! What the preview shows of a picture before it has come to the host: where the engine computes on the window's own GPU,
//! the picture is painted from the engine's memory, and read back afterwards for the history, the clipboard and files.

use image::RgbImage;

use super::painter::Tag;
use super::{Post, Report};
use crate::engine::device::Opened;
use crate::engine::preview::Pictures;
use crate::engine::{Error, Result};
use crate::ui::gpu_paint::{self, Numbers, Planes};

/// Wider pictures are smoothed where they are shown enlarged.
const SMALL: u32 = 128;

pub struct Glimpse {
    /// The preview's picture, or what that is held against.
    pub tag: Tag,
    pub planes: Planes,
}

pub fn is_soft(width: u32) -> bool {
    width > SMALL
}

/// The first of the pictures on the host, shown as soon as it can be. They were made on `device`.
pub fn image(tag: Tag, device: &Opened, pictures: &Pictures, post: &Post) -> Result<RgbImage> {
    let is_shown = matches!(tag, Tag::Mixed | Tag::Other) && gpu_paint::can_paint(post.ctx());
    let show = |planes| post.send(Report::Glimpsed(Glimpse { tag, planes }));
    let buffer = is_shown.then(|| device.buffer(pictures.pixels.clone())).flatten();
    let is_early = buffer.is_some();
    if let Some(buffer) = buffer {
        let size = pictures.size();
        show(Planes { numbers: Numbers::Engine(buffer.into()), size, soft: is_soft(size[0]) });
    }
    let image = pictures.rgb()?.pop().ok_or_else(|| Error::new("No picture was made", "Try again"))?;
    if is_shown && !is_early {
        show(Planes::of(&image, is_soft(image.width())));
    }
    Ok(image)
}
