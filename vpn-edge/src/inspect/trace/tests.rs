use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use uuid::Uuid;
use vpn_edge_common::{
    Allocation, Edge, Own, Rates, Word, address, frame_addresses, mapped, mode, words,
};
use vpn_edge_ebpf::flow::Client;
use vpn_edge_ebpf::{mac1, session};

use super::*;
use crate::datapath::tick_length;

const PORT: u16 = 31_001;
const SLOT: u16 = 5;
const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const LIVE: u32 = 0x1111_1111;
const EXPIRED: u32 = 0x2222_2222;
const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;
const TICK: u32 = 100_000;

fn public_key() -> PublicKey {
    PublicKey::from_bytes([7; 32])
}

fn ticks(seconds: u64) -> u32 {
    let length = tick_length().as_nanos();
    (Duration::from_secs(seconds).as_nanos() / length) as u32 + 1
}

fn allocation() -> Allocation {
    Allocation {
        mode: mode::XDP,
        slot: SLOT,
        frame: frame_addresses([2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 3]),
        gateway: mapped([100, 64, 121, 25]),
        gateway6: Ipv6Addr::new(0xfd64, 0x7670, 0x6e00, 0, 0, 0, 0, 0x7919).octets(),
        tenant: *Uuid::from_u128(0x1234).as_bytes(),
        generation: 2,
        mac1: mac1::key(public_key().as_bytes()),
        ..Allocation::default()
    }
}

/// Maps with one session that is live for 90 seconds and one that was.
fn tables(change: impl FnOnce(&mut Allocation)) -> Tables {
    let mut tables = Tables::default();
    let mut allocation = allocation();
    change(&mut allocation);
    tables.edge = Edge {
        session_life: ticks(185),
        seed: 0x9e37_79b9_7f4a_7c15,
        hop_ports: 61_000,
        several: 1,
        ..Edge::default()
    };
    for (own, address) in tables.edge.own.iter_mut().zip([
        mapped(NODE.octets()),
        NODE6.octets(),
        mapped([198, 51, 100, 9]),
    ]) {
        *own = Own {
            address,
            uplink: 1,
            pad: 0,
        };
    }
    (tables.now, tables.tick) = (NOW, TICK);
    tables.insert(PORT, allocation);
    let sessions = &tables.sessions[&SLOT];
    for (index, expiry) in [(LIVE, TICK + ticks(90)), (EXPIRED, TICK - ticks(3))] {
        session::announce(session::bucket(sessions, index), index, expiry);
    }
    tables
}

fn fields(kind: Kind, index: u32) -> Fields {
    Fields {
        source: "203.0.113.9:51820".parse().unwrap(),
        destination: SocketAddr::new(NODE.into(), PORT),
        kind,
        index,
        length: None,
        public_key: Some(public_key())
            .filter(|_| matches!(kind, Kind::Initiation | Kind::Response)),
    }
}

fn traced(tables: &Tables, fields: Fields) -> Traced {
    let mut frame = fields.frame().unwrap();
    let packet = PacketSummary::of(&mut frame);
    let stage = |hook, name| {
        let judged = judge(tables, &packet, &frame, hook).unwrap();
        Stage {
            hook: name,
            steps: judged.steps,
            verdict: judged.verdict,
            kernel: Kernel::NotRun {
                why: "in this test".into(),
            },
        }
    };
    let mut stages = vec![stage(Hook::Xdp, "xdp")];
    if stages[0].verdict == (Verdict::Pass { why: ON_TC }) {
        stages.push(stage(Hook::Tc, "tc"));
    }
    Traced {
        number: 1,
        packet,
        stages,
        agrees: None,
    }
}

