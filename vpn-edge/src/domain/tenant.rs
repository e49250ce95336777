//! A tenant: one customer organisation's slice of the platform.

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::Timestamp;
use uuid::Uuid;

use super::plan::Plan;
use super::vpn::Vpn;

const MAX_ORGANISATION: usize = 64;
/// The rule for organisations' names, for messages.
pub const ORGANISATION_RULE: &str =
    "use 1 to 64 letters, digits, '.', '_' and '-', and start with a letter or digit";
/// RFC 1123, section 2.1.
const MAX_DNS_LABEL: usize = 63;
const MAX_NETWORKS: usize = 64;

/// A tenant with its VPN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub id: Uuid,
    /// The customer. Its members see all of its tenants and no others.
    pub organisation: String,
    pub plan: Plan,
    /// Whether the tenant is provisioned; enabling the VPN requires it.
    pub ready: bool,
    /// The tenant's own namespace, a DNS label.
    pub namespace: String,
    /// Networks that the tenant may reach through its gateway.
    pub networks: Vec<IpNet>,
    pub vpn: Vpn,
    /// Incremented by the registry with every stored change.
    pub version: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenant {
    #[error("organisation {0:?} is not valid: {rule}", rule = ORGANISATION_RULE)]
    Organisation(String),
    #[error(
        "namespace {0:?} is not valid: use 1 to 63 lower-case letters, digits and '-', and start and end with a letter or digit"
    )]
    Namespace(String),
    #[error("{0} networks are too many: at most 64 are allowed; join adjacent ones")]
    TooManyNetworks(usize),
    #[error("network {0} covers all addresses: list the ranges that the tenant may reach")]
    Everything(IpNet),
    #[error("network {0} has bits set after its prefix: write {1}")]
    HostBits(IpNet, IpNet),
    #[error("network {0} is listed twice")]
    NetworkTwice(IpNet),
    #[error(
        "network {0} is IPv6, but tunnels are IPv4 only: remove it, or have the operator start vpn-edge with --tunnel-ipv6"
    )]
    NoIpv6(IpNet),
}

impl Tenant {
    /// A tenant that is not ready, may reach no network, and has the namespace
    /// `tenant-` plus the first eight hexadecimal digits of its ID.
    pub fn new(
        id: Uuid,
        organisation: String,
        plan: Plan,
        now: Timestamp,
    ) -> Result<Tenant, InvalidTenant> {
        check_organisation(&organisation)?;
        let id_text = id.simple().to_string();
        Ok(Tenant {
            id,
            organisation,
            plan,
            ready: false,
            namespace: format!("tenant-{}", &id_text[..8]),
            networks: Vec::new(),
            vpn: Vpn::new(plan, now),
            version: 0,
        })
    }

    pub fn set_namespace(&mut self, namespace: String) -> Result<(), InvalidTenant> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = namespace.as_bytes();
        let valid = bytes.len() <= MAX_DNS_LABEL
            && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
            && bytes.first().is_some_and(|b| alphanumeric(*b))
            && bytes.last().is_some_and(|b| alphanumeric(*b));
        if !valid {
            return Err(InvalidTenant::Namespace(namespace));
        }
        self.namespace = namespace;
        Ok(())
    }

    pub fn set_networks(&mut self, networks: Vec<IpNet>) -> Result<(), InvalidTenant> {
        check_networks(&networks)?;
        self.networks = networks;
        Ok(())
    }
}

/// Checks that `organisation` is a valid name.
pub fn check_organisation(organisation: &str) -> Result<(), InvalidTenant> {
    let bytes = organisation.as_bytes();
    let valid = bytes.len() <= MAX_ORGANISATION
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b));
    if valid {
        Ok(())
    } else {
        Err(InvalidTenant::Organisation(organisation.to_owned()))
    }
}

