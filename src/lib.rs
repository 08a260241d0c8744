//! Triptych teaches an image model new concepts and combines them without the concepts spoiling each other.
pub mod engine;
