//! The cluster as store and as runtime: its resources, and what they are called.

pub mod audit;
pub mod catalog;
mod client;
pub mod crd;
pub mod edge_source;
pub mod gateways;
pub mod lease;
mod names;
mod port_service;
pub mod sessions;
pub mod tenants;

pub use client::{WATCH, client, own_image};
pub use crd::{VpnTenant, VpnTenantSpec, VpnTenantStatus};
pub use names::{
    AGENT, CONTROLLER, FINALIZER, GATEWAY, GATEWAY_PORT, KEYS, MANAGER, TENANT, label,
};
