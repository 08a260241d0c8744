//! Image classifiers: what they see in a picture, and how they learn an artist's own classes.
//!
//! `classifier` opens a network with its head and the names of its classes, `prepare` makes a picture what it was trained
//! on, `classify` tells what it sees. `dataset` is a folder of pictures for each class; a [`job::Job`] teaches the head
//! alone (a linear probe) or the network too, by any adapter method, and leaves what `learnt` reads and writes, measured on
//! pictures kept out by `confusion`.

mod adapted;
mod begin;
pub mod classifier;
pub mod classify;
pub mod confusion;
pub mod dataset;
pub mod fields;
pub mod job;
pub mod learnt;
mod lesson;
pub mod prepare;
pub mod probe;
pub mod resample;
mod run;

pub use adapted::Adapted;
pub use classifier::{Classifier, Head};
pub use learnt::Learnt;
