//! A node with tenants, whose programs are run over packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lab::message;
use lab::packet::{Gateway, NODE, NODE6, Packet};
use lab::programs::{self, Hook, Memory, Skb};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Change, Datapath, EdgeNode, LogLevel, SlotState as Kept};
use vpn_edge_common::{
    Allocation, Counters, DropReason, NODE_SLOT, Rates, Version, frame_addresses, mapped, mode,
    program,
};
use vpn_edge_ebpf::mac1;

pub const PORT: u16 = 31_001;
pub const CLOSED_PORT: u16 = 31_002;
/// The same gateway's, on the tc hook.
pub const TC_PORT: u16 = 31_003;
pub const OTHER_PORT: u16 = 31_004;
/// Its gateway has no IPv6 address.
pub const V4_PORT: u16 = 31_005;
/// Their gateways are on another node.
pub const FAR_PORT: u16 = 31_006;
pub const OTHER_FAR_PORT: u16 = 31_007;
pub const UNKNOWN_PORT: u16 = 31_999;

pub const SLOT: u16 = 5;
pub const CLOSED_SLOT: u16 = 6;
pub const OTHER_SLOT: u16 = 7;
pub const V4_SLOT: u16 = 8;
pub const FAR_SLOT: u16 = 9;
pub const OTHER_FAR_SLOT: u16 = 10;
pub const SLOTS: [u16; 7] = [
    SLOT,
    CLOSED_SLOT,
    OTHER_SLOT,
    V4_SLOT,
    FAR_SLOT,
    OTHER_FAR_SLOT,
    NODE_SLOT,
];

/// The first of the ports that packets to other nodes leave from.
pub const HOP_PORTS: u16 = 30_000;

pub const GATEWAY: Gateway = Gateway {
    address: Ipv4Addr::new(100, 64, 121, 25),
    address6: Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 0x7919),
    mac: [0x02, 0, 0, 0, 0, 0x04],
    host_mac: [0x02, 0, 0, 0, 0, 0x03],
};
pub const OTHER_GATEWAY: Gateway = Gateway {
    address: Ipv4Addr::new(100, 64, 121, 28),
    address6: Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 0x791c),
    mac: [0x02, 0, 0, 0, 0, 0x06],
    host_mac: [0x02, 0, 0, 0, 0, 0x05],
};

/// The node of the gateways that are not here.
pub const FAR: Gateway = Gateway {
    address: Ipv4Addr::new(198, 51, 100, 7),
    address6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7),
    mac: [0x02, 0, 0, 0, 0, 0x07],
    host_mac: lab::packet::NODE_MAC,
};

/// Another edge node's addresses, which send packets on to this one.
pub const EDGE_NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
pub const EDGE_NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 11);

/// Public keys; any 32 bytes are one to mac1.
pub const KEY: [u8; 32] = [0x4b; 32];
pub const OTHER_KEY: [u8; 32] = [0x4f; 32];

/// The first tenant's, as [`open`] makes them.
pub const TENANT: [u8; 16] = [SLOT as u8; 16];

/// A session of the first gateway, and one of the other.
pub const INDEX: u32 = 0x5e55_1011;
pub const OTHER_INDEX: u32 = 0x0073_0000;
/// One that nobody announced.
pub const UNKNOWN_INDEX: u32 = 0x0bad_1dea;

/// The interface that test runs come in by, lo.
pub const LO: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Redirected, to the gateway or out.
    Steer,
    /// Sent back out of the interface that it came in by.
    Back,
    Drop(DropReason),
}

pub struct Node {
    pub datapath: Datapath,
    pub memory: Memory,
    /// Interface that packets come in by; none is lo.
    pub interface: Option<u32>,
    sandbox: Sandbox,
}

/// What passed before something was refused, in how long, and why it was.
pub struct Burst {
    pub passed: u64,
    pub took: Duration,
    pub end: Verdict,
}

impl Node {
    /// With the ports above, and a session of either gateway that is here.
    pub fn new() -> Self {
        Self::logging(LogLevel::Off)
    }

