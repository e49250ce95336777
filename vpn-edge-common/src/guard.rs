//! What the guard remembers of each tenant.
//!
//! All of it is [`Word`]s, which programs and user space share.

use crate::word::Word;

/// Nanoseconds of the monotonic clock to the unit that sessions expire in,
/// about an eighth of a second.
#[inline(always)]
#[must_use]
pub const fn tick(nanoseconds: u64) -> u32 {
    // Wraps after 18 years of uptime.
    (nanoseconds >> 27) as u32
}

/// Sessions that can be told apart in one [`Bucket`].
pub const WAYS: usize = 4;

/// A session index in the upper half, the [`tick`] it expires at in the lower.
/// Zero is none: time has passed since the machine started.
#[repr(C, align(32))]
#[derive(Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Bucket(pub [Word; WAYS]);

pub const BUCKETS: usize = 16;

/// The indexes under which a tenant's gateway takes packets. Value of
/// [`crate::map::SESSIONS`], by slot: nobody's sessions can be pushed out by
/// another tenant's.
#[repr(C)]
#[derive(Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Sessions(pub [Bucket; BUCKETS]);

/// How far a tenant has used up what it may send. Value of
/// [`crate::map::LIMITS`], by slot.
///
/// Each limit is the nanosecond until which the traffic so far pays for time
/// (the generic cell rate algorithm's theoretical arrival time).
#[repr(C, align(64))]
#[derive(Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Limits {
    pub handshakes: Word,
    /// Packets of unknown sessions.
    pub unknown: Word,
    /// The nanosecond until which unknown sessions pass; the agent's.
    pub grace: Word,
    /// Packets, to and from the gateway.
    pub packets: [Word; 2],
    /// Bytes, to and from the gateway.
    pub bytes: [Word; 2],
    pub pad: Word,
}

const _: () = {
    assert!(size_of::<Sessions>() == 512);
    assert!(size_of::<Limits>() == 64);
};
