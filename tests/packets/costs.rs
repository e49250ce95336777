//! What each path of a packet costs, held to a table: instructions, look-ups in
//! maps and calls of other helpers.
//!
//! An interpreter counts them, so the numbers are the same wherever the same
//! programs are. With logging off, as by default, a check of its level counts
//! for what it is in the object, though the kernel removes the comparison: to
//! count what the kernel keeps would take its verifier, and a check that is
//! new on some path is to be seen. Every packet goes through the kernel's test run as well, which
//! has to come to the same verdict, packet and counters.

use std::fs;

use aya::maps::{Array, Map, MapData};
use lab::costs::{self, Costs};
use lab::icmp::IcmpError;
use lab::interpreter::{Cost, Machine, NOW, Route};
use lab::message;
use lab::packet::{
    CLIENT_PORT, NODE_MAC, Packet, ROUTER_MAC, VERSIONS, client, node as node_address,
};
use lab::programs::{self, Hook, Memory, Skb, ways};
use vpn_edge::datapath::{OBJECT, folder};
use vpn_edge_common::{Counters, DropReason, Edge, Rates, Version, map, program};

use crate::hairpin::{Hairpin, Place, index};
use crate::node::{
    FAR, GATEWAY, INDEX, KEY, OTHER_KEY, PORT, SLOT, SLOTS, UNKNOWN_INDEX, UNKNOWN_PORT, edge, now,
    open,
};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packets/costs.txt");

const XDP: &str = program::INGRESS_FRAGS;
const TC: &str = program::INGRESS_TC;
const EGRESS: &str = program::EGRESS;

/// Which place a flow gets, and which bucket a source, follows from it.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a client offers to be answered under, and what a gateway announces.
const OFFERED: u32 = 0xc11e_0001;
const ANNOUNCED: u32 = 0x6a7e_0001;

/// The same node in the kernel and in the interpreter.
struct Pair {
    kernel: Hairpin,
    /// Before anything ran.
    object: Machine,
    interpreter: Machine,
    costs: Costs,
}

impl Pair {
    fn new() -> Self {
        let kernel = Hairpin::new(Hook::Xdp, Version::V4);
        assert_eq!(kernel.node.datapath.xdp(), XDP, "this kernel has fragments");
        let near = index("near");
        let mut object = Machine::new(OBJECT).unwrap();
        for version in VERSIONS {
            for (to, destination) in [(FAR.ip(version), FAR.mac), (client(version), ROUTER_MAC)] {
                let route = Route {
                    interface: near,
                    source: NODE_MAC,
                    destination,
                    mtu: 1500,
                };
                object.routes.insert(to, route);
            }
        }
        let path = folder(&kernel.node.root()).join("maps").join(map::EDGE);
        let pinned = Map::Array(MapData::from_pin(path).unwrap());
        let mut edges: Array<_, Edge> = pinned.try_into().unwrap();
        let edge = kernel.node.datapath.maps.edge().unwrap();
        edges.set(0, Edge { seed: SEED, ..edge }, 0).unwrap();
        Self {
            kernel,
            interpreter: object.clone(),
            object,
            costs: Costs {
                compiler: costs::compiler(OBJECT).unwrap(),
                paths: Vec::new(),
            },
        }
    }

    /// Has both forget what packets left behind, and know one session.
    fn reset(&mut self) {
        self.interpreter = self.object.clone();
        self.kernel.node.memory.forget_rates();
        for slot in SLOTS {
            let node = &self.kernel.node;
            node.memory.forget_replays(slot);
            node.memory.forget_flows(slot);
            let sessions = &node.memory.sessions[usize::from(slot)];
            ways(sessions).for_each(|way| way.store(0));
            let counters = counted(node.counters(slot));
            self.set(map::COUNTERS, slot.into(), &counters);
        }
        let maps = &self.kernel.node.datapath.maps;
        let (edge, allocations) = (maps.edge().unwrap(), maps.allocations());
        self.set(map::EDGE, 0, &edge);
        for (port, allocation) in allocations {
            self.set(map::ALLOCATIONS, port.into(), &allocation);
        }
        let initiation = message::initiation(INDEX, &[0xc1; 32]);
        let initiation = Packet::from(&GATEWAY, PORT, initiation).bytes();
        assert_eq!(self.run(EGRESS, &initiation).0, "redirect");
    }

    fn set<T: aya::Pod>(&mut self, map: &str, key: u32, value: &T) {
        self.interpreter.set(map, key, value).unwrap();
    }

