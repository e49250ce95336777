//! Where a packet is to go, by etherparse and the `blake2` crate, from the
//! rules and not from the code.

use std::net::IpAddr;

use etherparse::{EtherType, IpNumber, LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use lab::message;
use lab::programs::Hook;
use vpn_edge_common::{Version, mode};

use crate::world::{CLIENTS, Flow, HOP_PORTS, HOPS, LIVE, OWN, State, TENANTS, Tenant};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Nowhere,
    Gateway,
    Node,
    Client,
}

/// A plain UDP packet.
struct Datagram<'a> {
    source: IpAddr,
    hop_limit: u8,
    ports: (u16, u16),
    message: &'a [u8],
}

/// Where `packet` is to go. `place` says where a client's flow is.
pub fn way(packet: &[u8], state: &State, hook: Hook, place: impl Fn(usize) -> usize) -> Way {
    let Some(datagram) = datagram(packet) else {
        return Way::Nowhere;
    };
    let tenant = |port| TENANTS.iter().find(|tenant| tenant.port == port);
    let (source, destination) = datagram.ports;
    let Some(to) = tenant(destination) else {
        let port = destination.checked_sub(HOP_PORTS);
        let answers = state.flow.filter(|flow| {
            port.is_some_and(|at| at < HOPS && usize::from(at) == place(flow.client))
        });
        return match (tenant(source), answers) {
            (Some(from), Some(flow)) if returns(&datagram, from, &flow, state) => Way::Client,
            _ => Way::Nowhere,
        };
    };
    let way = match (to.mode, hook) {
        (mode::XDP, _) | (mode::TC, Hook::Tc) => Way::Gateway,
        (mode::HOP, _) if datagram.hop_limit > 1 => Way::Node,
        _ => return Way::Nowhere,
    };
    let [_, _, packets, _, bytes, _] = state.rates;
    let within_plan = !to.limited || (left(packets) && left(bytes));
    let reachable = to.ip(datagram.version()).is_some();
    match reachable && within_plan && admitted(datagram.message, to, state) {
        true => way,
        false => Way::Nowhere,
    }
}

/// Whether an answer goes back to the client of `flow`.
fn returns(datagram: &Datagram<'_>, from: &Tenant, flow: &Flow, state: &State) -> bool {
    let client = CLIENTS[flow.client];
    let own = OWN.get(usize::from(client.own));
    let [_, _, _, packets, _, bytes] = state.rates;
    from.mode == mode::HOP
        && from.ip(datagram.version()) == Some(datagram.source)
        && datagram.hop_limit > 1
        && client.ip.is_ipv4() == datagram.source.is_ipv4()
        && own.is_some_and(|own| own.is_ipv4() == client.ip.is_ipv4())
        && (!from.limited || (left(packets) && left(bytes)))
        && well_formed(datagram.message)
}

/// Whether a rate lets something pass.
fn left(word: u64) -> bool {
    word <= crate::world::now()
}

fn well_formed(message: &[u8]) -> bool {
    matches!(
        (message.first_chunk::<4>(), message.len()),
        (Some([1, 0, 0, 0]), 148)
            | (Some([2, 0, 0, 0]), 92)
            | (Some([3, 0, 0, 0]), 64)
            | (Some([4, 0, 0, 0]), 32..)
    )
}

fn admitted(message: &[u8], tenant: &Tenant, state: &State) -> bool {
    if !well_formed(message) {
        return false;
    }
    let word = |at| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
    let [handshakes, unknown, ..] = state.rates;
    let session = |index| {
        // The gateway's own node judges what this one does not know.
        let forgiven = tenant.mode == mode::HOP || state.grace > crate::world::now();
        LIVE.contains(&index) || (forgiven && left(unknown))
    };
    let new = || {
        let mac1 = message[message.len() - 32..].first_chunk().unwrap();
        state.replayed != Some(u32::from_ne_bytes(*mac1))
    };
    let handshake = || {
        left(state.source) && message::signed(message, &tenant.key()) && new() && left(handshakes)
    };
    match message[0] {
        1 => handshake(),
        2 => session(word(8)) && handshake(),
        _ => session(word(4)),
    }
}

impl Datagram<'_> {
    fn version(&self) -> Version {
        match self.source {
            IpAddr::V4(_) => Version::V4,
            IpAddr::V6(_) => Version::V6,
        }
    }
}

/// The plain UDP packet to the node that this is.
fn datagram(packet: &[u8]) -> Option<Datagram<'_>> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let vlan = |tag: EtherType| matches!(tag.0, 0x8100 | 0x88a8);
    let outer = sliced.link.as_ref()?.to_header()?.ethernet2()?.ether_type;
    let mut tag = outer;
    for extension in &sliced.link_exts {
        let LinkExtSlice::Vlan(slice) = extension else {
            return None;
        };
        if !vlan(tag) {
            return None;
        }
        tag = slice.ether_type();
    }
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        return None;
    };
    let (plain, source, destination, hop_limit) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let plain = header.options().is_empty()
                && header.protocol() == IpNumber::UDP
                && !header.is_fragmenting_payload();
            let (source, destination) = (header.source_addr(), header.destination_addr());
            let (source, destination) = (IpAddr::V4(source), IpAddr::V4(destination));
            (plain, source, destination, header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            // A jumbogram's length stands where nobody looks.
            let plain = header.next_header() == IpNumber::UDP && header.payload_length() != 0;
            let (source, destination) = (header.source_addr(), header.destination_addr());
            let odd = source.is_unspecified() || source.to_ipv4_mapped().is_some();
            let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
            (plain && !odd, source, destination, header.hop_limit())
        }
        NetSlice::Arp(_) => return None,
    };
    let good =
        plain && sliced.link_exts.len() <= 2 && OWN.contains(&destination) && udp.length() >= 8;
    good.then_some(Datagram {
        source,
        hop_limit,
        ports: (udp.source_port(), udp.destination_port()),
        message: udp.payload(),
    })
}

/// Length of the IP packet, in a frame that goes somewhere.
pub fn ip_length(packet: &[u8]) -> u64 {
    let sliced = SlicedPacket::from_ethernet(packet).expect("a packet that is steered");
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().total_len().into(),
        Some(NetSlice::Ipv6(ip)) => 40 + u64::from(ip.header().payload_length()),
        _ => panic!("steered, and no IP: {packet:02x?}"),
    }
}
