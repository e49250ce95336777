//! What holds for any frame, whatever is in it.
//!
//! Fuzzed by `cargo xtask fuzz`, and run over all that the fuzzer ever found by
//! the unit tests of the package `tests`, which include this file.

use std::cell::RefCell;

use crate::message;
use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vpn_edge_common::{Allocation, DropReason, Limits, Rates, frame_addresses, mapped, mode};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::Admitted;
use vpn_edge_ebpf::steer::{Refusal, Rung, decide};
use vpn_edge_ebpf::tables::Tables;
use vpn_edge_ebpf::{mac1, rewrite, session};

const NODE: [u8; 4] = [198, 51, 100, 2];
const GATEWAY: [u8; 4] = [100, 64, 121, 25];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 3]];
const KEY: [u8; 32] = [0x4b; 32];
const LIVE: u32 = 1;
const NOW: u64 = 1_000_000_000_000;
const TICK: u32 = 1000;
const LIFE: u32 = 100;

/// Ports, their modes, and whether a plan limits them.
const PORTS: [(u16, u8, bool); 4] = [
    (31_001, mode::XDP, false),
    (31_002, mode::XDP, true),
    (31_003, mode::CLOSED, false),
    (31_004, mode::TC, true),
];

const ETHERNET: usize = 14;
const IP: usize = 20;

/// How a frame comes in: the input's first bytes.
struct Setting {
    tc: bool,
    /// Handshake messages are signed; no fuzzer would come by a mac1.
    sign: bool,
    /// A bit for each rate that is used up, and for grace.
    state: u8,
}

thread_local! {
    static TABLES: RefCell<Tables> = RefCell::new(tables());
}

/// Runs one input, and holds what comes of it to what must be true. Says by
/// what right it is steered, if it is.
///
/// # Panics
///
/// When something does not hold.
pub fn check(input: &[u8]) -> Option<Admitted> {
    let (&[flags, state], frame) = input.split_first_chunk()?;
    let setting = Setting {
        tc: flags & 1 != 0,
        sign: flags & 2 != 0,
        state,
    };
    let mut frame = frame.to_vec();
    if setting.sign {
        sign(&mut frame);
    }
    TABLES.with_borrow(|tables| hold(tables, &frame, &setting))
}

fn hold(tables: &Tables, frame: &[u8], setting: &Setting) -> Option<Admitted> {
    let rung = || if setting.tc { Rung::Tc } else { Rung::Xdp };
    // Of the frame's very size on the heap: a byte read beyond it is one that
    // AddressSanitizer watches.
    let mut seen: Box<[u8]> = frame.into();
    set(tables, setting.state);
    let first = decide(&tables, &Frame::of(&mut seen), rung()).map(|steered| steered.admitted);
    assert!(*seen == *frame, "a decision changes nothing of the frame");

    set(tables, setting.state);
    let mut bytes: Box<[u8]> = frame.into();
    let view = Frame::of(&mut bytes);
    let second = decide(&tables, &view, rung());
    let (admitted, tags) = match (&first, second) {
        (Err(first), Err(second)) => {
            assert_eq!(*first, second, "decided differently the second time");
            if let Refusal::Drop { slot, .. } = second {
                assert!(usize::from(slot) < PORTS.len(), "nobody's slot");
            }
            return None;
        }
        (Ok(first), Ok(steered)) => {
            assert_eq!(*first, steered.admitted, "admitted differently");
            let tags = rewrite::to_gateway(&view, &steered).expect("a parsed frame has room");
            (steered.admitted, tags)
        }
        _ => panic!("decided differently the second time"),
    };
    assert!(matches!(tags, 0 | 4 | 8), "{tags} bytes of tags");
    sound(&frame[tags..], &bytes[tags..]);
    entitled(&bytes[tags..], admitted, setting);

    let again = decide(&tables, &Frame::of(&mut seen), rung()).map(|steered| steered.admitted);
    let handshake = bytes[tags + ETHERNET + IP + 8] <= 2;
    if handshake {
        let replay = matches!(
            again,
            Err(Refusal::Drop {
                reason: DropReason::Replay,
                ..
            })
        );
        assert!(replay, "let in twice");
    } else {
        assert_eq!(
            again,
            Ok(admitted),
            "one packet of a session is like another"
        );
    }
    Some(admitted)
}

/// Only addresses and checksums differ, the checksums by as much as they must.
fn sound(before: &[u8], after: &[u8]) {
    let mut expected = before.to_vec();
    expected[..6].copy_from_slice(&MACS[0]);
    expected[6..12].copy_from_slice(&MACS[1]);
    expected[12..14].copy_from_slice(&[0x08, 0x00]);
    assert_eq!(before[ETHERNET + 16..][..4], NODE, "to the node");
    expected[ETHERNET + 16..][..4].copy_from_slice(&GATEWAY);
    for at in [ETHERNET + 10, ETHERNET + IP + 6] {
        expected[at..at + 2].copy_from_slice(&after[at..at + 2]);
    }
    assert!(*after == *expected, "the rest of the packet is as it was");

    let udp_checksum = |frame: &[u8]| frame[ETHERNET + IP + 6..][..2] == [0, 0];
    assert_eq!(udp_checksum(before), udp_checksum(after), "none stays none");
    // A wrong one stays wrong: who receives it is to see that.
    assert_eq!(ip_holds(before), ip_holds(after), "the IP checksum");
    assert_eq!(udp_holds(before), udp_holds(after), "the UDP checksum");
}