    /// Runs both, and says what became of the packet, and what that took.
    fn run(&mut self, program: &str, packet: &[u8]) -> (String, Cost) {
        let skb = Skb {
            interface: self.kernel.node.interface.filter(|_| program != EGRESS),
            ..Skb::default()
        };
        let before = self.drops();
        let ran = self.interpreter.run(program, packet, skb).unwrap();
        let after = self.drops();
        let node = &mut self.kernel.node;
        let kernel = programs::run(&mut node.datapath, program, packet, skb).unwrap();
        assert_eq!(
            (ran.answer, ran.packet),
            kernel,
            "interpreter and kernel disagree on {program}"
        );
        for slot in SLOTS {
            let interpreted: Counters = self.interpreter.get(map::COUNTERS, slot.into()).unwrap();
            let kernel = counted(self.kernel.node.counters(slot));
            assert_eq!(
                counted(interpreted),
                kernel,
                "interpreter and kernel disagree on {program}"
            );
        }
        let reasons = DropReason::ALL.iter().zip(before.iter().zip(after));
        let mut dropped = reasons.filter(|(_, (before, after))| *before != after);
        let outcome = match (ran.answer as i32, program) {
            (1, XDP) | (2, TC | EGRESS) => {
                format!("drop: {}", dropped.next().expect("a reason").0.name())
            }
            (2, XDP) | (-1, TC | EGRESS) => "pass".into(),
            (3, XDP) => "send back".into(),
            (4, XDP) | (7, TC | EGRESS) => "redirect".into(),
            (other, _) => panic!("{program} answered {other}"),
        };
        (outcome, ran.cost)
    }

    fn drops(&mut self) -> Vec<u64> {
        let mut sum = Counters::default();
        for slot in SLOTS {
            sum.add(&self.interpreter.get(map::COUNTERS, slot.into()).unwrap());
        }
        sum.drops.to_vec()
    }

    /// Counts what `packet` takes, after all that came before it.
    fn count(&mut self, path: &str, program: &str, packet: &[u8]) {
        let (outcome, cost) = self.run(program, packet);
        let hook = match program {
            XDP => "xdp",
            TC => "tc",
            _ => "egress",
        };
        self.costs.paths.push(costs::Path {
            name: format!("{hook}/{path}"),
            outcome,
            cost,
        });
    }

    /// Counts the first of such packets and the second: the first drop of a tick
    /// is sampled, and the first packet of a client makes its flow.
    fn count_both(&mut self, path: &str, program: &str, packet: &[u8]) {
        self.reset();
        self.count(&format!("{path}/first"), program, packet);
        self.count(path, program, packet);
    }
}

/// Without the times of samples, as the two clocks differ.
fn counted(counters: Counters) -> Counters {
    let mut sum = Counters::default();
    sum.add(&counters);
    sum
}

fn named(version: Version, path: &str) -> String {
    match version {
        Version::V4 => format!("ipv4/{path}"),
        Version::V6 => format!("ipv6/{path}"),
    }
}

/// To a gateway on this node: the usual messages, and those of floods.
fn steered(pair: &mut Pair, program: &str, version: Version) {
    let packets = [
        ("data", message::data(INDEX, 128)),
        ("data-of-no-session", message::data(UNKNOWN_INDEX, 128)),
        ("initiation", message::initiation(1, &KEY)),
        ("forged-initiation", message::initiation(1, &OTHER_KEY)),
    ];
    for (path, message) in packets {
        let packet = Packet::over(version, PORT, message).bytes();
        pair.reset();
        if path != "initiation" {
            // The first drop is sampled as well; a flood costs what the next do.
            pair.run(program, &packet);
        }
        pair.count(&named(version, path), program, &packet);
    }
}

/// To a gateway on another node and back, from the first packet of a client on.
fn sent_on(pair: &mut Pair, program: &str, version: Version) {
    pair.reset();
    pair.kernel.version = version;
    let initiation = pair.kernel.to(message::initiation(OFFERED, &KEY));
    let count = |pair: &mut Pair, path: &str, packet: &Packet| {
        pair.count(&named(version, path), program, &packet.bytes());
    };
    count(pair, "hairpin-initiation", &initiation);
    let reply = |pair: &Pair, message| pair.kernel.reply(&initiation, message);
    let response = message::response(ANNOUNCED, OFFERED, &[1; 32]);
    let response = reply(pair, response);
    count(pair, "hairpin-reply-response", &response);
    let data = pair.kernel.to(message::data(ANNOUNCED, 128));
    count(pair, "hairpin", &data);
    let data = reply(pair, message::data(OFFERED, 128));
    count(pair, "hairpin-reply", &data);
    let unknown = pair.kernel.to(message::data(UNKNOWN_INDEX, 128));
    count(pair, "hairpin-data-of-no-session", &unknown);
    count(pair, "hairpin-reply-of-no-session", &data);
}

/// From a gateway on this node.
fn replies(pair: &mut Pair, version: Version) {
    let messages = [
        ("data", message::data(1, 128)),
        ("response", message::response(3, 1, &[1; 32])),
    ];
    for (path, message) in messages {
        let packet = Packet::reply(version, &GATEWAY, PORT, message);
        pair.reset();
        pair.count(&named(version, path), EGRESS, &packet.bytes());
    }
}

