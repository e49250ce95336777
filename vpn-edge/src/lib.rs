//! vpn-edge: a WireGuard edge for the tenants of a Kubernetes cluster, or of
//! one machine. ARCHITECTURE.md tells how the parts fit.

pub mod agent;
pub mod api;
pub mod audit;
mod catalog;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod conntrack;
pub mod controller;
mod dashboard;
pub mod datapath;
pub mod domain;
pub mod ethtool;
pub mod gateway;
pub mod gateways;
pub mod identity;
pub mod inspect;
pub mod key;
pub mod listen;
pub mod local;
pub mod metrics;
pub mod netlink;
pub mod network;
pub mod preflight;
pub mod registry;
pub mod serve;
pub mod sessions;
pub mod standalone;
pub mod teardown;
pub mod telemetry;
pub mod wireguard;
