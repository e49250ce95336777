//! Why packets are dropped, and what is counted.

use crate::Address;

/// Every reason once: the variant for the programs, the name for metrics and
/// tools, and the sentence for whoever reads them.
macro_rules! reasons {
    ($($(#[doc = $text:literal])+ $reason:ident = $name:literal,)+) => {
        /// Why a packet to or from an allocated port was dropped. One reason a
        /// packet.
        ///
        /// The discriminant is the index into [`Counters::drops`].
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[doc = $text])+ $reason,)+
        }

        impl DropReason {
            /// Every reason, at the index of its discriminant.
            pub const ALL: &[Self] = &[$(Self::$reason),+];

            /// The reason's label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$reason => concat!($($text),+).trim_ascii(),)+
                }
            }
        }
    };
}

reasons! {
    /// No gateway to steer to: being made, being replaced, gone, or without an address of the packet's IP version.
    NoGateway = "no_gateway",
    /// IPv4 options or IPv6 extension headers: the program does not read past them.
    IpOptions = "ip_options",
    /// A first fragment: the rest cannot be judged.
    Fragment = "fragment",
    /// Shorter than its headers say, or than any WireGuard message.
    Truncated = "truncated",
    /// Not a WireGuard message: type or reserved bytes.
    MessageType = "message_type",
    /// Not the length that a message of its type has.
    MessageLength = "message_length",
    /// The frame could not be rewritten.
    Rewrite = "rewrite",
    /// A handshake message whose mac1 does not know the gateway's public key.
    Mac1 = "mac1",
    /// A handshake message that was let in before.
    Replay = "replay",
    /// A receiver index that the gateway has not announced, or too long ago.
    UnknownSession = "unknown_session",
    /// More handshake messages from one source than it may send.
    SourceRate = "source_rate",
    /// More handshake messages than a gateway takes from all its clients.
    HandshakeRate = "handshake_rate",
    /// Unknown session indexes, beyond what passes after the maps were lost or on to another node.
    GraceRate = "grace_rate",
    /// More packets than the tenant's plan allows.
    PacketRate = "packet_rate",
    /// More bytes than the tenant's plan allows.
    ByteRate = "byte_rate",
    /// Several datagrams merged into one packet by the network card.
    Merged = "merged",
    /// Sent on from node to node without finding its gateway.
    HopLimit = "hop_limit",
    /// No route to the gateway's node, or back to the client.
    NoRoute = "no_route",
    /// Longer than the link to the next node takes.
    TooBig = "too_big",
    /// An answer from a gateway on another node, to a flow that this node does not know.
    UnknownFlow = "unknown_flow",
}

impl DropReason {
    /// Whether it refuses a handshake message as such.
    #[must_use]
    pub const fn refuses_handshake(self) -> bool {
        match self {
            Self::Mac1 | Self::Replay | Self::SourceRate | Self::HandshakeRate => true,
            Self::NoGateway
            | Self::IpOptions
            | Self::Fragment
            | Self::Truncated
            | Self::MessageType
            | Self::MessageLength
            | Self::Rewrite
            | Self::UnknownSession
            | Self::GraceRate
            | Self::PacketRate
            | Self::ByteRate
            | Self::Merged
            | Self::HopLimit
            | Self::NoRoute
            | Self::TooBig
            | Self::UnknownFlow => false,
        }
    }
}

/// Room for reasons that are yet to come, without a change of layout.
pub const DROP_REASONS: usize = 24;

/// A tenant's counters on one CPU. Value of [`crate::map::COUNTERS`].
///
/// Bytes are those of the IP packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub ingress_packets: u64,
    pub ingress_bytes: u64,
    pub egress_packets: u64,
    pub egress_bytes: u64,
    /// Initiations and responses that were let in, other than by grace.
    pub handshakes: u64,
    /// Session indexes that the gateway announced, by initiations and
    /// responses of its own.
    pub announced: u64,
    /// Packets that were let in though their session index was unknown.
    pub graced: u64,
    /// Packets that were sent on to the gateway's node though their session
    /// index was unknown here.
    pub relayed: u64,
    /// ICMP errors about the tenant's packets that were translated and forwarded.
    pub errors: u64,
    pub pad: u64,
    /// Dropped packets, by [`DropReason`].
    pub drops: [u64; DROP_REASONS],
    /// The [`crate::tick`] in which each reason was last sampled: the programs'
    /// own.
    pub sampled: [u32; DROP_REASONS],
}

impl Counters {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        self.ingress_packets += other.ingress_packets;
        self.ingress_bytes += other.ingress_bytes;
        self.egress_packets += other.egress_packets;
        self.egress_bytes += other.egress_bytes;
        self.handshakes += other.handshakes;
        self.announced += other.announced;
        self.graced += other.graced;
        self.relayed += other.relayed;
        self.errors += other.errors;
        for (sum, drops) in self.drops.iter_mut().zip(other.drops) {
            *sum += drops;
        }
    }
}

/// A sampled drop: at most one a [`crate::tick`] for a tenant, a reason and a
/// CPU.
/// Entry of [`crate::map::EVENTS`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Drops of the tenant for the reason on the CPU, this one included.
    pub count: u64,
    pub tenant: [u8; 16],
    pub source: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// Length of the frame.
    pub length: u16,
    /// A [`DropReason`].
    pub reason: u8,
    /// The message's first byte; zero where it could not be read.
    pub message: u8,
}

const _: () = {
    assert!(core::mem::size_of::<Counters>() == 8 * 10 + DROP_REASONS * 12);
    assert!(core::mem::size_of::<Event>() == 56);
    assert!(DropReason::ALL.len() <= DROP_REASONS);
};

#[cfg(feature = "user")]
// SAFETY: integers without padding, by the assert above.
unsafe impl aya::Pod for Counters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index_with_its_own_name() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.meaning().ends_with('.'), "{}", reason.meaning());
            let same = DropReason::ALL
                .iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{}", reason.name());
        }
    }

    #[test]
    fn the_documentation_lists_every_reason_with_its_meaning() {
        let page = include_str!("../../docs/src/reference/drop-reasons.md");
        for reason in DropReason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.meaning());
            assert!(page.contains(&row), "drop-reasons.md lacks {row}");
        }
    }
}
