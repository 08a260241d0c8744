//! What the library shows of a concept or an adapter: opened once, on a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use egui::{ColorImage, Context, TextureHandle, TextureOptions};

use crate::engine::concept::{self, Concept};
use crate::engine::io::lora_file::LoraFile;
use crate::engine::io::{metadata as keys, peft};
use crate::engine::project::{AdapterEntry, ConceptEntry};
use crate::engine::spectrum::adapter::{LayerSpectrum, spectra};
use crate::engine::{Error, Result};

/// Side of a thumbnail in pixels.
pub const THUMBNAIL: u32 = 96;

#[derive(Clone, Debug)]
pub enum Loading<T> {
    Waiting,
    Ready(T),
    Failed(Error),
}

impl<T> Loading<T> {
    pub fn ready(&self) -> Option<&T> {
        match self {
            Self::Ready(value) => Some(value),
            Self::Waiting | Self::Failed(_) => None,
        }
    }

    pub fn failed(&self) -> Option<&Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Waiting | Self::Ready(_) => None,
        }
    }
}

impl<T> From<Result<T>> for Loading<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(value) => Self::Ready(value),
            Err(error) => Self::Failed(error),
        }
    }
}

#[derive(Clone)]
pub struct ConceptCard {
    pub entry: ConceptEntry,
    /// Where the folder lies.
    pub folder: PathBuf,
    pub content: Loading<ConceptContent>,
}

#[derive(Clone)]
pub struct ConceptContent {
    pub concept: Arc<Concept>,
    /// As the concept's images are ordered.
    pub thumbnails: Vec<TextureHandle>,
    /// Of the same pictures; none where there is no mask beside it.
    pub masks: Vec<Option<TextureHandle>>,
}

#[derive(Clone, Debug)]
pub struct AdapterCard {
    pub entry: AdapterEntry,
    /// Where the file lies.
    pub path: PathBuf,
    pub content: Loading<Arc<AdapterContent>>,
    /// Whether there is no such file.
    pub gone: bool,
}

#[derive(Debug)]
pub struct AdapterContent {
    pub file: Arc<LoraFile>,
    pub bytes: u64,
    /// An error where the adapter has no fixed weights to measure.
    pub spectra: Result<Vec<LayerSpectrum>>,
}

impl AdapterContent {
    /// A value of the file's metadata.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.file.metadata.get(key).map(String::as_str).filter(|text| !text.is_empty())
    }

    pub fn slot(&self) -> Option<&str> {
        self.value(keys::SLOT)
    }
}

/// Opens a concept's folder and makes its thumbnails.
pub fn concept(folder: &Path, ctx: &Context) -> Result<ConceptContent> {
    let concept = concept::open(folder)?;
    let thumbnails = concept.images.iter().map(|picture| thumbnail(&picture.path, ctx)).collect();
    let masks = concept.images.iter().map(|picture| Some(thumbnail(picture.mask.as_deref()?, ctx))).collect();
    Ok(ConceptContent { concept: Arc::new(concept), thumbnails, masks })
}

fn thumbnail(path: &Path, ctx: &Context) -> TextureHandle {
    let image = image::ImageReader::open(path)
        .ok()
        .and_then(|reader| reader.with_guessed_format().ok()?.decode().ok())
        .map(|image| image.thumbnail(THUMBNAIL, THUMBNAIL).to_rgba8());
    let image = match &image {
        Some(image) => ColorImage::from_rgba_unmultiplied([image.width() as usize, image.height() as usize], image),
        None => ColorImage::example(),
    };
    ctx.load_texture(path.to_string_lossy(), image, TextureOptions::LINEAR)
}

/// Opens an adapter file and measures it.
pub fn adapter(path: &Path) -> Result<Arc<AdapterContent>> {
    let file = LoraFile::open(path)?;
    let bytes = peft::files(path).iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum();
    Ok(Arc::new(AdapterContent { spectra: spectra(&file), bytes, file: Arc::new(file) }))
}