/// Checks that `networks` are valid for a tenant.
pub fn check_networks(networks: &[IpNet]) -> Result<(), InvalidTenant> {
    if networks.len() > MAX_NETWORKS {
        return Err(InvalidTenant::TooManyNetworks(networks.len()));
    }
    let mut seen = BTreeSet::new();
    for network in networks {
        if network.prefix_len() == 0 {
            return Err(InvalidTenant::Everything(*network));
        }
        if network.trunc() != *network {
            return Err(InvalidTenant::HostBits(*network, network.trunc()));
        }
        if !seen.insert(*network) {
            return Err(InvalidTenant::NetworkTwice(*network));
        }
    }
    Ok(())
}

/// Checks that tunnels can carry `networks`: IPv6 ones only with `ipv6`.
pub fn check_versions(networks: &[IpNet], ipv6: bool) -> Result<(), InvalidTenant> {
    match networks.iter().find(|network| network.addr().is_ipv6()) {
        Some(network) if !ipv6 => Err(InvalidTenant::NoIpv6(*network)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn tenant() -> Tenant {
        let id = "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44".parse().unwrap();
        Tenant::new(id, "acme".to_owned(), Plan::Business, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_new_tenant_has_a_namespace_of_its_own() {
        assert_eq!(tenant().namespace, "tenant-6f1c2b1e");
    }

    #[test]
    fn organisations_are_names_without_spaces() {
        let long = "a".repeat(64);
        for good in ["acme", "A1", "9-lives.inc_x", long.as_str()] {
            assert_eq!(check_organisation(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(65);
        for bad in [
            "",
            " acme",
            "ac me",
            "-acme",
            ".acme",
            "äcme",
            "a\n",
            too_long.as_str(),
        ] {
            let refused = InvalidTenant::Organisation(bad.to_owned());
            assert_eq!(check_organisation(bad), Err(refused));
        }
    }

    #[test]
    fn a_namespace_is_a_dns_label() {
        let mut tenant = tenant();
        let long = "a".repeat(63);
        for good in ["a", "kovra-abcd1234", "0", long.as_str()] {
            tenant.set_namespace(good.to_owned()).unwrap();
            assert_eq!(tenant.namespace, good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "../x", too_long.as_str()] {
            let refused = InvalidTenant::Namespace(bad.to_owned());
            assert_eq!(tenant.set_namespace(bad.to_owned()), Err(refused));
        }
        assert_eq!(tenant.namespace, long, "a refused name changes nothing");
    }

    #[test]
    fn networks_are_checked() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let many = |n: u32| -> Vec<IpNet> {
            let address = |i: u32| Ipv4Addr::from(0x0a00_0000 + (i << 8)).into();
            (0..n)
                .map(|i| IpNet::new(address(i), 24).unwrap())
                .collect()
        };
        let mut tenant = tenant();
        tenant.set_networks(many(64)).unwrap();
        assert_eq!(
            tenant.set_networks(many(65)),
            Err(InvalidTenant::TooManyNetworks(65))
        );
        for all in ["0.0.0.0/0", "::/0"] {
            assert_eq!(
                tenant.set_networks(vec![net(all)]),
                Err(InvalidTenant::Everything(net(all)))
            );
        }
        assert_eq!(
            tenant.set_networks(vec![net("fd00:97:1::1/64")]),
            Err(InvalidTenant::HostBits(
                net("fd00:97:1::1/64"),
                net("fd00:97:1::/64")
            ))
        );
        assert_eq!(
            tenant.set_networks(vec![net("10.1.2.3/16")]),
            Err(InvalidTenant::HostBits(
                net("10.1.2.3/16"),
                net("10.1.0.0/16")
            ))
        );
        assert_eq!(
            tenant.set_networks(vec![net("10.1.0.0/16"), net("10.1.0.0/16")]),
            Err(InvalidTenant::NetworkTwice(net("10.1.0.0/16")))
        );
        assert_eq!(tenant.networks, many(64), "refused networks change nothing");
    }
}
