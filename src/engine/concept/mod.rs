//! A concept on disk: a folder of pictures, their captions, and the word that will call it up.
//!
//! `folder` finds the pictures, `beside` their captions, `caption` puts the trigger token into their texts, `picture`
//! turns one file into numbers for the image encoder. `view` says what of a picture training sees: `buckets` choose its
//! frame, `augment` draws its versions, `frame` cuts them out, `mask` says what counts.

pub mod augment;
pub mod beside;
pub mod buckets;
mod caption;
mod folder;
mod frame;
pub mod latents;
pub mod mask;
pub mod picture;
pub mod shipped;
mod view;

pub use caption::{Trigger, caption, template_from_readme};
pub use folder::{Picture, Skipped, open};
pub use picture::{Fit, Image, content_hash, load};
pub use view::{Shape, View, Views};

/// What an artist's folder holds. [`open`] returns it with at least one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concept {
    /// The folder's name, without a repeat count in front.
    pub name: String,
    /// Sorted by path.
    pub images: Vec<Picture>,
    /// Files that could not be used, each with the reason.
    pub skipped: Vec<Skipped>,
    /// From a folder named `N_class word`; none when there is no such name or several disagree.
    pub class_word: Option<String>,
}
