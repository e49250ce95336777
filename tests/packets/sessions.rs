//! Session indexes: until when they hold, whose they are, and grace.

use std::time::Duration;

use lab::message;
use lab::packet::Packet;
use lab::programs::Hook;
use vpn_edge::datapath::{Change, SlotState as Kept};
use vpn_edge_common::{DropReason, tick};

use crate::node::{
    GATEWAY, INDEX, KEY, Node, OTHER_INDEX, OTHER_PORT, PORT, SLOT, UNKNOWN_INDEX, Verdict, data,
    now,
};

/// Every kind of packet that names a session.
fn naming(index: u32) -> [(&'static str, Packet); 3] {
    [
        ("data", Packet::to(PORT, message::data(index, 128))),
        (
            "cookie reply",
            Packet::to(PORT, message::cookie_reply(index)),
        ),
        (
            "response",
            Packet::to(PORT, message::response(1, index, &KEY)),
        ),
    ]
}

/// Changes when the live session expires.
fn expire(node: &Node, at: u32) {
    let entry = node.memory.entries(SLOT, INDEX).next().unwrap();
    entry.store(u64::from(INDEX) << 32 | u64::from(at));
}

#[test]
fn a_session_holds_until_it_expires() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        for (what, packet) in naming(INDEX) {
            // Whatever a test takes, these stay on their side of now.
            let now = node.datapath.maps.tick();
            expire(&node, now + 1000);
            assert_eq!(node.verdict(hook, &packet), Verdict::Steer, "{what}");
            // Half a jiffy is what user space may be off by.
            for past in [now - 1, 1] {
                expire(&node, past);
                let expected = Verdict::Drop(DropReason::UnknownSession);
                assert_eq!(node.verdict(hook, &packet), expected, "{what} {past}");
            }
        }
    }
}

#[test]
fn an_announced_session_expires_185_seconds_later() {
    let node = Node::new();
    let now = node.datapath.maps.tick();
    let entry = node.memory.entries(SLOT, INDEX).next().unwrap().load();
    // The coarse clock advances with every jiffy.
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    let jiffy = Duration::from(nix::time::clock_getres(clock).unwrap());
    let life = tick((185_000_000_000 / jiffy.as_nanos()) as u64);
    let expected = now + life - 1..=now + life + 2;
    assert!(expected.contains(&(entry as u32)), "{entry:#x} at {now:#x}");
}

#[test]
fn one_tenants_sessions_cannot_push_out_anothers() {
    let mut node = Node::new();
    for count in 0..2000_u32 {
        node.announce(&GATEWAY, PORT, count.wrapping_mul(0x0101_6b35));
    }
    let packet = Packet::to(OTHER_PORT, message::data(OTHER_INDEX, 128));
    assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Steer);
    let held = node.datapath.maps.sessions(SLOT);
    assert_eq!(
        held, 64,
        "of the announced ones, as many as a slot has room for"
    );
    assert_eq!(node.datapath.maps.sessions(SLOT + 2), 1);
}

#[test]
fn a_session_of_one_tenant_opens_no_other_port() {
    let mut node = Node::new();
    let packet = Packet::to(OTHER_PORT, message::data(INDEX, 128));
    let expected = Verdict::Drop(DropReason::UnknownSession);
    assert_eq!(node.verdict(Hook::Xdp, &packet), expected);
}

#[test]
fn a_tenant_that_gets_grace_has_its_unknown_sessions_let_in_and_counted() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        let change = Change {
            port: PORT,
            allocation: node.datapath.maps.allocation(PORT).unwrap(),
            memory: Kept::Keep,
            grace: true,
        };
        node.datapath.maps.publish(&[change]).unwrap();
        for (count, (what, packet)) in naming(UNKNOWN_INDEX).into_iter().enumerate() {
            assert_eq!(node.verdict(hook, &packet), Verdict::Steer, "{what}");
            let counters = node.counters(SLOT);
            assert_eq!(counters.graced, count as u64 + 1, "{what}");
            assert_eq!(counters.handshakes, 0, "{what}");
        }
        let forged = Packet::to(PORT, message::response(1, UNKNOWN_INDEX, &[0; 32]));
        let expected = Verdict::Drop(DropReason::Mac1);
        assert_eq!(
            node.verdict(hook, &forged),
            expected,
            "grace forgives no mac1"
        );
        assert_eq!(node.verdict(hook, &data()), Verdict::Steer);
        assert_eq!(node.counters(SLOT).graced, 3, "a known session needs none");
    }
}

#[test]
fn grace_ends_with_its_time() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        let (_, packet) = naming(UNKNOWN_INDEX).into_iter().next().unwrap();
        let grace = |node: &Node, until| {
            let limits = &node.memory.limits[usize::from(SLOT)];
            limits.grace.store(until);
        };
        grace(&node, now() + 60_000_000_000);
        assert_eq!(node.verdict(hook, &packet), Verdict::Steer);
        // Longer ago than the programs' clock is coarse.
        for past in [now() - 20_000_000, 1, 0] {
            grace(&node, past);
            let expected = Verdict::Drop(DropReason::UnknownSession);
            assert_eq!(node.verdict(hook, &packet), expected, "{past}");
        }
        assert_eq!(node.counters(SLOT).graced, 1);
    }
}
