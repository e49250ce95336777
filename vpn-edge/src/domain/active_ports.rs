//! The ports that the edge steers, for those who wait for it.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Tenant and generation by port, as steered by the edge. None until the agent has
/// read its maps.
pub type ActivePorts = Option<BTreeMap<u16, (Uuid, u64)>>;
