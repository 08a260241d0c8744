//! Where the world is at fault rather than a model or adapter (`bad_input.rs` has those): texts edited by hand, pictures
//! from anywhere, names that lead elsewhere, disks that are full, devices that go. Each is a sentence, never a panic, and
//! whatever was there before is there unchanged.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and says what it skips")]

#[path = "../command/mod.rs"]
mod command;
mod device;
#[cfg(unix)]
mod disk;
#[path = "../gpu_device/mod.rs"]
mod gpu_device;
mod names;
mod pictures;
mod texts;
