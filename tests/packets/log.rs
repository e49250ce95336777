//! What the programs log of single packets.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use aya::maps::RingBuf;
use lab::message;
use lab::packet::{CLIENT_PORT, Packet, VERSIONS, client};
use lab::programs::Hook;
use vpn_edge::datapath::{LogLevel, Records};
use vpn_edge_common::{FLOWS, Version};

use crate::errors::{Scene, Way};
use crate::hairpin::{Hairpin, Place, index, ip};
use crate::node::{
    FAR, FAR_PORT, FAR_SLOT, GATEWAY, KEY, Node, PORT, TC_PORT, UNKNOWN_INDEX, Verdict, edge,
    fresh, from_source,
};

const OFFERED: u32 = 0xc11e_0001;
const ANNOUNCED: u32 = 0x6a7e_0001;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that records make in a log.
fn lines(records: &mut Records) -> Vec<String> {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .without_time()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || records.flush());
    let bytes = lines.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Has a packet cause each message, and says how the lines begin and end.
fn each(hairpin: Hairpin) -> (Hairpin, Vec<(String, String)>) {
    let version = hairpin.version;
    let near = index("near");
    let client = client(version);
    let mut scene = Scene::on(hairpin);
    let hairpin = &mut scene.hairpin;
    hairpin.hook = Hook::Xdp;
    let mut expected = Vec::new();
    let mut expect = |level: &str, text: String| {
        expected.push((format!("{level} datapath: {text}"), String::new()));
    };

    let initiation = Packet::reply(version, &GATEWAY, PORT, message::initiation(7, &[1; 32]));
    assert_eq!(hairpin.node.egress(&initiation.bytes()).0, Verdict::Steer);
    expect(
        "DEBUG",
        format!("port {PORT}: the gateway announces session 7 to {client} port {CLIENT_PORT}"),
    );

    let packet = hairpin.to(message::initiation(OFFERED, &KEY));
    assert_eq!(hairpin.run(&packet).0, Verdict::Back);
    let (to, at) = (FAR.ip(version), near);
    expect(
        "DEBUG",
        format!(
            "the route to {to}, for a packet in by interface {at}, \
             leaves by interface {near} with MTU 1500"
        ),
    );

    let response = message::response(ANNOUNCED, OFFERED, &[1; 32]);
    let response = hairpin.reply(&packet, response);
    assert_eq!(hairpin.run(&response).0, Verdict::Back);
    expect(
        "DEBUG",
        format!(
            "port {FAR_PORT}: session {ANNOUNCED:x} is learned from an answer \
             to {client} port {CLIENT_PORT}"
        ),
    );

    for (place, why) in [
        (
            Place::Unresolved,
            format!("its next hop on interface {near} is not resolved"),
        ),
        (
            Place::Plain,
            format!("XDP does not send out of interface {}", index("plain")),
        ),
    ] {
        hairpin.place(place);
        let packet = hairpin.to(message::data(UNKNOWN_INDEX, 128));
        assert_eq!(hairpin.run(&packet).0, Verdict::Pass);
        let to = place.ip(version);
        expect("DEBUG", format!("a packet to {to} is left to tc: {why}"));
    }
    hairpin.place(Place::Here);

    let packet = Packet::over(version, TC_PORT, message::data(7, 128));
    assert_eq!(hairpin.run(&packet).0, Verdict::Pass);
    expect(
        "TRACE",
        format!(
            "port {TC_PORT}: a packet of {client} port {CLIENT_PORT} is left to tc: \
             XDP does not reach the gateway"
        ),
    );

    let mut several = edge(near, &[near]);
    several.own.push(("198.51.100.3".parse().unwrap(), near));
    hairpin.node.datapath.set_edge(&several).unwrap();
    let reply = Packet::reply(version, &GATEWAY, PORT, message::data(7, 128));
    let reply = reply.with(|reply| reply.ports.1 = 4000);
    assert_eq!(hairpin.node.egress(&reply.bytes()).0, Verdict::Steer);
    expect(
        "DEBUG",
        format!(
            "port {PORT}: {client} port 4000 is answered from the first address: \
             its flow is not known"
        ),
    );

    ip("route delete 203.0.113.0/24\nroute delete 2001:db8:9::/48\n");
    let error = scene.error(Way::Client);
    let hairpin = &mut scene.hairpin;
    let (verdict, _) = hairpin.node.ingress(Hook::Tc, &error.bytes());
    assert_eq!(verdict, Verdict::Pass);
    expect(
        "DEBUG",
        format!("an ICMP error for {client} is left to the kernel: there is no route"),
    );

    // More than there are places for; then as many again, once those are answered.
    for level in ["DEBUG", "WARN"] {
        for _ in 0..2 * FLOWS {
            let packet = hairpin.to(message::data(UNKNOWN_INDEX, 128));
            let packet = from_source(fresh() as u16, packet);
            assert_eq!(hairpin.run(&packet).0, Verdict::Back);
        }
        for flow in &hairpin.node.memory.flows[usize::from(FAR_SLOT)].0 {
            let last = flow.seen.load() >> 32;
            flow.seen.store(last << 32 | last);
        }
        let (from, answered) = match (version, level) {
            (Version::V4, "DEBUG") => ("198.18.", "not answered"),
            (Version::V4, _) => ("198.18.", "answered"),
            (Version::V6, "DEBUG") => ("2001:db8:18:", "not answered"),
            (Version::V6, _) => ("2001:db8:18:", "answered"),
        };
        expected.push((
            format!("{level} datapath: the flow of {from}"),
            format!(
                " port {CLIENT_PORT}, which was {answered} lately, gives way to another client's"
            ),
        ));
    }
    (scene.hairpin, expected)
}

