//! What the programs log: what became of a packet where no counter says so.
//!
//! The level lies in read-only data, which the loader sets before the verifier
//! looks at the programs. A check against it is then a constant, and what is
//! below the level is removed as dead code. Each message is written by a
//! function of its own, for its own stack, and because the verifier removes a
//! call and its function together.
//!
//! On the host nothing is logged.

use crate::forwarding::Forwarding;
use vpn_edge_common::{Flow, Words, address};

/// Where user space files the records.
#[cfg(target_arch = "bpf")]
const TARGET: &str = "datapath";

/// A function that logs one message at a level, if that is enabled.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $level:ident $name:ident($($argument:ident: $kind:ty),*) => $text:literal, $($value:expr),* ;
    )*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name($($argument: $kind),*) {
            #[cfg(target_arch = "bpf")]
            {
                use aya_log_ebpf::macro_support::{Level, level_enabled};

                #[inline(never)]
                fn write($($argument: $kind),*) {
                    aya_log_ebpf::log!((), target: TARGET, Level::$level, $text, $($value),*);
                }
                if level_enabled(Level::$level) {
                    write($($argument),*);
                }
            }
            #[cfg(not(target_arch = "bpf"))]
            let _ = ($($value),*);
        }
    )*};
}

messages! {
    /// A client that was answered lately loses its place to another. Logged on
    /// the deepest stack of all, which has no room for the other's address.
    Warn answered_flow_replaced(old: &Flow) =>
        "the flow of {:i} port {}, which was answered lately, gives way to another client's",
        client(old), port(old);

    /// A client that was not answered loses its place to another.
    Debug flow_replaced(old: &Flow) =>
        "the flow of {:i} port {}, which was not answered lately, gives way to another client's",
        client(old), port(old);

    /// This node, which is not the gateway's, learns a session.
    Debug session_learned(tenant: u16, high: u64, low: u64, port: u16, index: u32) =>
        "port {}: session {:x} is learned from an answer to {:i} port {}",
        tenant, index, address([high, low]), port;

    /// The gateway's own node learns a session.
    Debug session_announced(tenant: u16, high: u64, low: u64, port: u16, index: u32) =>
        "port {}: the gateway announces session {:x} to {:i} port {}",
        tenant, index, address([high, low]), port;

    /// The kernel was asked for a route, as none was cached.
    Debug route_asked(forwarding: &Forwarding, ingress: u32) =>
        "the route to {:i}, for a packet in by interface {}, leaves by interface {} with MTU {}",
        address(forwarding.to.destination), ingress, forwarding.uplink, forwarding.mtu;

    /// XDP cannot resolve a next hop.
    Debug left_to_tc_unresolved(forwarding: &Forwarding) =>
        "a packet to {:i} is left to tc: its next hop on interface {} is not resolved",
        address(forwarding.to.destination), forwarding.uplink;

    /// XDP does not send out of the interface.
    Debug left_to_tc_interface(forwarding: &Forwarding) =>
        "a packet to {:i} is left to tc: XDP does not send out of interface {}",
        address(forwarding.to.destination), forwarding.uplink;

    /// XDP does not reach the gateway: each of its packets is left to tc.
    Trace left_to_tc_gateway(tenant: u16, high: u64, low: u64, port: u16) =>
        "port {}: a packet of {:i} port {} is left to tc: XDP does not reach the gateway",
        tenant, address([high, low]), port;

    /// A client may have sent to another of the node's addresses than the one
    /// that it is answered from.
    Debug answered_from_primary(tenant: u16, high: u64, low: u64, port: u16) =>
        "port {}: {:i} port {} is answered from the first address: its flow is not known",
        tenant, address([high, low]), port;

    /// An ICMP error of ours that the kernel gets, which knows nothing of it.
    Debug error_without_route(to: &Words) =>
        "an ICMP error for {:i} is left to the kernel: there is no route",
        address(*to);
}

#[inline(always)]
fn client(flow: &Flow) -> [u8; 16] {
    let [high, low] = &flow.address;
    address([high.load(), low.load()])
}

#[inline(always)]
fn port(flow: &Flow) -> u16 {
    (flow.key.load() >> 16) as u16
}
