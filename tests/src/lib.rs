//! What the suites and the demo share: a sandbox for programs, and the lab.

pub mod sandbox;
