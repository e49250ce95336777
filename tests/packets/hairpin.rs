//! A node with real interfaces, whose tenants' gateways are on another node.
//!
//! Three links: to the router and the other node, to a second router, and one
//! that XDP does not send out of. All neighbours but one are known.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use lab::packet::{CLIENT_PORT, NODE_MAC, Packet, ROUTER_MAC, client, node as node_address};
use lab::programs::Hook;
use vpn_edge::datapath::{ClientFlow, LogLevel, Ready, ready_gateway_end};
use vpn_edge_common::{Allocation, Version};

use crate::node::{FAR, FAR_PORT, FAR_SLOT, HOP_PORTS, Node, Verdict, edge};

pub const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x12];
pub const OTHER_ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x11];

/// `near` is the one that packets come in by.
const SCRIPT: &str = "
link set lo up
link add near type veth peer name near-peer
link set near address 02:00:00:00:00:02
link set near-peer up
link set near up
link add other type veth peer name other-peer
link set other address 02:00:00:00:00:12
link set other-peer up
link set other up
link add plain type veth peer name plain-peer
link set plain address 02:00:00:00:00:22
link set plain mtu 1300
link set plain-peer up
link set plain up
address add 198.51.100.2/24 dev near
address add 2001:db8:2:0:0:ffff:fe:2/64 dev near nodad
address add 192.0.2.2/24 dev other
address add 2001:db8:3::2/64 dev other nodad
address add 192.0.3.2/24 dev plain
address add 2001:db8:4::2/64 dev plain nodad
neighbour add 198.51.100.1 lladdr 02:00:00:00:00:01 dev near nud permanent
neighbour add 2001:db8:2::1 lladdr 02:00:00:00:00:01 dev near nud permanent
neighbour add 198.51.100.7 lladdr 02:00:00:00:00:07 dev near nud permanent
neighbour add 2001:db8:2::7 lladdr 02:00:00:00:00:07 dev near nud permanent
neighbour add 192.0.2.1 lladdr 02:00:00:00:00:11 dev other nud permanent
neighbour add 2001:db8:3::1 lladdr 02:00:00:00:00:11 dev other nud permanent
neighbour add 192.0.3.1 lladdr 02:00:00:00:00:21 dev plain nud permanent
neighbour add 2001:db8:4::1 lladdr 02:00:00:00:00:21 dev plain nud permanent
route add 203.0.113.0/24 via 198.51.100.1
route add 198.18.0.0/15 via 198.51.100.1
route add 2001:db8:9::/48 via 2001:db8:2::1
route add 2001:db8:18::/48 via 2001:db8:2::1
route add 192.0.9.0/24 via 192.0.2.1
route add 2001:db8:39::/48 via 2001:db8:3::1
route add 192.0.10.0/24 via 192.0.3.1
route add 2001:db8:49::/48 via 2001:db8:4::1
";

/// Where a gateway's node may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the link that packets come in by.
    Here,
    /// The same, but its MAC address is yet to be asked for.
    Unresolved,
    /// Behind the router of another link.
    Other,
    /// Behind a link that XDP does not send out of, and that takes less.
    Plain,
    /// Nowhere that is known.
    Nowhere,
}

impl Place {
    pub fn ip(self, version: Version) -> IpAddr {
        let v6 = |net, last| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last);
        match (self, version) {
            (Self::Here, _) => FAR.ip(version),
            (Self::Unresolved, Version::V4) => Ipv4Addr::new(198, 51, 100, 8).into(),
            (Self::Unresolved, Version::V6) => v6(2, 8).into(),
            (Self::Other, Version::V4) => Ipv4Addr::new(192, 0, 9, 7).into(),
            (Self::Other, Version::V6) => v6(0x39, 7).into(),
            (Self::Plain, Version::V4) => Ipv4Addr::new(192, 0, 10, 7).into(),
            (Self::Plain, Version::V6) => v6(0x49, 7).into(),
            (Self::Nowhere, Version::V4) => Ipv4Addr::new(192, 0, 11, 7).into(),
            (Self::Nowhere, Version::V6) => v6(0x59, 7).into(),
        }
    }
}

pub struct Hairpin {
    pub node: Node,
    pub hook: Hook,
    pub version: Version,
    /// XDP takes packets into a test run only by interfaces with a program.
    _program: Ready,
}

/// Both hooks with either IP version.
pub fn each() -> impl Iterator<Item = Hairpin> {
    let hooks = [Hook::Xdp, Hook::Tc];
    let versions = [Version::V4, Version::V6];
    hooks
        .into_iter()
        .flat_map(move |hook| versions.map(|version| Hairpin::new(hook, version)))
}

impl Hairpin {
    pub fn new(hook: Hook, version: Version) -> Self {
        Self::logging(hook, version, LogLevel::Off)
    }

