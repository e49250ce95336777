//! Verification of the issuer's JWTs.

use std::sync::Arc;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::issuer::{Issuer, Known};
use super::refused::{Invalid, Refused};

/// Maximum size of a token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// Allowed clock skew in seconds.
const LEEWAY: u64 = 30;

pub type Claims = Map<String, Value>;

/// Whether this may be a JWT rather than a static token.
pub fn looks_like_one(credential: &str) -> bool {
    credential.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// The claims of a token of `issuer` for one of `audiences`. If its key is unknown,
/// the issuer is queried for new ones.
///
/// # Errors
///
/// What is wrong with it, or that the issuer's keys are not available.
pub async fn verify(
    issuer: &Arc<Issuer>,
    audiences: &[String],
    token: &str,
) -> Result<Claims, Refused> {
    if token.len() > MAX_TOKEN {
        return Err(Invalid::Malformed.into());
    }
    let header = decode_header(token).map_err(|_| Invalid::Malformed)?;
    // RFC 7515, section 4.1.11: critical headers, none of which is supported.
    if header.crit.is_some() {
        return Err(Invalid::Malformed.into());
    }
    let known = issuer.known().await?;
    match claims(&known, issuer.name(), audiences, token, &header) {
        Err(Invalid::UnknownKey) => {
            issuer.refresh().await;
            let known = issuer.known().await?;
            Ok(claims(&known, issuer.name(), audiences, token, &header)?)
        }
        outcome => Ok(outcome?),
    }
}

fn claims(
    known: &Known,
    issuer: &str,
    audiences: &[String],
    token: &str,
    header: &Header,
) -> Result<Claims, Invalid> {
    let key = known.key(header.kid.as_deref(), header.alg)?;
    let mut validation = Validation::new(key.algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    let token = decode::<Claims>(token, &key.key, &validation).map_err(|error| why(&error))?;
    Ok(token.claims)
}

fn why(error: &Error) -> Invalid {
    match error.kind() {
        ErrorKind::InvalidSignature => Invalid::Signature,
        ErrorKind::ExpiredSignature => Invalid::Expired,
        ErrorKind::ImmatureSignature => Invalid::NotYet,
        ErrorKind::InvalidIssuer => Invalid::Issuer,
        ErrorKind::InvalidAudience => Invalid::Audience,
        ErrorKind::InvalidAlgorithm => Invalid::Algorithm,
        ErrorKind::MissingRequiredClaim(_) => Invalid::Incomplete,
        _ => Invalid::Malformed,
    }
}
