//! What holds for any frame, whatever is in it.
//!
//! Fuzzed by `cargo xtask fuzz`, and run over all that the fuzzer ever found by
//! the unit tests of the package `tests`, which include this file.

use std::cell::RefCell;

use crate::message;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vpn_edge_common::{DropReason, NODE_SLOT, Version, Words, mode, words};
use vpn_edge_ebpf::frame::Frame;
use vpn_edge_ebpf::guard::Admitted;
use vpn_edge_ebpf::rewrite;
use vpn_edge_ebpf::steer::{self, Forward, Hook, Refusal, decide};
use vpn_edge_ebpf::tables::Tables;

// The paths are the same wherever this file is included.
#[path = "invariants/bytes.rs"]
mod bytes;
#[path = "invariants/world.rs"]
mod world;

use bytes::{ETHERNET, header, ports, sound, version};
use world::{FAR, FAR6, GATEWAY, GATEWAY6, HOP_PORTS, KEY, LIVE, MACS, NODE, NODE6, PORTS};

/// How a frame comes in: the input's first bytes.
struct Setting {
    tc: bool,
    /// Handshake messages are signed; no fuzzer would come by a mac1.
    sign: bool,
    /// What there is besides packets: see [`world::set`].
    world: world::Setting,
}

/// Where a frame went, and by what right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Gateway(Admitted),
    Node(Admitted),
    Client,
}

thread_local! {
    static TABLES: RefCell<Tables> = RefCell::new(world::tables());
}

/// Runs one input, and holds what comes of it to what must be true. Says where
/// it goes, if it does.
///
/// # Panics
///
/// When something does not hold.
pub fn check(input: &[u8]) -> Option<Way> {
    let (&[flags, state], frame) = input.split_first_chunk()?;
    let setting = Setting {
        tc: flags & 1 != 0,
        sign: flags & 2 != 0,
        world: world::Setting::new(flags, state),
    };
    let mut frame = frame.to_vec();
    if setting.sign {
        sign(&mut frame);
    }
    TABLES.with_borrow(|tables| hold(tables, &frame, &setting))
}

fn hold(tables: &Tables, frame: &[u8], setting: &Setting) -> Option<Way> {
    let hook = || if setting.tc { Hook::Tc } else { Hook::Xdp };
    // Of the frame's very size on the heap: a byte read beyond it is one that
    // AddressSanitizer watches.
    let mut seen: Box<[u8]> = frame.into();
    world::set(tables, &setting.world);
    let first = decide(&tables, &Frame::of(&mut seen), hook()).map(|steered| way(&steered));
    assert!(*seen == *frame, "a decision changes nothing of the frame");

    world::set(tables, &setting.world);
    let mut bytes: Box<[u8]> = frame.into();
    let view = Frame::of(&mut bytes);
    let second = decide(&tables, &view, hook());
    let (went, tags) = match (&first, second) {
        (Err(first), Err(second)) => {
            assert_eq!(*first, second, "decided differently the second time");
            refused(second);
            return None;
        }
        (Ok(first), Ok(steered)) => {
            let went = way(&steered);
            assert_eq!(*first, went, "went another way");
            (went, rewritten(&view, steered))
        }
        _ => panic!("decided differently the second time"),
    };
    assert!(matches!(tags, 0 | 4 | 8), "{tags} bytes of tags");
    let (before, after) = (&frame[tags..], &bytes[tags..]);
    sound(before, after, |expected| {
        addressed(tables, expected, went, setting);
    });
    entitled(after, went, setting);

    let again = decide(&tables, &Frame::of(&mut seen), hook()).map(|steered| way(&steered));
    let handshake = after[header(after) + 8] <= 2;
    if handshake && went != Way::Client {
        let replay = matches!(
            again,
            Err(Refusal::Drop {
                reason: DropReason::Replay,
                ..
            })
        );
        assert!(replay, "let in twice");
    } else {
        assert_eq!(again, Ok(went), "one packet of a session is like another");
    }
    Some(went)
}

fn refused(refusal: Refusal) {
    if let Refusal::Drop { slot, reason } = refusal {
        let hidden = slot == NODE_SLOT && reason == DropReason::IpOptions;
        assert!(hidden || usize::from(slot) < PORTS.len(), "nobody's slot");
    }
}

fn way(steered: &Forward<'_, '_>) -> Way {
    match &steered.next_hop {
        steer::NextHop::Gateway { admission, .. } => Way::Gateway(admission.by),
        steer::NextHop::Node { admission, .. } => Way::Node(admission.by),
        steer::NextHop::Client { .. } => Way::Client,
    }
}

fn rewritten(view: &Frame<'_>, steered: Forward<'_, '_>) -> usize {
    let tags = match steered.next_hop {
        steer::NextHop::Gateway { gateway, .. } => {
            let (located, addresses) = (&steered.located, steered.allocation.frame);
            rewrite::to_gateway(view, located, gateway, addresses)
        }
        steer::NextHop::Node { forwarding, .. } | steer::NextHop::Client { forwarding } => {
            rewrite::to_ends(view, forwarding)
        }
    };
    tags.expect("a parsed frame has room")
}

