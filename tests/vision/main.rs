//! Image classifiers from outside: what they see, what they learn, and that their files load in other tools and back.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]

#[path = "../command/mod.rs"]
mod command;
#[path = "../reference/mod.rs"]
mod reference;
mod seeing;
mod teaching;