#[test]
fn every_question_is_told_with_its_answer() {
    let plain = tables(|_| {});
    let tc = tables(|allocation| allocation.mode = mode::TC);
    let closed = tables(|allocation| allocation.mode = mode::CLOSED);
    let planned = tables(|allocation| {
        allocation.limited = 1;
        allocation.rates = Rates {
            packet: 100_000,
            byte: 819_200,
        };
    });
    let graced = tables(|_| {});
    graced.limits[&SLOT].grace.store(NOW + 60 * SECOND);
    let busy = tables(|_| {});
    let ahead = Word::from(NOW + SECOND);
    for word in &busy.sources {
        word.store(ahead.load());
    }

    let cases = [
        ("data of a live session", &plain, fields(Kind::Data, LIVE)),
        (
            "data of an expired one",
            &plain,
            fields(Kind::Data, EXPIRED),
        ),
        ("data of an unknown one", &plain, fields(Kind::Data, 7)),
        (
            "data of an unknown one, forgiven",
            &graced,
            fields(Kind::Data, 7),
        ),
        ("a cookie", &plain, fields(Kind::Cookie, LIVE)),
        ("an initiation", &plain, fields(Kind::Initiation, 7)),
        (
            "the same initiation again",
            &plain,
            fields(Kind::Initiation, 7),
        ),
        ("a response", &plain, fields(Kind::Response, LIVE)),
        (
            "an initiation of another gateway's",
            &plain,
            Fields {
                public_key: Some(PublicKey::from_bytes([8; 32])),
                ..fields(Kind::Initiation, 7)
            },
        ),
        ("too many initiations", &busy, fields(Kind::Initiation, 7)),
        ("a tenant with a plan", &planned, fields(Kind::Data, LIVE)),
        ("a port on tc", &tc, fields(Kind::Data, LIVE)),
        ("a closed port", &closed, fields(Kind::Data, LIVE)),
        (
            "a message of a wrong length",
            &plain,
            Fields {
                length: Some(147),
                ..fields(Kind::Initiation, 7)
            },
        ),
        (
            "another address",
            &plain,
            Fields {
                destination: "198.51.100.3:31001".parse().unwrap(),
                ..fields(Kind::Data, LIVE)
            },
        ),
        (
            "another port",
            &plain,
            Fields {
                destination: SocketAddr::new(NODE.into(), 31_002),
                ..fields(Kind::Data, LIVE)
            },
        ),
    ];
    insta::assert_snapshot!(told(cases));
}

/// Each takes what the ones before left.
fn told<'a>(cases: impl IntoIterator<Item = (&'a str, &'a Tables, Fields)>) -> String {
    let mut all = String::new();
    for (what, tables, fields) in cases {
        writeln!(all, "{what}\n{}", traced(tables, fields)).unwrap();
    }
    all
}

/// Maps of a node whose tenant has the gateway on another.
fn hopping() -> Tables {
    tables(|allocation| {
        allocation.mode = mode::HOP;
        allocation.gateway = mapped([192, 0, 2, 9]);
        allocation.gateway6 = OTHER_NODE.octets();
    })
}

const OTHER_NODE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

fn v6(kind: Kind, index: u32) -> Fields {
    Fields {
        source: "[2001:db8:9::7]:51820".parse().unwrap(),
        destination: SocketAddr::new(NODE6.into(), PORT),
        ..fields(kind, index)
    }
}

#[test]
fn ipv6_other_own_addresses_and_flows_are_told() {
    let tables = tables(|_| {});
    let other = Fields {
        destination: "198.51.100.9:31001".parse().unwrap(),
        ..fields(Kind::Data, LIVE)
    };
    insta::assert_snapshot!(told([
        ("IPv6", &tables, v6(Kind::Data, LIVE)),
        ("the same again", &tables, v6(Kind::Data, LIVE)),
        ("another of the node's addresses", &tables, other),
    ]));
}