    /// The same, with programs that log.
    pub fn logging(level: LogLevel) -> Self {
        let sandbox = Sandbox::enter().unwrap();
        let root = sandbox.bpffs();
        let mut datapath = Datapath::open_logging(&root, level).unwrap();
        datapath.set_edge(&edge(LO, &[])).unwrap();
        let nodes = [EDGE_NODE.into(), EDGE_NODE6.into()].into();
        datapath.maps.set_nodes(&nodes).unwrap();
        let mut node = Self {
            datapath,
            memory: Memory::open(&root).unwrap(),
            interface: None,
            sandbox,
        };
        let open = open(&GATEWAY, &KEY, SLOT);
        let closed = Allocation {
            mode: mode::CLOSED,
            slot: CLOSED_SLOT,
            ..Allocation::default()
        };
        let tc = Allocation {
            mode: mode::TC,
            ..open
        };
        node.publish(PORT, open);
        node.publish(CLOSED_PORT, closed);
        node.publish(TC_PORT, tc);
        node.publish(
            OTHER_PORT,
            self::open(&OTHER_GATEWAY, &OTHER_KEY, OTHER_SLOT),
        );
        let v4 = Allocation {
            gateway6: [0; 16],
            slot: V4_SLOT,
            ..open
        };
        node.publish(V4_PORT, v4);
        node.publish(FAR_PORT, far(FAR_SLOT));
        node.publish(OTHER_FAR_PORT, far(OTHER_FAR_SLOT));
        node.announce(&GATEWAY, PORT, INDEX);
        node.announce(&OTHER_GATEWAY, OTHER_PORT, OTHER_INDEX);
        node
    }

    /// Where the maps are pinned.
    pub fn root(&self) -> PathBuf {
        self.sandbox.bpffs()
    }

    pub fn publish(&mut self, port: u16, allocation: Allocation) {
        let change = Change {
            port,
            allocation,
            memory: Kept::Keep,
            grace: false,
        };
        self.datapath.maps.publish(&[change]).unwrap();
    }

    /// Holds the first tenant to `rates`.
    pub fn limit(&mut self, rates: Rates) {
        let limited = Allocation {
            limited: 1,
            rates,
            ..open(&GATEWAY, &KEY, SLOT)
        };
        self.publish(PORT, limited);
    }

    /// Has a gateway send an initiation, through the program that sees it.
    pub fn announce(&mut self, gateway: &Gateway, port: u16, index: u32) {
        let initiation = message::initiation(index, &[0xc1; 32]);
        let (verdict, _) = self.egress(&Packet::from(gateway, port, initiation).bytes());
        assert_eq!(verdict, Verdict::Steer, "the gateway's initiation");
    }

    /// Runs ingress over a packet, and tells the reason from the counters.
    ///
    /// # Panics
    ///
    /// When the counters do not fit the verdict: of a dropped packet exactly
    /// one moves, by one.
    pub fn ingress(&mut self, hook: Hook, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let skb = Skb {
            interface: self.interface,
            ..Skb::default()
        };
        self.run(hook.ingress(&self.datapath), packet, skb)
    }

    /// The verdict alone.
    pub fn verdict(&mut self, hook: Hook, packet: &Packet) -> Verdict {
        self.ingress(hook, &packet.bytes()).0
    }

    /// Runs egress over a packet, held to the same as ingress.
    pub fn egress(&mut self, packet: &[u8]) -> (Verdict, Vec<u8>) {
        self.run(program::EGRESS, packet, Skb::default())
    }

    pub fn run(&mut self, name: &str, packet: &[u8], skb: Skb) -> (Verdict, Vec<u8>) {
        let before = self.drops();
        let (answer, out) = programs::run(&mut self.datapath, name, packet, skb).unwrap();
        let after = self.drops();
        let moved: Vec<(DropReason, u64)> = DropReason::ALL
            .iter()
            .zip(after.iter().zip(before))
            .map(|(&reason, (after, before))| (reason, after - before))
            .filter(|(_, drops)| *drops != 0)
            .collect();
        let verdict = match (answer as i32, name == self.datapath.xdp()) {
            (1, true) | (2, false) => {
                assert_eq!(moved.len(), 1, "one reason a packet: {moved:?}");
                assert_eq!(moved[0].1, 1, "counted once: {moved:?}");
                return (Verdict::Drop(moved[0].0), out);
            }
            (2, true) | (-1, false) => Verdict::Pass,
            (3, true) => Verdict::Back,
            (4, true) | (7, false) => Verdict::Steer,
            (other, _) => panic!("`{name}` answered {other}"),
        };
        assert_eq!(moved, [], "dropped, and yet {verdict:?}");
        (verdict, out)
    }

