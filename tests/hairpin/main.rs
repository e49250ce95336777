//! Edges that send on to gateways on other nodes: agents on the edges, and on
//! the workers either `vpn-edge standalone` or kube-proxy's rules.

mod paths;
mod scene;