/// The port of the flow that one of `fields` made.
fn hop_port(tables: &Tables, fields: &Fields) -> u16 {
    let seed = tables.edge.seed;
    let source = match fields.source.ip() {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    let client = Client::new(seed, words(&source), fields.source.port());
    assert_eq!(address(client.address), source);
    let at = client.find(&tables.flows[&SLOT]).expect("it was here");
    tables.edge.hop_ports + at as u16
}

#[test]
fn a_gateway_on_another_node_is_told_with_the_way_there_and_back() {
    let tables = hopping();
    let there = told([
        ("on to its node", &tables, v6(Kind::Initiation, 7)),
        (
            "a session unknown here",
            &tables,
            fields(Kind::Data, EXPIRED),
        ),
    ]);
    let answer = |from: &str, port| Fields {
        source: SocketAddr::new(from.parse().unwrap(), PORT),
        destination: SocketAddr::new(NODE6.into(), port),
        ..fields(Kind::Data, 7)
    };
    let port = hop_port(&tables, &v6(Kind::Data, 7));
    let unused = (61_000..61_128)
        .find(|&other| other != port && other != hop_port(&tables, &fields(Kind::Data, 7)));
    let back = told([
        ("its answer", &tables, answer("2001:db8::9", port)),
        (
            "an answer to nobody",
            &tables,
            answer("2001:db8::9", unused.unwrap()),
        ),
        ("another node's", &tables, answer("2001:db8::8", port)),
    ]);
    // Which flow it is depends on the tables' secret alone.
    insta::assert_snapshot!(there + &back);
    let fields = answer("2001:db8::9", port);
    insta::assert_snapshot!(serde_json::to_string_pretty(&traced(&tables, fields)).unwrap());
}

#[test]
fn what_leaves_the_node_may_be_left_to_tc_and_to_the_routes() {
    use Answer::{Drop, Pass, Redirect, Transmit};
    let frame = b"12 addresses, a type, and a packet".as_slice();
    let mut changed = frame.to_vec();
    changed[20] = b'!';
    let mut addressed = changed.clone();
    addressed[..12].fill(7);
    let send = Expected::Send(changed.clone());
    let differ = |hook, answer, frame_after: &[u8], counted: &[DropReason]| {
        let frame_after = frame_after.to_vec();
        let ran = Ran {
            answer,
            frame: frame_after,
        };
        differs(&send, hook, frame, &ran, counted)
    };
    for hook in [Hook::Xdp, Hook::Tc] {
        for answer in [Redirect, Transmit] {
            assert_eq!(differ(hook, answer, &addressed, &[]), None);
            assert!(differ(hook, answer, frame, &[]).is_some());
        }
        assert_eq!(differ(hook, Drop, frame, &[DropReason::NoRoute]), None);
        assert_eq!(differ(hook, Drop, frame, &[DropReason::TooBig]), None);
        assert!(differ(hook, Drop, frame, &[DropReason::Mac1]).is_some());
    }
    assert_eq!(differ(Hook::Xdp, Pass, frame, &[]), None);
    assert!(differ(Hook::Xdp, Pass, &changed, &[]).is_some());
    assert!(differ(Hook::Tc, Pass, frame, &[]).is_some());
}

#[test]
fn a_packet_goes_to_one_of_the_nodes_own_addresses() {
    let edge = tables(|_| {}).edge;
    let of = |source: &str, to: Option<&str>| {
        let to = to.map(|to| to.parse().unwrap());
        destination(&edge, source.parse().unwrap(), to).map(|ip| ip.to_string())
    };
    assert_eq!(of("203.0.113.9:1", None).unwrap(), "198.51.100.2");
    assert_eq!(of("[2001:db8:9::7]:1", None).unwrap(), "2001:db8::2");
    let other = of("203.0.113.9:1", Some("198.51.100.9"));
    assert_eq!(other.unwrap(), "198.51.100.9");
    let said = of("203.0.113.9:1", Some("198.51.100.8")).unwrap_err();
    assert_eq!(
        said.to_string(),
        "198.51.100.8 is not the node's: name one of 198.51.100.2, 2001:db8::2, 198.51.100.9"
    );
    let only_v4 = Edge {
        own: [edge.own[0]; 1]
            .into_iter()
            .chain([Own::default(); 7])
            .collect::<Vec<_>>()
            .try_into()
            .unwrap(),
        ..edge
    };
    let said = destination(&only_v4, "[2001:db8:9::7]:1".parse().unwrap(), None).unwrap_err();
    assert_eq!(
        said.to_string(),
        "the node has no IPv6 address that clients send to"
    );
}

#[test]
fn every_packet_counts_for_the_next() {
    let tables = tables(|_| {});
    let left = || {
        let traced = traced(&tables, fields(Kind::Initiation, 7));
        traced.stages[0].steps.iter().find_map(|step| match step {
            Step::Source {
                handshakes_left, ..
            } => Some(*handshakes_left),
            _ => None,
        })
    };
    assert_eq!([left(), left(), left()], [Some(20), Some(19), Some(18)]);
}

#[test]
fn each_port_of_another_edge_node_is_traced_as_a_source() {
    let mut tables = tables(|_| {});
    let told = |tables: &Tables, port: u16| {
        let mut fields = fields(Kind::Initiation, 7);
        fields.source.set_port(port);
        let traced = traced(tables, fields);
        let mut steps = traced.stages[0].steps.iter();
        let step = steps.find(|step| matches!(step, Step::Source { .. }));
        step.expect("its source is asked for").to_string()
    };
    let stranger = told(&tables, 61_005);
    assert!(!stranger.contains("edge node"), "{stranger}");
    let source = fields(Kind::Initiation, 7).source.ip();
    let IpAddr::V4(v4) = source else {
        panic!("{source}");
    };
    tables.nodes = [words(&mapped(v4.octets()))].into();
    for (port, left) in [(61_005, 20), (61_006, 20), (61_005, 19)] {
        let expected = format!("{source}, an edge node, from port {port} may send {left} of 20");
        let told = told(&tables, port);
        assert!(told.starts_with(&expected), "{told}");
    }
    let other = told(&tables, 60_999);
    assert!(!other.contains("edge node"), "{other}");
}

#[test]
fn json_has_every_step_and_field() {
    let tables = tables(|allocation| {
        allocation.limited = 1;
        allocation.rates.packet = 100_000;
    });
    let traced = [
        traced(&tables, fields(Kind::Data, LIVE)),
        traced(&tables, fields(Kind::Response, 7)),
    ];
    insta::assert_snapshot!(serde_json::to_string_pretty(&traced).unwrap());
}

#[test]
fn host_and_kernel_agree_only_if_verdict_reason_and_frame_are_the_same() {
    use Answer::{Drop, Other, Pass, Redirect};
    let (frame, rewritten) = (b"a frame".as_slice(), b"another".as_slice());
    let steer = || Expected::Steer(rewritten.to_vec());
    let dropped = || Expected::Drop(DropReason::Mac1);
    let ran = |answer, frame: &[u8]| Ran {
        answer,
        frame: frame.to_vec(),
    };
    let agree = [
        (Expected::Pass, ran(Pass, frame), vec![]),
        (steer(), ran(Redirect, rewritten), vec![]),
        (dropped(), ran(Drop, frame), vec![DropReason::Mac1]),
        // Another packet was dropped at the same time.
        (
            dropped(),
            ran(Drop, frame),
            vec![DropReason::Fragment, DropReason::Mac1],
        ),
    ];
    for (expected, ran, counted) in agree {
        let differs = differs(&expected, Hook::Tc, frame, &ran, &counted);
        assert_eq!(differs, None, "{expected:?} {ran:?}");
    }
    let differ = [
        (
            Expected::Pass,
            ran(Pass, rewritten),
            vec![],
            "the program passes a changed packet",
        ),
        (
            Expected::Pass,
            ran(Drop, frame),
            vec![DropReason::Mac1],
            "the program drops it: mac1",
        ),
        (
            steer(),
            ran(Redirect, frame),
            vec![],
            "the program makes another frame of it",
        ),
        (steer(), ran(Pass, frame), vec![], "the program passes it"),
        (
            dropped(),
            ran(Redirect, rewritten),
            vec![],
            "the program redirects it",
        ),
        (
            dropped(),
            ran(Drop, frame),
            vec![],
            "the program drops it without a reason",
        ),
        (
            dropped(),
            ran(Drop, frame),
            vec![DropReason::NoGateway],
            "the program drops it for another reason: no_gateway",
        ),
        (
            steer(),
            ran(Other(0), frame),
            vec![],
            "the program returns 0, which is no verdict",
        ),
    ];
    for (expected, ran, counted, said) in differ {
        let differs = differs(&expected, Hook::Tc, frame, &ran, &counted);
        assert_eq!(differs.as_deref(), Some(said), "{expected:?} {ran:?}");
    }
}

#[test]
fn a_disagreement_stands_out() {
    let kernel = Kernel::Ran {
        program: 12,
        answer: "redirect",
        reasons: Vec::new(),
        destination: Some("100.64.121.26:31001".parse().unwrap()),
        differs: Some("the program makes another frame of it".into()),
        note: Some("found by its name"),
    };
    insta::assert_snapshot!(format!("  {:<11} {kernel}", "kernel"));
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: TraceArgs,
}

#[test]
fn a_packet_is_given_in_one_way() {
    let parse = |line: &str| {
        let words = ["trace"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    };
    for line in [
        "--port 31001 --source 203.0.113.9:51820",
        "--port 31001 --source 203.0.113.9:51820 --type response --index 0xff --length 92",
        "--port 31001 --source [2001:db8::9]:51820 --to 2001:db8::2",
        "--hex 00 --dry-run",
        "--hex -",
        "--pcap a.pcap -o json",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
    }
    for line in [
        "",
        "--port 31001",
        "--source 203.0.113.9:51820",
        "--port 31001 --hex 00 --source 203.0.113.9:51820",
        "--hex 00 --pcap a.pcap",
        "--hex 00 --index 1",
        "--hex 00 --to 198.51.100.2",
        "--port 31001 --source 203.0.113.9",
        "--port 31001 --source 203.0.113.9:51820 --type unknown",
        "--port 31001 --source 203.0.113.9:51820 --index 4294967296",
        "--port 31001 --source 203.0.113.9:51820 --public-key short",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    assert_eq!(
        parse("--port 1 --source 1.2.3.4:5 --index 0xFF")
            .unwrap()
            .index,
        255
    );
    assert_eq!(
        parse("--port 1 --source 1.2.3.4:5 --index 255")
            .unwrap()
            .index,
        255
    );
}

#[test]
fn the_help_says_that_the_packet_is_counted() {
    let command = crate::cli::Cli::command();
    let mut trace = command.find_subcommand("trace").unwrap().clone();
    let help = trace.render_help().to_string();
    assert!(help.contains("counted like any other"), "{help}");
}

#[test]
fn nothing_pinned_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let line = ["trace", "--hex", "00", "--bpffs"].map(Into::into);
    let words = line
        .into_iter()
        .chain([folder.path().as_os_str().to_owned()]);
    let args = Line::try_parse_from(words).unwrap().args;
    let said = run(&args).unwrap_err().to_string();
    assert!(
        said.starts_with("nothing is pinned at") && said.contains("vpn-edge standalone"),
        "{said}"
    );
}
