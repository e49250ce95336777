//! mac1, through the program: who knows a gateway's key.

use lab::message;
use lab::packet::Packet;
use lab::programs::{Hook, Skb};
use vpn_edge_common::{DropReason, program};

use crate::node::{INDEX, KEY, Node, PORT, SLOT, Verdict, data, from_source, initiation};

/// Holds every bit of a handshake packet's message to what mac1 covers.
fn only_mac2_may_change(hook: Hook, packet: &Packet) {
    let mut node = Node::new();
    let sound = packet.bytes();
    let mac2 = sound.len() - 16;
    for bit in 0..packet.message.len() * 8 {
        let at = packet.message_at() + bit / 8;
        let mut bent = sound.clone();
        bent[at] ^= 1 << (bit % 8);
        node.memory.forget_rates();
        node.memory.forget_replays(SLOT);
        let (verdict, _) = node.ingress(hook, &bent);
        match verdict {
            Verdict::Steer => assert!(at >= mac2, "{hook:?}: bit {bit} of the message is free"),
            Verdict::Drop(_) => assert!(at < mac2, "{hook:?}: bit {bit} is mac2's: {verdict:?}"),
            Verdict::Pass | Verdict::Back => panic!("{hook:?}: bit {bit}: {verdict:?}"),
        }
    }
    assert_eq!(node.counters(SLOT).handshakes, 128);
}

#[test]
fn xdp_refuses_an_initiation_with_any_bit_changed_but_those_of_mac2() {
    only_mac2_may_change(Hook::Xdp, &initiation());
}

#[test]
fn tc_refuses_an_initiation_with_any_bit_changed_but_those_of_mac2() {
    only_mac2_may_change(Hook::Tc, &initiation());
}

#[test]
fn a_response_with_any_bit_changed_is_refused_but_those_of_mac2_and_its_index() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let response = Packet::to(PORT, message::response(1, INDEX, &KEY));
        only_mac2_may_change(hook, &response);
    }
}

#[test]
fn many_signed_messages_are_let_in_and_no_wrongly_signed_one() {
    let mut node = Node::new();
    for seed in 0..500_u32 {
        let sender = seed.wrapping_mul(0x9e37_79b1);
        let mut messages = [
            message::initiation(sender, &KEY),
            message::response(sender, INDEX, &KEY),
        ];
        for message in &mut messages {
            let at = 20 + seed as usize % 20;
            message[at] ^= seed as u8;
            node.memory.forget_rates();
            let expected = match message::signed(message, &KEY) {
                true => Verdict::Steer,
                false => Verdict::Drop(DropReason::Mac1),
            };
            let packet = Packet::to(PORT, message.clone());
            assert_eq!(node.verdict(Hook::Xdp, &packet), expected, "{seed}");
            message::sign(message, &KEY);
            node.memory.forget_replays(SLOT);
            let packet = Packet::to(PORT, message.clone());
            assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Steer, "{seed}");
        }
    }
}

#[test]
fn a_handshake_message_is_let_in_once() {
    for hook in [Hook::Xdp, Hook::Tc] {
        for message in [
            message::initiation(7, &KEY),
            message::response(7, INDEX, &KEY),
        ] {
            let mut node = Node::new();
            let packet = Packet::to(PORT, message);
            let elsewhere = from_source(3, packet.clone());
            let bent = packet.clone().with(|packet| {
                let mac2 = packet.message.len() - 1;
                packet.message[mac2] ^= 1;
            });
            assert_eq!(node.verdict(hook, &packet), Verdict::Steer);
            for again in [&packet, &elsewhere, &bent] {
                let expected = Verdict::Drop(DropReason::Replay);
                assert_eq!(node.verdict(hook, again), expected, "{hook:?}");
            }
            assert_eq!(node.counters(SLOT).handshakes, 1);
        }
    }
}

#[test]
fn a_handshake_message_that_was_refused_may_come_again() {
    let mut node = Node::new();
    let packet = initiation();
    let handshakes = &node.memory.limits[usize::from(SLOT)].handshakes;
    handshakes.store(u64::MAX / 2);
    let expected = Verdict::Drop(DropReason::HandshakeRate);
    assert_eq!(node.verdict(Hook::Xdp, &packet), expected);
    node.memory.forget_rates();
    assert_eq!(node.verdict(Hook::Xdp, &packet), Verdict::Steer);
    // Of the two reasons there are now, the first.
    let handshakes = &node.memory.limits[usize::from(SLOT)].handshakes;
    handshakes.store(u64::MAX / 2);
    let expected = Verdict::Drop(DropReason::Replay);
    assert_eq!(node.verdict(Hook::Xdp, &packet), expected);
}

#[test]
fn several_datagrams_merged_into_one_packet_are_refused() {
    let mut node = Node::new();
    for packet in [data(), initiation()] {
        let bytes = packet.bytes();
        let skb = Skb {
            gso_segs: 2,
            gso_size: 64,
            ..Skb::default()
        };
        let (verdict, out) = node.run(program::INGRESS_TC, &bytes, skb);
        assert_eq!(verdict, Verdict::Drop(DropReason::Merged));
        assert_eq!(out, bytes);
    }
}
