//! What the suites and the demo share: a sandbox for programs, and the lab.

pub mod client;
pub mod edge;
pub mod laptop;
pub mod names;
pub mod node;
pub mod postgres;
pub mod sandbox;
pub mod topology;
