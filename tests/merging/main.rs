//! The contract of merging.
//!
//! Tests marked *every method* loop over `METHODS` with each choice of their settings. Expected deltas are computed
//! here, dense and in f64. Each tolerance stands beside what was measured.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly and shows what it measured")]
#![allow(clippy::wildcard_imports, reason = "the builders are the words these tests are written in")]

mod album;
mod builders;
mod certificate;
#[path = "../command/mod.rs"]
mod command;
mod contract;
mod input;
mod live;
mod peft;
mod pictures;
mod promises;
mod recover;
#[path = "../reference/mod.rs"]
mod reference;
mod shrink;
mod sum;
mod tsv;
mod votes;
mod whole;
