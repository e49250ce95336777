//! Tenants and the rules for them: plans, the VPN's lifecycle, the port pool and the
//! tunnel.
//!
//! Pure code: no I/O, no runtime, no Kubernetes, no eBPF. Time and keys are
//! arguments.

mod active_ports;
pub mod error;
pub mod lifecycle;
pub mod plan;
pub mod pools;
pub mod port_pool;
pub mod subnet;
pub mod tenant;
pub mod tunnel;
pub mod vpn;

pub use active_ports::ActivePorts;
pub use error::VpnError;
pub use lifecycle::{GatewayState, Observed};
pub use plan::{Limits, Plan, PlanLimit, PlanLimits};
pub use pools::{Pool, Pools};
pub use port_pool::{PortPool, PortRange, PortRangeError, Ports};
pub use tenant::Tenant;
pub use tunnel::{TunnelDigest, TunnelSettings, TunnelSpec};
pub use vpn::{Allocation, State, Vpn};

pub use crate::wireguard::Keys;
