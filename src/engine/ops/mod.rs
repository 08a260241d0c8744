//! What runs on the device below the networks.

pub mod self_test;
