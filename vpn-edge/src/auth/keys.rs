//! The issuer's keys; signatures are verified by ring.
//!
//! jsonwebtoken parses tokens; ring, which TLS uses as well, does the cryptography.
//! Each key is for one algorithm, so that a token cannot choose one.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of keys of an issuer.
const KEPT: usize = 100;

/// The signature verifiers for jsonwebtoken.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes jsonwebtoken use ring. May be called repeatedly.
pub fn use_ring() {
    // An error means that it was done before.
    let _ = RING.install_default();
}

/// A signing key.
#[derive(Debug)]
pub struct Key {
    pub id: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// RFC 7517, section 5.
#[derive(Deserialize)]
pub struct KeySet {
    keys: Vec<Value>,
}

impl KeySet {
    /// The signing keys with an accepted algorithm. Others are ignored, as the RFC
    /// requires.
    pub fn usable(self) -> Vec<Key> {
        let keys = self.keys.into_iter();
        keys.filter_map(|key| Key::new(&serde_json::from_value(key).ok()?))
            .take(KEPT)
            .collect()
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Option<Key> {
        let common = &jwk.common;
        if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        Some(Key {
            id: common.key_id.clone(),
            algorithm: algorithm(jwk)?,
            key: DecodingKey::from_jwk(jwk).ok()?,
        })
    }
}

/// The algorithm of a key. None for symmetric keys.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let named = jwk.common.key_algorithm;
    let of_curve = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            return match named {
                // OpenID Connect requires every issuer to support it.
                None | Some(KeyAlgorithm::RS256) => Some(Algorithm::RS256),
                Some(KeyAlgorithm::RS384) => Some(Algorithm::RS384),
                Some(KeyAlgorithm::RS512) => Some(Algorithm::RS512),
                Some(KeyAlgorithm::PS256) => Some(Algorithm::PS256),
                Some(KeyAlgorithm::PS384) => Some(Algorithm::PS384),
                Some(KeyAlgorithm::PS512) => Some(Algorithm::PS512),
                Some(_) => None,
            };
        }
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let fits = named.is_none_or(|named| named == KeyAlgorithm::from(of_curve));
    fits.then_some(of_curve)
}

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        key: key.clone(),
    }))
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), SignatureError> {
        let curve: &'static dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDSA => &signature::ED25519,
            _ => return self.verify_rsa(message, signature),
        };
        let DecodingKeyKind::SecretOrDer(key) = self.key.kind() else {
            return Err(SignatureError::new());
        };
        UnparsedPublicKey::new(curve, key)
            .verify(message, signature)
            .map_err(|_| SignatureError::new())
    }
}

impl RingVerifier {
    fn verify_rsa(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> std::result::Result<(), SignatureError> {
        // ring rejects keys of less than 2048 bits and of more than 8192.
        let parameters = match self.algorithm {
            Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            // Including HMAC: no key of the issuer is a shared secret.
            _ => return Err(SignatureError::new()),
        };
        let DecodingKeyKind::RsaModulusExponent { n, e } = self.key.kind() else {
            return Err(SignatureError::new());
        };
        // ring requires numbers without leading zeros.
        let unpadded = |number: &[u8]| {
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            number[zeros..].to_vec()
        };
        RsaPublicKeyComponents {
            n: unpadded(n),
            e: unpadded(e),
        }
        .verify(parameters, message, signature)
        .map_err(|_| SignatureError::new())
    }
}