#[test]
fn each_message_is_logged_at_its_level() {
    for version in VERSIONS {
        let mut hairpin = Hairpin::logging(Hook::Tc, version, LogLevel::Trace);
        let mut records = hairpin.node.datapath.records().unwrap().unwrap();
        let (_hairpin, expected) = each(hairpin);
        let lines = lines(&mut records);
        let is_missing = |(start, end): &(String, String)| {
            let is_it = |line: &String| line.starts_with(start) && line.ends_with(end);
            !lines.iter().any(is_it)
        };
        let missing: Vec<_> = expected.into_iter().filter(is_missing).collect();
        assert!(
            missing.is_empty(),
            "{version:?}: no lines {missing:#?} in\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn less_severe_messages_than_asked_for_are_not_logged() {
    let levels = [
        (LogLevel::Error, &[][..]),
        (LogLevel::Warn, &["WARN"]),
        (LogLevel::Info, &["WARN"]),
        (LogLevel::Debug, &["DEBUG", "WARN"]),
    ];
    for (level, expected) in levels {
        let mut hairpin = Hairpin::logging(Hook::Tc, Version::V4, level);
        let mut records = hairpin.node.datapath.records().unwrap().unwrap();
        let (_hairpin, _) = each(hairpin);
        let lines = lines(&mut records);
        let mut levels: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.split(' ').next())
            .collect();
        levels.sort_unstable();
        levels.dedup();
        assert_eq!(levels, expected, "{level:?}:\n{}", lines.join("\n"));
    }
}

#[test]
fn programs_that_do_not_log_write_nothing_and_have_the_least_of_rings() {
    let mut hairpin = Hairpin::logging(Hook::Tc, Version::V4, LogLevel::Off);
    assert!(hairpin.node.datapath.records().unwrap().is_none());
    let ring = hairpin.node.datapath.ebpf().take_map("AYA_LOGS").unwrap();
    let (mut hairpin, _) = each(hairpin);
    let mut ring = RingBuf::try_from(ring).unwrap();
    assert!(ring.next().is_none(), "a record");
    let program = hairpin.node.datapath.xdp();
    let program = hairpin.node.datapath.ebpf().program(program).unwrap();
    let maps = program.info().unwrap().map_ids().unwrap().unwrap();
    let sizes = maps.into_iter().filter_map(|id| {
        let map = aya::maps::MapInfo::from_id(id).ok()?;
        (map.name_as_str() == Some("AYA_LOGS")).then(|| map.max_entries())
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [4096]);
}

#[test]
fn a_flood_of_messages_is_cut_short_and_keeps_no_packet() {
    // Records of the ring's 128 KiB.
    const ROOM: usize = 1024;
    let mut node = Node::logging(LogLevel::Trace);
    let mut records = node.datapath.records().unwrap().unwrap();
    let packet = Packet::to(TC_PORT, message::data(7, 128));
    let mut flood = |packets: usize| {
        for _ in 0..packets {
            assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Pass);
        }
        lines(&mut records)
    };
    // Nobody reads meanwhile.
    let kept = flood(2 * ROOM).len();
    assert!((100..=ROOM).contains(&kept), "{kept}");
    let cut = "WARN datapath: more than 1000 records in a second: \
               the rest of the second is left out";
    let mut floods = (0..100).map(|_| flood(100));
    assert!(
        floods.any(|lines| lines.last().is_some_and(|last| last == cut)),
        "never cut"
    );
}