fn ip_holds(frame: &[u8]) -> bool {
    let header = &frame[ETHERNET..][..IP];
    Sum16BitWords::new().add_slice(header).ones_complement() == 0
}

fn udp_holds(frame: &[u8]) -> bool {
    let ip = &frame[ETHERNET..];
    let length = [ip[IP + 4], ip[IP + 5]];
    let datagram = &ip[IP..][..u16::from_be_bytes(length).into()];
    Sum16BitWords::new()
        .add_slice(&ip[12..20])
        .add_2bytes([0, 17])
        .add_2bytes(length)
        .add_slice(datagram)
        .ones_complement()
        == 0
}

/// An independent parser finds a message whose sender may send it.
fn entitled(frame: &[u8], admitted: Admitted, setting: &Setting) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a packet that parses");
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport)
    else {
        panic!("no UDP over IPv4");
    };
    assert!(sliced.link_exts.is_empty(), "a tag is left");
    assert!(ip.header().options().is_empty() && !ip.is_payload_fragmented());
    let port = udp.destination_port();
    let &(_, mode, limited) = PORTS
        .iter()
        .find(|(known, ..)| *known == port)
        .expect("an allocated port");
    assert!(mode == mode::XDP || (setting.tc && mode == mode::TC));

    let [source, handshakes, unknown, packets, bytes, grace] = bits(setting.state);
    assert!(!limited || !(packets || bytes), "beyond the plan");
    let message = udp.payload();
    let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
    let of_session = |index| index == LIVE || (grace && !unknown);
    let handshake = || message::signed(message, &KEY) && !source && !handshakes;
    let good = match (message.first_chunk(), message.len()) {
        (Some([1, 0, 0, 0]), 148) => handshake(),
        (Some([2, 0, 0, 0]), 92) => handshake() && of_session(word(8)),
        (Some([3, 0, 0, 0]), 64) | (Some([4, 0, 0, 0]), 32..) => of_session(word(4)),
        _ => false,
    };
    assert!(good, "let in as {admitted:?}: {message:02x?}");
    assert!(admitted != Admitted::Handshake || message[0] <= 2);
}

/// Signs the message that ends with the frame, if one of its length can.
fn sign(frame: &mut [u8]) {
    for length in [148, 92] {
        if let Some(at) = frame.len().checked_sub(length)
            && matches!((frame[at], length), (1, 148) | (2, 92))
        {
            message::sign(&mut frame[at..], &KEY);
            return;
        }
    }
}

fn bits(state: u8) -> [bool; 6] {
    std::array::from_fn(|bit| state >> bit & 1 != 0)
}

/// Uses up what the input says, for every tenant and every source.
fn set(tables: &Tables, state: u8) {
    let word = |used_up: bool| if used_up { u64::MAX / 2 } else { 0 };
    let [source, handshakes, unknown, packets, bytes, grace] = bits(state).map(word);
    tables.sources[0].store(source);
    for replays in tables.replays.values() {
        for way in replays.0.iter().flat_map(|bucket| &bucket.0) {
            way.store(0);
        }
    }
    for Limits {
        handshakes: of_handshakes,
        unknown: of_unknown,
        grace: until,
        packets: [of_packets, _],
        bytes: [of_bytes, _],
        pad: _,
    } in tables.limits.values()
    {
        of_handshakes.store(handshakes);
        of_unknown.store(unknown);
        until.store(grace);
        of_packets.store(packets);
        of_bytes.store(bytes);
    }
}

fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.edge.address = mapped(NODE);
    // All sources share the first bucket.
    tables.edge.seed = 0;
    tables.edge.session_life = LIFE;
    tables.now = NOW;
    tables.tick = TICK;
    for (slot, (port, mode, limited)) in (0..).zip(PORTS) {
        let allocation = Allocation {
            mode,
            limited: limited.into(),
            slot,
            ifindex: 1,
            frame: frame_addresses(MACS[0], MACS[1]),
            gateway: mapped(GATEWAY),
            mac1: mac1::key(&KEY),
            rates: Rates {
                packet: 1000,
                byte: 1000,
            },
            ..Allocation::default()
        };
        tables.insert(port, allocation);
        let sessions = &tables.sessions[&slot];
        session::announce(session::bucket(sessions, LIVE), LIVE, TICK + LIFE);
    }
    tables
}
