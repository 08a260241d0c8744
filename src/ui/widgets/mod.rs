//! Parts that several panels share.

pub mod called;
pub mod draft;
pub mod failure;
pub mod focus;
pub mod form;
