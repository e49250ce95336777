//! What the suites and the demo share: a sandbox for programs, and the lab.

pub mod agent;
pub mod byhand;
pub mod client;
pub mod cluster;
pub mod costs;
pub mod edge;
#[cfg(test)]
mod findings;
pub mod icmp;
pub mod interpreter;
pub mod kube_proxy;
pub mod laptop;
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
pub mod web;
