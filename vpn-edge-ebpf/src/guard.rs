//! Whether a datagram can be a WireGuard message at all.

use vpn_edge_common::DropReason;
use vpn_edge_common::wire::{length, message};

/// Judges a message by its first four bytes (wire order) and its length.
///
/// # Errors
///
/// [`DropReason::MessageType`] for an unknown type or reserved bytes that are
/// not zero, [`DropReason::MessageLength`] for a length its type cannot have.
#[inline(always)]
pub fn shape(first: u32, message_length: u16) -> Result<(), DropReason> {
    // The type is the first byte, so as a little-endian number a well-formed
    // word is the type itself.
    let fits = match u32::from_le(first) {
        DATA => message_length >= length::TRANSPORT_DATA_MIN,
        INITIATION => message_length == length::INITIATION,
        RESPONSE => message_length == length::RESPONSE,
        COOKIE_REPLY => message_length == length::COOKIE_REPLY,
        _ => return Err(DropReason::MessageType),
    };
    if fits {
        Ok(())
    } else {
        Err(DropReason::MessageLength)
    }
}

const DATA: u32 = message::TRANSPORT_DATA as u32;
const INITIATION: u32 = message::INITIATION as u32;
const RESPONSE: u32 = message::RESPONSE as u32;
const COOKIE_REPLY: u32 = message::COOKIE_REPLY as u32;

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(first: [u8; 4], length: u16) -> Result<(), DropReason> {
        shape(u32::from_ne_bytes(first), length)
    }

    #[test]
    fn each_message_type_has_its_own_lengths_and_no_other() {
        for kind in 0..=u8::MAX {
            for length in 0..300 {
                let expected = match (kind, length) {
                    (1, 148) | (2, 92) | (3, 64) | (4, 32..) => Ok(()),
                    (1..=4, _) => Err(DropReason::MessageLength),
                    _ => Err(DropReason::MessageType),
                };
                assert_eq!(judge([kind, 0, 0, 0], length), expected, "{kind} {length}");
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for at in 1..4 {
            for bit in 0..8 {
                let mut first = [4, 0, 0, 0];
                first[at] |= 1 << bit;
                assert_eq!(judge(first, 128), Err(DropReason::MessageType));
            }
        }
    }
}
