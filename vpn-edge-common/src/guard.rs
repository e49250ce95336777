//! What the guard remembers of each tenant.
//!
//! All of it is [`Word`]s, which programs and user space share.

use crate::word::Word;

/// Jiffies to the unit that sessions expire in: an eighth of a second to a
/// second and a quarter, by the kernel's tick rate.
///
/// Jiffies, because reading them is one load: the kernel's cheapest clock
/// otherwise would cost as much as all of the rest of a packet's checks.
#[inline(always)]
#[must_use]
pub const fn tick(jiffies: u64) -> u32 {
    // Wraps after 17 years of uptime at the fastest rate.
    (jiffies >> 7) as u32
}

/// The same moment on two clocks. The single value of [`crate::map::CLOCK`],
/// by which user space knows what [`tick`] it is.
#[repr(C)]
#[derive(Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Clock {
    pub jiffies: Word,
    /// Nanoseconds of the monotonic clock.
    pub nanoseconds: Word,
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
    /// ICMP errors about the tenant's packets.
    pub errors: Word,
}

const _: () = {
    assert!(size_of::<Sessions>() == 512);
    assert!(size_of::<Limits>() == 64);
    assert!(size_of::<Clock>() == 16);
};
