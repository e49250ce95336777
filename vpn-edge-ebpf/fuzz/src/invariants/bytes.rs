//! A frame before and after it was rewritten.

use etherparse::checksum::Sum16BitWords;
use vpn_edge_common::Version;

pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Of a frame without tags, by what stands before its IP header.
pub fn version(frame: &[u8]) -> Version {
    match frame[12..14] {
        [0x08, 0x00] => Version::V4,
        [0x86, 0xdd] => Version::V6,
        _ => panic!("no IP"),
    }
}

/// Offset of the UDP header.
pub fn header(frame: &[u8]) -> usize {
    ETHERNET
        + match version(frame) {
            Version::V4 => IPV4,
            Version::V6 => IPV6,
        }
}

pub fn ports(frame: &[u8]) -> (u16, u16) {
    let at = header(frame);
    let port = |at| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (port(at), port(at + 2))
}

/// Nothing differs but what `change` does to the frame as it was, and the
/// checksums by as much as they must. Both frames are without tags.
pub fn sound(before: &[u8], after: &[u8], change: impl FnOnce(&mut [u8])) {
    let mut expected = before.to_vec();
    expected[12..14].copy_from_slice(&after[12..14]);
    change(&mut expected);
    let mut same = |at: usize| expected[at..at + 2].copy_from_slice(&after[at..at + 2]);
    let udp = header(after) + 6;
    same(udp);
    if version(after) == Version::V4 {
        same(ETHERNET + 10);
    }
    assert!(*after == *expected, "the rest of the packet is as it was");

    // The tag that stood before the IP header is the Ethernet type's place.
    let mut before = before.to_vec();
    before[12..14].copy_from_slice(&after[12..14]);
    let none = |frame: &[u8]| frame[udp..udp + 2] == [0, 0];
    assert_eq!(none(&before), none(after), "none stays none");
    // A wrong one stays wrong: who receives it is to see that.
    assert_eq!(ip_holds(&before), ip_holds(after), "the IP checksum");
    assert_eq!(udp_holds(&before), udp_holds(after), "the UDP checksum");
}

fn ip_holds(frame: &[u8]) -> bool {
    let header = &frame[ETHERNET..][..IPV4];
    version(frame) == Version::V6 || Sum16BitWords::new().add_slice(header).ones_complement() == 0
}

fn udp_holds(frame: &[u8]) -> bool {
    let at = header(frame);
    let length = [frame[at + 4], frame[at + 5]];
    let datagram = &frame[at..][..u16::from_be_bytes(length).into()];
    let addresses = match version(frame) {
        Version::V4 => ETHERNET + 12..at,
        Version::V6 => ETHERNET + 8..at,
    };
    Sum16BitWords::new()
        .add_slice(&frame[addresses])
        .add_2bytes([0, 17])
        .add_2bytes(length)
        .add_slice(datagram)
        .ones_complement()
        == 0
}
