use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use uuid::Uuid;
use vpn_edge_common::{Allocation, Edge, Rates, Word, frame_addresses, mapped, mode};
use vpn_edge_ebpf::{mac1, session};

use super::*;
use crate::datapath::tick_length;

const PORT: u16 = 31_001;
const SLOT: u16 = 5;
const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
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
        address: mapped(NODE.octets()),
        uplink: 1,
        session_life: ticks(185),
        seed: 0x9e37_79b9_7f4a_7c15,
    };
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
        destination: SocketAddrV4::new(NODE, PORT),
        kind,
        index,
        length: None,
        public_key: Some(public_key())
            .filter(|_| matches!(kind, Kind::Initiation | Kind::Response)),
    }
}

fn traced(tables: &Tables, fields: Fields) -> Traced {
    let mut frame = fields.frame().unwrap();
    let packet = Glance::of(&mut frame);
    let stage = |rung, name| {
        let judged = judge(tables, &packet, &frame, rung).unwrap();
        Stage {
            rung: name,
            steps: judged.steps,
            verdict: judged.verdict,
            kernel: Kernel::NotRun {
                why: "in this test".into(),
            },
        }
    };
    let mut stages = vec![stage(Rung::Xdp, "xdp")];
    if stages[0].verdict == (Verdict::Pass { why: ON_TC }) {
        stages.push(stage(Rung::Tc, "tc"));
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
                destination: SocketAddrV4::new(NODE, 31_002),
                ..fields(Kind::Data, LIVE)
            },
        ),
    ];
    let mut all = String::new();
    for (what, tables, fields) in cases {
        // Each takes what the ones before left.
        writeln!(all, "{what}\n{}", traced(tables, fields)).unwrap();
    }
    insta::assert_snapshot!(all);
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
        let differs = differs(&expected, frame, &ran, &counted);
        assert_eq!(differs, None, "{expected:?} {ran:?}");
    }
    let differ = [
        (
            Expected::Pass,
            ran(Pass, rewritten),
            vec![],
            "it passes it changed",
        ),
        (
            Expected::Pass,
            ran(Drop, frame),
            vec![DropReason::Mac1],
            "it drops it: mac1",
        ),
        (
            steer(),
            ran(Redirect, frame),
            vec![],
            "it makes another frame of it",
        ),
        (steer(), ran(Pass, frame), vec![], "it passes it"),
        (
            dropped(),
            ran(Redirect, rewritten),
            vec![],
            "it redirects it",
        ),
        (
            dropped(),
            ran(Drop, frame),
            vec![],
            "it drops it without a reason",
        ),
        (
            dropped(),
            ran(Drop, frame),
            vec![DropReason::NoGateway],
            "it drops it for another reason: no_gateway",
        ),
        (
            steer(),
            ran(Other(0), frame),
            vec![],
            "it answers 0, which means nothing",
        ),
    ];
    for (expected, ran, counted, said) in differ {
        let differs = differs(&expected, frame, &ran, &counted);
        assert_eq!(differs.as_deref(), Some(said), "{expected:?} {ran:?}");
    }
}

#[test]
fn a_disagreement_stands_out() {
    let kernel = Kernel::Ran {
        program: 12,
        answer: "redirect",
        gateway: Some(Ipv4Addr::new(100, 64, 121, 26)),
        differs: Some("it makes another frame of it".into()),
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
