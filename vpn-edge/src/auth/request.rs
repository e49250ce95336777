//! A request's sender: credential, address, and origin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use reqwest::Url;

use super::Identity;
use super::caller::Caller;
use super::issuer::secure;
use super::refused::Refused;

/// The cookie with a browser's credential; with HTTPS it has a prefix.
pub const SESSION: &str = "vpn-edge-session";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Identity {
    /// The sender of this request, by its bearer token or else its cookie.
    ///
    /// Browsers add the cookie to requests from any site. So a request with a cookie
    /// that may change something must come from a page of this server.
    ///
    /// # Errors
    ///
    /// Why it is rejected.
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
                let session = self.cookie(parts, SESSION)?;
                if session.is_some() && !parts.method.is_safe() {
                    self.check_same_origin(parts)?;
                }
                session
            }
        };
        let credential = credential.ok_or(Refused::Missing)?;
        self.verify(credential, self.address(parts)).await
    }

    /// For a `GET` that is recorded: browsers add the cookie to links on other sites
    /// as well. Typed addresses and bookmarks are accepted.
    ///
    /// # Errors
    ///
    /// If the request did not come from a page of this server, or does not say so.
    pub fn check_own_link(&self, parts: &Parts) -> Result<(), Refused> {
        let site = parts.headers.get(SEC_FETCH_SITE);
        let typed = site.is_some_and(|site| site == "none");
        if typed || parts.headers.contains_key(header::AUTHORIZATION) {
            return Ok(());
        }
        // Browsers that send no `Sec-Fetch-Site` send no `Origin` with links either.
        if site.is_none() && self.is_own(parts, &header::REFERER) == Some(true) {
            return Ok(());
        }
        self.check_same_origin(parts)
    }

    /// # Errors
    ///
    /// If the request did not come from a page of this server, or does not say so.
    pub(super) fn check_same_origin(&self, parts: &Parts) -> Result<(), Refused> {
        let same = match parts.headers.get(SEC_FETCH_SITE) {
            Some(site) => site == "same-origin",
            None => self.is_own(parts, &header::ORIGIN).unwrap_or(false),
        };
        same.then_some(()).ok_or(Refused::CrossSite)
    }

    /// Whether a header names this server's origin, or a page of it; `None` if
    /// unknown.
    fn is_own(&self, parts: &Parts, name: &HeaderName) -> Option<bool> {
        let origin = parts.headers.get(name)?.to_str().ok()?;
        let origin = Url::parse(origin).ok()?.origin();
        if let Some(public) = &self.public {
            return Some(origin == public.origin());
        }
        let host = match parts.headers.get(header::HOST) {
            Some(host) => host.to_str().ok()?,
            None => parts.uri.authority()?.as_str(),
        };
        // TLS may be terminated before this server, so its scheme is unknown here.
        // But browsers keep the cookie only for HTTPS or localhost.
        let same = ["http", "https"].iter().any(|scheme| {
            secure(&format!("{scheme}://{host}")).is_ok_and(|own| own.origin() == origin)
        });
        Some(same)
    }

    /// The name of a cookie here. With HTTPS it has the prefix with which browsers
    /// accept it from this host only, and not from another host of its domain (RFC
    /// 6265bis, section 4.1.3.2).
    pub(super) fn cookie_name(&self, name: &str) -> String {
        format!("{}{name}", if self.is_https() { "__Host-" } else { "" })
    }

    /// A cookie's value.
    ///
    /// # Errors
    ///
    /// If there are two with that name: it is unknown which one is from here.
    ///
    /// That there are two of that name: which one is from here cannot be told.
    pub(super) fn cookie<'a>(
        &self,
        parts: &'a Parts,
        name: &str,
    ) -> Result<Option<&'a str>, Refused> {
        let name = self.cookie_name(name);
        let values = parts.headers.get_all(header::COOKIE).iter();
        let mut found = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(found, _)| *found == name)
            .map(|(_, value)| value);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(Refused::CookieTwice(name.clone())),
            (one, None) => Ok(one),
        }
    }

    /// The client's address: the peer's, or the one that a trusted proxy reports.
    pub(super) fn address(&self, parts: &Parts) -> IpAddr {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let mut address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
        address = address.to_canonical();
        let said = parts.headers.get_all(FORWARDED_FOR).iter();
        let said: Vec<&[u8]> = said.map(HeaderValue::as_bytes).collect();
        // Each proxy appends the address of its peer: entries left of the first
        // untrusted address are unverified, and need not even be text.
        let mut said = said
            .iter()
            .rev()
            .flat_map(|value| value.rsplit(|byte| *byte == b','));
        while self
            .trusted_proxies
            .iter()
            .any(|net| net.contains(&address))
        {
            match said.next().and_then(forwarded) {
                Some(before) => address = before,
                None => break,
            }
        }
        address
    }
}

/// An address in the forms that proxies use: bare, in brackets, or with a port.
fn forwarded(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(socket.ip().to_canonical());
    }
    let inner = text.strip_prefix('[');
    let bare = inner.and_then(|text| text.strip_suffix(']'));
    let address: IpAddr = bare.unwrap_or(text).parse().ok()?;
    Some(address.to_canonical())
}
