//! vpn-edge: a WireGuard edge for the tenants of a Kubernetes cluster, or of one
//! machine. See ARCHITECTURE.md for how its parts fit together.

pub mod agent;
pub mod api;
pub mod app;
pub mod args;
pub mod audit;
pub mod auth;
pub mod backoff;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod conntrack;
pub mod controller;
pub mod datapath;
pub mod domain;
pub mod ethtool;
pub mod gateway;
pub mod gateways;
pub mod http;
pub mod inspect;
pub mod local;
pub mod metrics;
pub mod netlink;
pub mod network;
pub mod preflight;
pub mod registry;
pub mod sessions;
pub mod telemetry;
mod web;
pub mod wireguard;
