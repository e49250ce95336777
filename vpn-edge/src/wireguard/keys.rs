//! Curve25519 keys as WireGuard uses them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the operating system gave no random bytes for a key: {0}")]
    Random(getrandom::Error),
    #[error(
        "a WireGuard key is 44 characters of base64 for 32 bytes; `wg genkey` and `wg pubkey` print such keys"
    )]
    Encoding,
    #[error(
        "this public key is one of the few that give every session the same secret; `wg genkey | wg pubkey` prints a good one"
    )]
    Weak,
}

/// A private key. Zeroed when dropped; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A new key from the operating system's random bytes.
    pub fn generate() -> Result<PrivateKey, KeyError> {
        let mut key = PrivateKey([0; 32]);
        getrandom::fill(&mut key.0).map_err(KeyError::Random)?;
        // Clamped as `wg genkey` does (RFC 7748, section 5), so that the kernel
        // shows the key as it was given.
        key.0[0] &= 0xf8;
        key.0[31] = key.0[31] & 0x7f | 0x40;
        Ok(key)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> PrivateKey {
        PrivateKey(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn from_base64(text: &str) -> Result<PrivateKey, KeyError> {
        let mut key = PrivateKey([0; 32]);
        decode(text, &mut key.0)?;
        Ok(key)
    }

    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A public key, base64 in text and JSON. What comes in as text is no point of
/// a low order, with which anybody could talk to a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let mut key = [0; 32];
        decode(text, &mut key)?;
        // With such a point every scalar's secret is zero (RFC 7748, section 6.1).
        let any = StaticSecret::from([1; 32]);
        let secret = any.diffie_hellman(&x25519_dalek::PublicKey::from(key));
        if !secret.was_contributory() {
            return Err(KeyError::Weak);
        }
        Ok(PublicKey(key))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of a tunnel's one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientKey {
    /// Made here, for the client to download.
    Made(PrivateKey),
    /// Given by the client, who keeps the private key to itself.
    Given(PublicKey),
}

impl ClientKey {
    pub fn public(&self) -> PublicKey {
        match self {
            ClientKey::Made(key) => key.public(),
            ClientKey::Given(key) => *key,
        }
    }

    /// The public key, if the client gave it.
    pub fn given(&self) -> Option<PublicKey> {
        match self {
            ClientKey::Made(_) => None,
            ClientKey::Given(key) => Some(*key),
        }
    }
}

/// The keys of one tunnel: the gateway's and its one client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub server: PrivateKey,
    pub client: ClientKey,
}

impl Keys {
    /// New keys of both ends.
    pub fn generate() -> Result<Keys, KeyError> {
        Keys::generate_for(None)
    }

    /// New keys for a client that may have given its own.
    pub fn generate_for(given: Option<PublicKey>) -> Result<Keys, KeyError> {
        Ok(Keys {
            server: PrivateKey::generate()?,
            client: match given {
                Some(key) => ClientKey::Given(key),
                None => ClientKey::Made(PrivateKey::generate()?),
            },
        })
    }
}

fn decode(text: &str, key: &mut [u8; 32]) -> Result<(), KeyError> {
    // The decoder wants room for whole groups of three bytes.
    let mut buffer = Zeroizing::new([0u8; 33]);
    match STANDARD.decode_slice(text, buffer.as_mut_slice()) {
        Ok(32) => {
            key.copy_from_slice(&buffer[..32]);
            Ok(())
        }
        _ => Err(KeyError::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first key pair of RFC 7748, section 6.1, in base64.
    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn the_public_key_is_the_one_of_the_rfc() {
        let key = PrivateKey::from_base64(PRIVATE).unwrap();
        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(key.to_base64().as_str(), PRIVATE);
    }

    #[test]
    fn generated_keys_differ_and_are_clamped() {
        let keys = [(); 2].map(|()| PrivateKey::generate().unwrap());
        assert_ne!(keys[0], keys[1]);
        for key in keys {
            assert_eq!(key.as_bytes()[0] & 7, 0);
            assert_eq!(key.as_bytes()[31] & 0xc0, 0x40);
        }
    }

    #[test]
    fn a_key_that_was_given_has_no_private_half_here() {
        let given: PublicKey = PUBLIC.parse().unwrap();
        let keys = Keys::generate_for(Some(given)).unwrap();
        assert_eq!(keys.client, ClientKey::Given(given));
        assert_eq!(
            (keys.client.public(), keys.client.given()),
            (given, Some(given))
        );
        let made = Keys::generate().unwrap().client;
        assert_eq!(made.given(), None);
        assert_ne!(made.public(), Keys::generate().unwrap().client.public());
    }

    #[test]
    fn points_of_a_low_order_are_no_public_keys() {
        let (mut one, mut above) = ([0; 32], [0xff; 32]);
        one[0] = 1;
        // The prime 2^255 - 19 itself is another zero.
        (above[0], above[31]) = (0xed, 0x7f);
        let eighth = "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=".to_owned();
        let texts = [[0; 32], one, above].map(|key| STANDARD.encode(key));
        for text in texts.into_iter().chain([eighth]) {
            let refused = text.parse::<PublicKey>();
            assert!(
                matches!(refused, Err(KeyError::Weak)),
                "{text}: {refused:?}"
            );
        }
    }

    #[test]
    fn debug_does_not_show_a_private_key() {
        let key = PrivateKey::from_base64(PRIVATE).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
    }

    #[test]
    fn a_public_key_is_base64_in_json() {
        let key: PublicKey = PUBLIC.parse().unwrap();
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{PUBLIC}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let bad = [
            "",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCp=",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCoq",
            "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n",
            "not a key",
        ];
        for text in bad {
            assert!(PrivateKey::from_base64(text).is_err(), "{text:?}");
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
    }
}
