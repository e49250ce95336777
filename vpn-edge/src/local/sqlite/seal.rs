//! Private keys in the database: encrypted, each bound to its place.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::wireguard::PrivateKey;

const ID: usize = 8;
const NONCE: usize = 24;
const KEY: usize = 32;
const TAG: usize = 16;

/// Size of a sealed private key: the sealing key's ID, the nonce, the ciphertext and
/// its tag.
pub const SEALED: usize = ID + NONCE + KEY + TAG;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("it is encrypted under key {0}, which is not available")]
    UnknownKey(KeyId),
    #[error("it was changed, or is another tenant's")]
    Forged,
}

/// Identifies a key without revealing anything of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; ID]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that encrypts private keys.
#[derive(Clone)]
pub struct SealingKey {
    key: Zeroizing<[u8; KEY]>,
    id: KeyId,
}

impl SealingKey {
    fn new(key: Zeroizing<[u8; KEY]>) -> SealingKey {
        // A tag over a constant text. This nonce is never used to seal a key.
        let tag = cipher(&key)
            .encrypt_in_place_detached(&XNonce::default(), b"vpn-edge sealing key", &mut [])
            .expect("nothing is not too long");
        let mut id = [0; ID];
        id.copy_from_slice(&tag[..ID]);
        SealingKey { key, id: KeyId(id) }
    }

    pub fn generate() -> Result<SealingKey, SealError> {
        let mut key = Zeroizing::new([0; KEY]);
        getrandom::fill(key.as_mut_slice()).map_err(SealError::Random)?;
        Ok(SealingKey::new(key))
    }

    /// None if it is not base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Option<SealingKey> {
        // The decoder needs room for whole groups of three bytes.
        let mut bytes = Zeroizing::new([0; 33]);
        if STANDARD.decode_slice(text, bytes.as_mut_slice()).ok()? != KEY {
            return None;
        }
        let mut key = Zeroizing::new([0; KEY]);
        key.copy_from_slice(&bytes[..KEY]);
        Some(SealingKey::new(key))
    }

    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.key.as_slice()))
    }

    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// Zeroed when dropped.
fn cipher(key: &[u8; KEY]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

/// Where a private key belongs: a ciphertext can be decrypted only in its own place.
#[derive(Clone, Copy, Debug)]
pub struct AssociatedData {
    pub tenant: Uuid,
    pub generation: u64,
    /// The client-provided public key, if there is one, so that it cannot be
    /// exchanged.
    pub given: Option<[u8; KEY]>,
    /// The column of the table.
    pub column: &'static str,
}

impl AssociatedData {
    /// Unique per place: only the last part has a variable length.
    fn associated_data(&self) -> Vec<u8> {
        let generation = self.generation.to_be_bytes();
        let given = self.given.unwrap_or_default();
        let parts: [&[u8]; 5] = [
            self.tenant.as_bytes(),
            &generation,
            &[u8::from(self.given.is_some())],
            &given,
            self.column.as_bytes(),
        ];
        parts.concat()
    }
}

/// The available sealing keys: the first one seals, each of them can open. Never
/// empty.
#[derive(Clone)]
pub struct KeyRing(Vec<SealingKey>);

impl KeyRing {
    /// None without any key.
    pub fn new(keys: Vec<SealingKey>) -> Option<KeyRing> {
        (!keys.is_empty()).then_some(KeyRing(keys))
    }

    /// These keys, plus `more` that can open.
    pub fn and(mut self, more: &[SealingKey]) -> KeyRing {
        self.0.extend_from_slice(more);
        self
    }

    pub fn keys(&self) -> &[SealingKey] {
        &self.0
    }

    pub fn has(&self, id: KeyId) -> bool {
        self.0.iter().any(|key| key.id() == id)
    }

    pub fn first(&self) -> &SealingKey {
        &self.0[0]
    }

    pub fn seal(&self, key: &PrivateKey, place: AssociatedData) -> Result<[u8; SEALED], SealError> {
        let mut sealed = [0; SEALED];
        let (id, rest) = sealed.split_at_mut(ID);
        let (nonce, rest) = rest.split_at_mut(NONCE);
        let (text, tag) = rest.split_at_mut(KEY);
        id.copy_from_slice(&self.first().id().0);
        getrandom::fill(nonce).map_err(SealError::Random)?;
        text.copy_from_slice(key.as_bytes());
        let made = cipher(&self.first().key)
            .encrypt_in_place_detached(XNonce::from_slice(nonce), &place.associated_data(), text)
            .expect("32 bytes are not too long");
        tag.copy_from_slice(&made);
        Ok(sealed)
    }

    pub fn open(
        &self,
        sealed: &[u8; SEALED],
        place: AssociatedData,
    ) -> Result<PrivateKey, SealError> {
        let (nonce, rest) = sealed[ID..].split_at(NONCE);
        let (text, tag) = rest.split_at(KEY);
        let id = sealed_under(sealed);
        let mut keys = self.0.iter();
        let key = keys.find(|key| key.id() == id);
        let key = key.ok_or(SealError::UnknownKey(id))?;
        let mut bytes = Zeroizing::new([0; KEY]);
        bytes.copy_from_slice(text);
        cipher(&key.key)
            .decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                &place.associated_data(),
                bytes.as_mut_slice(),
                Tag::from_slice(tag),
            )
            .map_err(|_| SealError::Forged)?;
        Ok(PrivateKey::from_bytes(*bytes))
    }
}

