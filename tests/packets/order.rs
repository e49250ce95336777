//! One reason a packet: of several that would do, the first in this order.

use lab::message::{self, unsigned};
use lab::packet::Packet;
use lab::programs::Hook;
use vpn_edge_common::{DropReason, Limits, Rates};

use crate::node::{
    CLOSED_PORT, INDEX, KEY, Node, OTHER_KEY, PORT, SLOT, UNKNOWN_INDEX, Verdict, data, initiation,
};

/// Used up for longer than any test runs.
const USED_UP: u64 = u64::MAX / 2;

/// What is used up before the packet comes.
#[derive(Default)]
struct UsedUp {
    source: bool,
    handshakes: bool,
    grace: bool,
    packets: bool,
    bytes: bool,
}

impl UsedUp {
    const NOTHING: Self = Self {
        source: false,
        handshakes: false,
        grace: false,
        packets: false,
        bytes: false,
    };
    const PLAN: Self = Self {
        packets: true,
        bytes: true,
        ..Self::NOTHING
    };
    const BEHIND_MAC1: Self = Self {
        handshakes: true,
        ..Self::PLAN
    };
    const ALL: Self = Self {
        source: true,
        grace: true,
        ..Self::BEHIND_MAC1
    };

    fn set(&self, node: &Node) {
        let word = |used_up| if used_up { USED_UP } else { 0 };
        for source in &*node.memory.sources {
            source.store(word(self.source));
        }
        let Limits {
            handshakes,
            unknown,
            grace,
            packets,
            bytes,
            errors: _,
        } = &node.memory.limits[usize::from(SLOT)];
        handshakes.store(word(self.handshakes));
        unknown.store(word(self.grace));
        grace.store(word(self.grace));
        packets[0].store(word(self.packets));
        bytes[0].store(word(self.bytes));
    }
}

fn cases() -> Vec<(UsedUp, DropReason, Packet)> {
    let forged = message::initiation(1, &OTHER_KEY);
    let response = |receiver, key| Packet::to(PORT, message::response(1, receiver, key));
    let optional = |packet: &mut Packet| packet.options = vec![1; 4];
    let fragmented = |packet: &mut Packet| packet.more_fragments = true;
    vec![
        (
            UsedUp::ALL,
            DropReason::Fragment,
            Packet::to(PORT, unsigned(9, 20, &[]))
                .with(optional)
                .with(fragmented),
        ),
        (
            UsedUp::ALL,
            DropReason::IpOptions,
            Packet::to(PORT, unsigned(9, 20, &[])).with(optional),
        ),
        (
            UsedUp::ALL,
            DropReason::Truncated,
            Packet::to(PORT, unsigned(9, 20, &[])),
        ),
        (
            UsedUp::ALL,
            DropReason::MessageType,
            Packet::to(CLOSED_PORT, unsigned(9, 149, &[])),
        ),
        (
            UsedUp::ALL,
            DropReason::MessageLength,
            Packet::to(CLOSED_PORT, unsigned(1, 149, &[])),
        ),
        (
            UsedUp::ALL,
            DropReason::NoGateway,
            Packet::to(CLOSED_PORT, forged.clone()),
        ),
        (
            UsedUp::ALL,
            DropReason::SourceRate,
            Packet::to(PORT, forged.clone()),
        ),
        (
            UsedUp::BEHIND_MAC1,
            DropReason::Mac1,
            Packet::to(PORT, forged),
        ),
        (UsedUp::BEHIND_MAC1, DropReason::HandshakeRate, initiation()),
        (UsedUp::PLAN, DropReason::PacketRate, initiation()),
        (
            UsedUp {
                source: true,
                ..UsedUp::BEHIND_MAC1
            },
            DropReason::UnknownSession,
            response(UNKNOWN_INDEX, &OTHER_KEY),
        ),
        (
            UsedUp::ALL,
            DropReason::GraceRate,
            response(UNKNOWN_INDEX, &OTHER_KEY),
        ),
        (
            UsedUp::ALL,
            DropReason::SourceRate,
            response(INDEX, &OTHER_KEY),
        ),
        (
            UsedUp::BEHIND_MAC1,
            DropReason::Mac1,
            response(INDEX, &OTHER_KEY),
        ),
        (
            UsedUp::BEHIND_MAC1,
            DropReason::HandshakeRate,
            response(INDEX, &KEY),
        ),
        (
            UsedUp::ALL,
            DropReason::GraceRate,
            Packet::to(PORT, message::data(UNKNOWN_INDEX, 128)),
        ),
        (
            UsedUp::BEHIND_MAC1,
            DropReason::UnknownSession,
            Packet::to(PORT, message::data(UNKNOWN_INDEX, 128)),
        ),
        (UsedUp::ALL, DropReason::PacketRate, data()),
        (
            UsedUp {
                bytes: true,
                ..UsedUp::NOTHING
            },
            DropReason::ByteRate,
            data(),
        ),
    ]
}

#[test]
fn of_several_reasons_to_drop_a_packet_the_first_is_counted_and_no_other() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut node = Node::new();
        node.limit(Rates {
            packet: 1,
            byte: 1024,
        });
        for (number, (used_up, reason, packet)) in cases().into_iter().enumerate() {
            used_up.set(&node);
            let expected = Verdict::Drop(reason);
            assert_eq!(node.verdict(hook, &packet), expected, "{hook:?} {number}");
        }
        UsedUp::NOTHING.set(&node);
        assert_eq!(node.verdict(hook, &initiation()), Verdict::Steer);
        assert_eq!(node.verdict(hook, &data()), Verdict::Steer);
    }
}