/// Makes of a frame what it must have become, but for checksums.
fn addressed(tables: &Tables, frame: &mut [u8], went: Way, setting: &Setting) {
    let version = version(frame);
    let (source, destination, hop_limit, length) = match version {
        Version::V4 => (ETHERNET + 12, ETHERNET + 16, ETHERNET + 8, 4),
        Version::V6 => (ETHERNET + 8, ETHERNET + 24, ETHERNET + 7, 16),
    };
    let of = |v4: [u8; 4], v6: [u8; 16]| match version {
        Version::V4 => v4.to_vec(),
        Version::V6 => v6.to_vec(),
    };
    let own = of(NODE, NODE6);
    assert_eq!(&frame[destination..][..length], own, "to the node");
    let put = |frame: &mut [u8], at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let (from, to) = ports(frame);
    let udp = header(frame);
    if matches!(went, Way::Gateway(_)) {
        put(frame, 0, &MACS[0]);
        put(frame, 6, &MACS[1]);
        put(frame, destination, &of(GATEWAY, GATEWAY6));
        return;
    }
    // No route was asked for.
    put(frame, 0, &[0; 12]);
    let limit = frame[hop_limit] - 1;
    if went == Way::Client {
        let client = setting.world.client.expect("a flow is known");
        assert_eq!(
            &frame[source..][..length],
            of(FAR, FAR6),
            "of the gateway's"
        );
        assert_eq!(usize::from(to - HOP_PORTS), world::PLACE, "by its flow");
        put(frame, hop_limit, &[limit]);
        put(frame, source, &own);
        put(frame, destination, &client.bytes(version));
        put(frame, udp + 2, &client.port.to_be_bytes());
        return;
    }
    let slot = PORTS.iter().position(|(port, ..)| *port == to);
    let flows = &tables.flows[&(slot.expect("a tenant's") as u16)];
    let client: Words = match version {
        Version::V4 => {
            let v4 = frame[source..].first_chunk().expect("an address");
            words(&vpn_edge_common::mapped(*v4))
        }
        Version::V6 => words(frame[source..].first_chunk().expect("an address")),
    };
    let place = flows.0.iter().position(|flow| {
        let [high, low] = &flow.address;
        let key = flow.key.load();
        [high.load(), low.load()] == client && (key >> 16) as u16 == from && key != 0
    });
    let place = place.expect("a flow of the client") as u16;
    put(frame, hop_limit, &[limit.min(16)]);
    put(frame, source, &own);
    put(frame, destination, &of(FAR, FAR6));
    put(frame, udp, &(HOP_PORTS + place).to_be_bytes());
}

/// An independent parser finds a message whose sender may send it.
fn entitled(frame: &[u8], went: Way, setting: &Setting) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a packet that parses");
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP");
    };
    assert!(sliced.link_exts.is_empty(), "a tag is left");
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            assert!(ip.header().options().is_empty() && !ip.is_payload_fragmented());
        }
        Some(NetSlice::Ipv6(ip)) => assert_eq!(ip.header().next_header().0, 17),
        _ => panic!("no IP"),
    }
    let port = match went {
        Way::Client => udp.source_port(),
        _ => udp.destination_port(),
    };
    let &(_, mode, limited) = PORTS
        .iter()
        .find(|(known, ..)| *known == port)
        .expect("an allocated port");
    match went {
        Way::Gateway(_) => assert!(mode == mode::XDP || (setting.tc && mode == mode::TC)),
        Way::Node(_) | Way::Client => assert_eq!(mode, mode::HOP),
    }
    let [source, handshakes, unknown, packets, bytes, grace] = setting.world.used_up;
    assert!(!limited || !(packets || bytes), "beyond the plan");
    let message = udp.payload();
    let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
    let of_session = |index| {
        let forgiven = grace || matches!(went, Way::Node(_));
        went == Way::Client || index == LIVE || (forgiven && !unknown)
    };
    let handshake = || {
        let signed = message::signed(message, &KEY) && !source && !handshakes;
        went == Way::Client || signed
    };
    let good = match (message.first_chunk(), message.len()) {
        (Some([1, 0, 0, 0]), 148) => handshake(),
        (Some([2, 0, 0, 0]), 92) => handshake() && of_session(word(8)),
        (Some([3, 0, 0, 0]), 64) | (Some([4, 0, 0, 0]), 32..) => of_session(word(4)),
        _ => false,
    };
    assert!(good, "let in as {went:?}: {message:02x?}");
    let by_handshake = matches!(
        went,
        Way::Gateway(Admitted::Handshake) | Way::Node(Admitted::Handshake)
    );
    assert!(!by_handshake || message[0] <= 2);
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
