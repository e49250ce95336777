//! Gateways are kept as they are to be.

mod drift;
mod rollout;
mod scene;