/// An ICMP error about a gateway's reply, to that gateway.
fn error(pair: &mut Pair, version: Version) {
    let initiation = Packet::over(version, PORT, message::initiation(1, &KEY));
    let quoted = Packet::reply(version, &GATEWAY, PORT, message::data(1, 128));
    let quoted = quoted.with(|quoted| {
        quoted.source = node_address(version);
        quoted.hop_limit = 3;
    });
    let error = IcmpError::too_big(Place::Other.ip(version), quoted, 1400);
    pair.reset();
    pair.run(TC, &initiation.bytes());
    pair.count(&named(version, "icmp-error"), TC, &error.bytes());
}

/// All other ways through the program of an uplink, over IPv4.
fn others(pair: &mut Pair, program: &str) {
    let data = Packet::to(PORT, message::data(INDEX, 128));
    let with = |bend: fn(&mut Packet)| data.clone().with(bend).bytes();
    let to = |port, message| Packet::to(port, message).bytes();
    let passed = [
        ("tcp", with(|packet| packet.protocol = 6)),
        ("unknown-port", to(UNKNOWN_PORT, data.message.clone())),
        (
            "another-address",
            with(|packet| packet.destination = Place::Here.ip(Version::V4)),
        ),
        (
            "data-vlan",
            with(|packet| packet.tags = vec![(0x8100, 100)]),
        ),
        (
            "data-without-udp-checksum",
            with(|packet| packet.udp_checksum = false),
        ),
        ("cookie-reply", to(PORT, message::cookie_reply(INDEX))),
        ("response", to(PORT, message::response(1, INDEX, &KEY))),
    ];
    for (path, packet) in passed {
        pair.reset();
        pair.count(path, program, &packet);
    }
    pair.count_both(
        "malformed",
        program,
        &to(PORT, message::unsigned(9, 128, &[])),
    );

    let initiation = Packet::to(PORT, message::initiation(1, &KEY));
    pair.reset();
    pair.run(program, &initiation.bytes());
    pair.run(program, &initiation.bytes());
    pair.count("replayed-initiation", program, &initiation.bytes());

    let ahead = 60_000_000_000;
    let node = &pair.kernel.node;
    let source = Memory::source_of(&node.datapath, &initiation).unwrap();
    pair.reset();
    pair.kernel.node.memory.sources[source].store(now() + ahead);
    pair.set(map::SOURCES, source as u32, &(NOW + ahead));
    pair.run(program, &initiation.bytes());
    pair.count("initiation-over-rate", program, &initiation.bytes());
}

/// A tenant with limits, over IPv4.
fn limited(pair: &mut Pair) {
    let rates = Rates {
        packet: 1_000,
        byte: 1_000,
    };
    pair.kernel.node.limit(rates);
    pair.reset();
    let data = Packet::to(PORT, message::data(INDEX, 128));
    pair.count("data-of-a-limited-plan", XDP, &data.bytes());
    let reply = Packet::from(&GATEWAY, PORT, message::data(1, 128));
    pair.count("data-of-a-limited-plan", EGRESS, &reply.bytes());
    pair.kernel.node.publish(PORT, open(&GATEWAY, &KEY, SLOT));
}

/// A node with several addresses of one IP version: each client is remembered.
fn several_addresses(pair: &mut Pair) {
    let near = index("near");
    let mut node = edge(near, &[near]);
    node.own.push(("198.51.100.3".parse().unwrap(), near));
    pair.kernel.node.datapath.set_edge(&node).unwrap();
    let data = Packet::to(PORT, message::data(INDEX, 128));
    pair.count_both("data-several-addresses", XDP, &data.bytes());
    let reply = Packet::from(&GATEWAY, PORT, message::data(1, 128));
    pair.count("data-several-addresses", EGRESS, &reply.bytes());
    assert_eq!(reply.ports.1, CLIENT_PORT, "of the same client");
}

#[test]
fn every_path_costs_what_the_table_says() {
    let mut pair = Pair::new();
    for (hook, program) in [(Hook::Xdp, XDP), (Hook::Tc, TC)] {
        pair.kernel.hook = hook;
        for version in VERSIONS {
            steered(&mut pair, program, version);
            sent_on(&mut pair, program, version);
        }
        others(&mut pair, program);
    }
    for version in VERSIONS {
        error(&mut pair, version);
        replies(&mut pair, version);
    }
    limited(&mut pair);
    several_addresses(&mut pair);

    pair.costs.paths.sort_by(|a, b| a.name.cmp(&b.name));
    if std::env::var_os(costs::WRITE).is_some() {
        fs::write(TABLE, pair.costs.to_string()).unwrap();
        return;
    }
    let table: Costs = fs::read_to_string(TABLE).unwrap().parse().unwrap();
    let changes = table.changes(&pair.costs);
    assert!(
        changes.is_empty(),
        "packets do not cost what tests/packets/costs.txt says (there -> now):\n\n  {}\n\n\
         If that is meant, write the table anew and commit it with the change:\n\n    {}\n",
        changes.join("\n  "),
        costs::COMMAND
    );
}
