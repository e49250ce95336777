//! What the operator's shell reads off the kernel, with or without a daemon.

pub mod ports;
