//! What the binary runs: options read, and parts put together.

pub mod agent;
pub mod controller;
pub mod key;
pub mod standalone;
pub mod teardown;
