//! What the binary runs: options read, and parts put together.

pub mod agent;
mod args;
pub mod controller;
mod edge;
pub mod key;
pub mod standalone;
pub mod teardown;
