//! A real control plane in the lab, and what the tests of the cluster rest on.

mod access;
mod agent;
mod audit;
mod deployment;
mod gateway_pod;
mod gateways;
mod manifests;
mod namespaces;
mod nodes;
mod outage;
mod registry;
mod start;
mod sync;
mod tunnel;
mod whole;
