//! WireGuard's wire format, as far as an observer without keys can check it.
//!
//! Source: the WireGuard paper, section 5.4, and `messages.h` of the kernel's
//! implementation.

/// A message's first byte; three reserved zero bytes follow.
pub mod message {
    pub const INITIATION: u8 = 1;
    pub const RESPONSE: u8 = 2;
    pub const COOKIE_REPLY: u8 = 3;
    pub const TRANSPORT_DATA: u8 = 4;
}

/// Lengths in bytes of the UDP payload.
pub mod length {
    pub const INITIATION: u16 = 148;
    pub const RESPONSE: u16 = 92;
    pub const COOKIE_REPLY: u16 = 64;
    /// A keepalive: header and tag around nothing. Transport data is padded to
    /// 16 bytes but for the last packet below the MTU, so only the minimum is
    /// certain.
    pub const TRANSPORT_DATA_MIN: u16 = 32;
}

/// Times after which WireGuard changes its mind, in nanoseconds (the paper,
/// section 6.1).
pub mod time {
    const SECOND: u64 = 1_000_000_000;
    /// A session older than this takes no packet.
    pub const REJECT_AFTER: u64 = 180 * SECOND;
    /// An initiation unanswered for as long is sent anew, with a new index.
    pub const REKEY_TIMEOUT: u64 = 5 * SECOND;
}
