//! Networks as they are: IPv6, several uplinks, links of all sizes, and changes
//! while the edge runs.

mod changes;
mod hooks;
mod jumbo;
mod outer_ipv6;
mod path_mtu;
mod raw6;
mod scene;
mod takeover;
mod uplinks;