    /// Sends until something is refused.
    pub fn burst(
        &mut self,
        packets: impl IntoIterator<Item = Packet>,
        mut run: impl FnMut(&mut Self, &[u8]) -> (Verdict, Vec<u8>),
    ) -> Burst {
        let mut passed = 0;
        let start = Instant::now();
        for packet in packets {
            let (end, _) = run(self, &packet.bytes());
            if end != Verdict::Steer {
                let took = start.elapsed();
                return Burst { passed, took, end };
            }
            passed += 1;
        }
        panic!("{passed} packets passed, and there are no more");
    }

    pub fn counters(&self, slot: u16) -> Counters {
        self.datapath.maps.counters(slot).unwrap()
    }

    /// Drops by reason, over all tenants.
    fn drops(&self) -> Vec<u64> {
        let mut sum = Counters::default();
        for slot in SLOTS {
            sum.add(&self.counters(slot));
        }
        sum.drops.to_vec()
    }
}

impl Burst {
    /// Holds the burst to what a rate lets through: `burst` at once, and then
    /// `rate` a second. The programs' clock is a few milliseconds coarse.
    pub fn assert(&self, reason: DropReason, burst: u64, rate: u64) {
        const COARSE: Duration = Duration::from_millis(10);
        let since = (self.took + COARSE).as_nanos() as u64 * rate / 1_000_000_000;
        let most = burst + since + 1;
        assert_eq!(self.end, Verdict::Drop(reason));
        assert!(
            (burst..=most).contains(&self.passed),
            "{} passed in {:?}: expected {burst} to {most}",
            self.passed,
            self.took
        );
    }
}

pub fn open(gateway: &Gateway, key: &[u8; 32], slot: u16) -> Allocation {
    Allocation {
        mode: mode::XDP,
        slot,
        ifindex: LO,
        frame: frame_addresses(gateway.mac, gateway.host_mac),
        gateway: mapped(gateway.address.octets()),
        gateway6: gateway.address6.octets(),
        tenant: [slot as u8; 16],
        mac1: mac1::key(key),
        ..Allocation::default()
    }
}

/// An allocation whose gateway is on another node.
fn far(slot: u16) -> Allocation {
    Allocation {
        mode: mode::HOP,
        ifindex: 0,
        frame: [0; 3],
        ..open(&FAR, &KEY, slot)
    }
}

/// The node, its addresses on `uplink`, which is no interface that XDP sends
/// out of unless it is among `xdp_uplinks`.
pub fn edge(uplink: u32, xdp_uplinks: &[u32]) -> EdgeNode {
    EdgeNode {
        own: vec![(NODE.into(), uplink), (NODE6.into(), uplink)],
        xdp_uplinks: Some(xdp_uplinks.to_vec()),
        hop_ports: HOP_PORTS,
    }
}

/// A number that no other call in this process gave.
pub fn fresh() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A client's initiation that the first gateway takes; another every time.
pub fn initiation() -> Packet {
    initiation_over(Version::V4)
}

pub fn initiation_over(version: Version) -> Packet {
    Packet::over(version, PORT, message::initiation(fresh(), &KEY))
}

/// Transport data of the session that is live.
pub fn data() -> Packet {
    Packet::to(PORT, message::data(INDEX, 128))
}

/// The same from another address, by number; never the usual client's. Each
/// counts as a source of its own.
pub fn from_source(number: u16, packet: Packet) -> Packet {
    let [high, low] = number.to_be_bytes();
    let source: IpAddr = match packet.version() {
        Version::V4 => Ipv4Addr::new(198, 18, high, low).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x18, number, 0, 0, 0, 9).into(),
    };
    packet.with(|packet| packet.source = source)
}

/// Nanoseconds of the clock that programs read.
pub fn now() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    Duration::from(nix::time::clock_gettime(clock).unwrap()).as_nanos() as u64
}
