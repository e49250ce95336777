//! WireGuard messages as an observer knows them: what stands encrypted in them
//! is a pattern, and mac1 is by the `blake2` crate, never by the code under
//! test.

use blake2::digest::Digest;
use blake2::digest::Mac;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac};

/// Offset of mac1 from the message's end, and its own length and mac2's.
const MACS: usize = 32;
const MAC: usize = 16;

/// An initiation of the sender's index `sender` to the holder of `public_key`.
#[must_use]
pub fn initiation(sender: u32, public_key: &[u8; 32]) -> Vec<u8> {
    let mut message = unsigned(1, 148, &[sender]);
    sign(&mut message, public_key);
    message
}

/// A response of `sender` to the initiation that announced `receiver`.
#[must_use]
pub fn response(sender: u32, receiver: u32, public_key: &[u8; 32]) -> Vec<u8> {
    let mut message = unsigned(2, 92, &[sender, receiver]);
    sign(&mut message, public_key);
    message
}

#[must_use]
pub fn cookie_reply(receiver: u32) -> Vec<u8> {
    unsigned(3, 64, &[receiver])
}

/// Transport data that is `length` bytes long.
#[must_use]
pub fn data(receiver: u32, length: usize) -> Vec<u8> {
    unsigned(4, length, &[receiver])
}

/// A message of `kind`, its first words after that, and a pattern up to
/// `length` bytes.
#[must_use]
pub fn unsigned(kind: u8, length: usize, words: &[u32]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    message.extend((message.len()..length).map(|at| at as u8));
    message.truncate(length);
    message
}

/// Writes the mac1 of a handshake message to the holder of `public_key`.
pub fn sign(message: &mut [u8], public_key: &[u8; 32]) {
    let at = message.len() - MACS;
    let mac1 = mac1(&message[..at], public_key);
    message[at..at + MAC].copy_from_slice(&mac1);
}

/// Whether a handshake message carries the mac1 for the holder of `public_key`.
#[must_use]
pub fn signed(message: &[u8], public_key: &[u8; 32]) -> bool {
    let at = message.len() - MACS;
    mac1(&message[..at], public_key) == message[at..at + MAC]
}

fn mac1(covered: &[u8], public_key: &[u8; 32]) -> [u8; MAC] {
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(public_key)
        .finalize();
    Blake2sMac::<U16>::new_from_slice(&key)
        .expect("as long as BLAKE2s' keys may be")
        .chain_update(covered)
        .finalize()
        .into_bytes()
        .into()
}
