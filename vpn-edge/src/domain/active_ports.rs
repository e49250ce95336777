//! The ports that the edge steers, as whoever waits for it is told.

use std::collections::BTreeMap;

use uuid::Uuid;

/// What the edge steers by now: tenant and generation by port. Nothing before
/// the agent has looked.
pub type Steered = Option<BTreeMap<u16, (Uuid, u64)>>;