/// The ID of the key that can open this.
pub fn sealed_under(sealed: &[u8; SEALED]) -> KeyId {
    let mut id = [0; ID];
    id.copy_from_slice(&sealed[..ID]);
    KeyId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(keys: &[&SealingKey]) -> KeyRing {
        KeyRing::new(keys.iter().copied().cloned().collect()).unwrap()
    }

    const PLACE: AssociatedData = AssociatedData {
        tenant: Uuid::from_u128(7),
        generation: 3,
        given: Some([9; KEY]),
        column: "server_key",
    };

    #[test]
    fn what_is_sealed_opens_in_its_place_alone() {
        let sealing = SealingKey::generate().unwrap();
        let ring = ring(&[&sealing]);
        let key = PrivateKey::generate().unwrap();
        let sealed = ring.seal(&key, PLACE).unwrap();
        assert_eq!(ring.open(&sealed, PLACE), Ok(key.clone()));
        assert_ne!(ring.seal(&key, PLACE).unwrap(), sealed, "a nonce once");
        let others = [
            AssociatedData {
                tenant: Uuid::from_u128(8),
                ..PLACE
            },
            AssociatedData {
                generation: 4,
                ..PLACE
            },
            AssociatedData {
                given: Some([8; KEY]),
                ..PLACE
            },
            AssociatedData {
                given: None,
                ..PLACE
            },
            AssociatedData {
                column: "client_key",
                ..PLACE
            },
        ];
        for place in others {
            assert_eq!(
                ring.open(&sealed, place),
                Err(SealError::Forged),
                "{place:?}"
            );
        }
        for at in ID..SEALED {
            let mut changed = sealed;
            changed[at] ^= 1;
            assert_eq!(ring.open(&changed, PLACE), Err(SealError::Forged), "{at}");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let [old, new] = [(); 2].map(|()| SealingKey::generate().unwrap());
        let key = PrivateKey::generate().unwrap();
        let sealed = ring(&[&old]).seal(&key, PLACE).unwrap();
        assert_eq!(sealed_under(&sealed), old.id());
        let both = ring(&[&new, &old]);
        assert_eq!(both.open(&sealed, PLACE), Ok(key.clone()));
        let error = ring(&[&new]).open(&sealed, PLACE).unwrap_err();
        assert_eq!(error, SealError::UnknownKey(old.id()));
        let again = both.seal(&key, PLACE).unwrap();
        assert_eq!(ring(&[&new]).open(&again, PLACE), Ok(key));
    }
}
