//! What the suites and the demo share: a sandbox for programs, and the lab.

pub mod client;
pub mod edge;
pub mod node;
pub mod sandbox;
pub mod topology;