    /// With programs that log.
    pub fn logging(hook: Hook, version: Version, level: LogLevel) -> Self {
        let mut node = Node::logging(level);
        ip(SCRIPT);
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "1").unwrap();
        }
        let program = ready_gateway_end("near").unwrap();
        let (up, other) = (index("near"), index("other"));
        node.interface = Some(up);
        node.datapath.set_edge(&edge(up, &[up, other])).unwrap();
        Self {
            node,
            hook,
            version,
            _program: program,
        }
    }

    /// Moves the tenant's gateway.
    pub fn place(&mut self, place: Place) {
        let set = |allocation: &mut Allocation| {
            for version in [Version::V4, Version::V6] {
                match place.ip(version) {
                    IpAddr::V4(v4) => allocation.gateway = vpn_edge_common::mapped(v4.octets()),
                    IpAddr::V6(v6) => allocation.gateway6 = v6.octets(),
                }
            }
        };
        let mut allocation = self.node.datapath.maps.allocation(FAR_PORT).unwrap();
        set(&mut allocation);
        self.node.publish(FAR_PORT, allocation);
    }

    /// From the client to the tenant.
    pub fn to(&self, message: Vec<u8>) -> Packet {
        Packet::over(self.version, FAR_PORT, message)
    }

    /// Runs ingress over a packet.
    pub fn run(&mut self, packet: &Packet) -> (Verdict, Vec<u8>) {
        self.node.ingress(self.hook, &packet.bytes())
    }

    /// Runs ingress over a packet that is to leave by the interface that it
    /// came in by, as `sent`.
    pub fn sends(&mut self, packet: &Packet, sent: &Packet, what: &str) {
        let (verdict, out) = self.run(packet);
        let at = (self.hook, self.version);
        assert_eq!(verdict, self.back(), "{at:?} {what}");
        assert_eq!(out, self.framed(packet, sent), "{at:?} {what}");
    }

    /// The verdict by which a packet leaves by the interface it came in by.
    pub fn back(&self) -> Verdict {
        match self.hook {
            Hook::Xdp => Verdict::Back,
            Hook::Tc => Verdict::Steer,
        }
    }

    /// `sent` as the program leaves it: tc has the kernel write the Ethernet
    /// header after it.
    pub fn framed(&self, packet: &Packet, sent: &Packet) -> Vec<u8> {
        let sent = sent.clone();
        match self.hook {
            Hook::Xdp => sent.bytes(),
            Hook::Tc => sent.with(|sent| sent.macs = packet.macs).bytes(),
        }
    }

    /// The tenant's one client that has sent from `packet`'s address.
    pub fn flow(&self, packet: &Packet) -> ClientFlow {
        self.find(packet).expect("a flow of the packet's")
    }

    pub fn find(&self, packet: &Packet) -> Option<ClientFlow> {
        let flows = self.node.datapath.maps.flows(FAR_SLOT).unwrap();
        let mut flows = flows
            .into_iter()
            .filter(|flow| flow.client == (packet.source, packet.ports.0).into());
        let found = flows.next();
        assert_eq!(flows.next(), None, "two flows of one client");
        found
    }

    /// The packet as it leaves for the gateway's node.
    pub fn onward(&self, packet: &Packet) -> Packet {
        let port = self.flow(packet).hop_port;
        assert!((HOP_PORTS..HOP_PORTS + 128).contains(&port));
        packet.clone().with(|sent| {
            sent.macs = (NODE_MAC, FAR.mac);
            sent.tags.clear();
            sent.source = node_address(self.version);
            sent.destination = FAR.ip(self.version);
            sent.ports.0 = port;
            sent.hop_limit = (packet.hop_limit - 1).min(16);
        })
    }

    /// From the gateway's node, to the port that stands for `packet`'s flow.
    pub fn reply(&self, packet: &Packet, message: Vec<u8>) -> Packet {
        let port = self.flow(packet).hop_port;
        self.reply_to(port, message)
    }

    pub fn reply_to(&self, port: u16, message: Vec<u8>) -> Packet {
        Packet::over(self.version, port, message).with(|reply| {
            reply.macs = (FAR.mac, NODE_MAC);
            reply.source = FAR.ip(self.version);
            reply.ports = (FAR_PORT, port);
            reply.hop_limit = 60;
        })
    }

    /// The reply as it leaves for the client.
    pub fn returned(&self, reply: &Packet) -> Packet {
        reply.clone().with(|sent| {
            sent.macs = (NODE_MAC, ROUTER_MAC);
            sent.tags.clear();
            sent.source = node_address(self.version);
            sent.destination = client(self.version);
            sent.ports.1 = CLIENT_PORT;
            sent.hop_limit = reply.hop_limit - 1;
        })
    }

    /// Whether data of the session is let in by more than a doubt.
    pub fn knows(&mut self, index: u32) -> bool {
        let relayed = self.node.counters(FAR_SLOT).relayed;
        let packet = self.to(lab::message::data(index, 64));
        let packet = packet.with(|packet| packet.ports.0 = 7);
        assert_eq!(self.run(&packet).0, self.back());
        self.node.counters(FAR_SLOT).relayed == relayed
    }
}

/// Runs a script of `ip`'s.
pub fn ip(script: &str) {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = ip.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(ip.wait().unwrap().success());
}

/// An interface's index.
pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
