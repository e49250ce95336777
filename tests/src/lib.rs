//! What the suites and the demo share: a sandbox for programs, and the lab.

pub mod agent;
pub mod client;
pub mod client_netns;
pub mod cluster;
pub mod costs;
pub mod edge;
pub mod icmp;
pub mod interpreter;
pub mod kube_proxy;
pub mod manual_setup;
pub mod message;
pub mod names;
pub mod node;
pub mod packet;
pub mod pod;
pub mod postgres;
pub mod programs;
pub mod raw;
pub mod region;
pub mod sandbox;
pub mod topology;
pub mod transfer;
#[cfg(test)]
mod violations;
pub mod web;
