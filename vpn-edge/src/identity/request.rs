//! What a request says of its sender: credential, address, and origin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use reqwest::Url;

use super::Identity;
use super::caller::Caller;
use super::refused::Refused;

/// The cookie that has a browser's credential.
pub const SESSION: &str = "vpn-edge-session";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Identity {
    /// Who sent this request, by its bearer token or else its cookie.
    ///
    /// A browser adds the cookie whatever page has it send the request. So one
    /// that may change something must come from a page of this server.
    ///
    /// # Errors
    ///
    /// Why it is turned away.
    pub async fn caller(&self, parts: &Parts) -> Result<Caller, Refused> {
        let credential = match parts.headers.get(header::AUTHORIZATION) {
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|value| value.split_once(' '))
                // RFC 7235, section 2.1: the scheme's case does not matter.
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
                .map(|(_, token)| token.trim()),
            None => {
                let session = cookie(&parts.headers, SESSION);
                if session.is_some() && !parts.method.is_safe() {
                    self.check_same_origin(parts)?;
                }
                session
            }
        };
        let credential = credential.ok_or(Refused::Missing)?;
        self.verify(credential, self.address(parts)).await
    }

    /// # Errors
    ///
    /// That no page of this server sent the request, or that it does not say so.
    pub(super) fn check_same_origin(&self, parts: &Parts) -> Result<(), Refused> {
        let same = match parts.headers.get(SEC_FETCH_SITE) {
            Some(site) => site == "same-origin",
            None => self.is_own_origin(parts).unwrap_or(false),
        };
        same.then_some(()).ok_or(Refused::CrossSite)
    }

    /// Whether `Origin` is this server's; `None` where it is not told.
    fn is_own_origin(&self, parts: &Parts) -> Option<bool> {
        let origin = parts.headers.get(header::ORIGIN)?.to_str().ok()?;
        let origin = Url::parse(origin).ok()?.origin();
        if let Some(public) = &self.public {
            return Some(origin == public.origin());
        }
        let host = parts.headers.get(header::HOST)?.to_str().ok()?;
        // TLS may end before this server: its scheme is not known here.
        let same = ["http", "https"].iter().any(|scheme| {
            Url::parse(&format!("{scheme}://{host}")).is_ok_and(|own| own.origin() == origin)
        });
        Some(same)
    }

    /// The client's address: the peer's, or what a trusted proxy says of it.
    pub(super) fn address(&self, parts: &Parts) -> IpAddr {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let mut address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
        address = address.to_canonical();
        let said = parts.headers.get_all(FORWARDED_FOR).iter();
        let said: Vec<&str> = said.filter_map(|value| value.to_str().ok()).collect();
        // Each proxy appends whom it heard from: what is left of the first that
        // is no proxy of ours is hearsay.
        let mut said = said.iter().rev().flat_map(|value| value.rsplit(','));
        while self
            .trusted_proxies
            .iter()
            .any(|net| net.contains(&address))
        {
            match said.next().map(|text| text.trim().parse::<IpAddr>()) {
                Some(Ok(before)) => address = before.to_canonical(),
                _ => break,
            }
        }
        address
    }
}

/// A cookie's value, the first of that name.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).iter();
    let mut pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    Some(value)
}
