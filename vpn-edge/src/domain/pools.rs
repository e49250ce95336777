//! Pools of ports for tenants, with the host names of their endpoints.
//!
//! A load balancer has few listeners (an AWS NLB 50), so tenants may be spread over
//! several, each with its own pool.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::port_pool::{PortRange, PortRangeError};

/// The ports behind one host name, written `vpn.example.com=30000-30049`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    hostname: String,
    range: PortRange,
}

/// One or more pools with disjoint ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error(
        "{0:?} is not a pool; write it as HOSTNAME=FIRST-LAST, for example vpn.example.com=30000-30049"
    )]
    Syntax(String),
    #[error(
        "{0:?} is not a host name; use letters, digits, '.' and '-', at most 253 of them, or an address (IPv6 in brackets)"
    )]
    Hostname(String),
    #[error(transparent)]
    Range(#[from] PortRangeError),
    #[error("no pool is given: add one as HOSTNAME=FIRST-LAST")]
    None,
    #[error("the pools {0} and {1} share ports: a port belongs to one host name")]
    Overlap(Pool, Pool),
}

impl Pool {
    /// # Errors
    ///
    /// If `hostname` is not a host name.
    pub fn new(hostname: &str, range: PortRange) -> Result<Self, PoolError> {
        let label = |label: &str| {
            let bytes = label.as_bytes();
            (1..=63).contains(&bytes.len())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
        };
        let v6 = hostname
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let is_v6 = v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok());
        if !is_v6 && (hostname.len() > 253 || !hostname.split('.').all(label)) {
            return Err(PoolError::Hostname(hostname.to_owned()));
        }
        let hostname = hostname.to_owned();
        Ok(Self { hostname, range })
    }

    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    #[must_use]
    pub fn range(&self) -> PortRange {
        self.range
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.hostname, self.range)
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let parts = text.split_once('=');
        let (hostname, range) = parts.ok_or_else(|| PoolError::Syntax(text.to_owned()))?;
        Self::new(hostname.trim(), range.trim().parse()?)
    }
}

impl Pools {
    /// # Errors
    ///
    /// If there is no pool, or two share a port.
    pub fn new(pools: Vec<Pool>) -> Result<Self, PoolError> {
        if pools.is_empty() {
            return Err(PoolError::None);
        }
        let mut by_port: Vec<&Pool> = pools.iter().collect();
        by_port.sort_by_key(|pool| pool.range.first());
        for pair in by_port.windows(2) {
            if pair[1].range.first() <= pair[0].range.last() {
                return Err(PoolError::Overlap(pair[0].clone(), pair[1].clone()));
            }
        }
        Ok(Self(pools))
    }

    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.hostname(port).is_some()
    }

    /// The endpoint, `host:port`. A port that is in no pool any more has the host
    /// name of the first pool.
    #[must_use]
    pub fn endpoint(&self, port: u16) -> String {
        let hostname = self.hostname(port).unwrap_or(&self.0[0].hostname);
        format!("{hostname}:{port}")
    }

    /// The host name of this port's pool; none if it is in no pool.
    #[must_use]
    pub fn hostname(&self, port: u16) -> Option<&str> {
        let pool = self.0.iter().find(|pool| pool.range.contains(port))?;
        Some(&pool.hostname)
    }

    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|pool| pool.range.ports())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    #[must_use]
    pub fn ranges(&self) -> Vec<PortRange> {
        self.0.iter().map(|pool| pool.range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(texts: &[&str]) -> Result<Pools, PoolError> {
        let pools: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
        Pools::new(pools?)
    }

    #[test]
    fn each_port_has_the_host_name_of_its_pool() {
        let pools = pools(&["b.example.com=30050-30051", "a.example.com=30000-30001"]).unwrap();
        let table = [
            (30000, Some("a.example.com")),
            (30001, Some("a.example.com")),
            (30002, None),
            (30050, Some("b.example.com")),
            (30052, None),
        ];
        for (port, hostname) in table {
            assert_eq!(pools.hostname(port), hostname, "{port}");
            assert_eq!(pools.contains(port), hostname.is_some(), "{port}");
        }
        assert_eq!(
            pools.ports().collect::<Vec<_>>(),
            [30050, 30051, 30000, 30001]
        );
    }

    #[test]
    fn a_pool_is_printed_as_it_is_written() {
        let text = "vpn.example.com=30000-30049";
        assert_eq!(text.parse::<Pool>().unwrap().to_string(), text);
    }

    #[test]
    fn bad_pools_are_refused_with_what_to_do() {
        let label = "a".repeat(64);
        let hostnames = ["", ".", "a..b", "-a", "a-", "a b", "a_b", "ä", &label];
        for hostname in hostnames {
            let refused = PoolError::Hostname(hostname.to_owned());
            assert_eq!(pools(&[&format!("{hostname}=30000-30001")]), Err(refused));
        }
        assert_eq!(
            pools(&["30000-30001"]),
            Err(PoolError::Syntax("30000-30001".to_owned()))
        );
        assert_eq!(
            pools(&["a=80-81"]),
            Err(PortRangeError::Privileged("80-81".to_owned()).into())
        );
        assert_eq!(pools(&[]), Err(PoolError::None));
        assert_eq!(
            pools(&["b=30010-30020", "a=30000-30010"])
                .unwrap_err()
                .to_string(),
            "the pools a=30000-30010 and b=30010-30020 share ports: a port belongs to one host name"
        );
    }
}
