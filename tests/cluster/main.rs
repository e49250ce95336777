//! A real control plane in the lab, and what the tests of the cluster rest on.

mod access;
mod agent;
mod deployment;
mod namespaces;
mod nodes;
mod outage;
mod start;
