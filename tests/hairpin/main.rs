//! Edges that send on to gateways on other nodes: agents on the edges, and on
//! the workers either `vpn-edge standalone` or kube-proxy's rules.

mod counts;
mod daemons;
mod kube_proxy;
mod loops;
mod moves;
mod paths;
mod pings;
mod recoveries;
mod revocation;
mod roaming;
mod running;
mod scene;
