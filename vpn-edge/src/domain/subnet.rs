//! The tunnel's addresses: `10.X.Y.0/24`, a pure function of the tenant's UUID and of
//! the ranges to avoid; and a unique local /64, a function of the UUID only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use blake2::{Blake2s256, Digest};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use uuid::Uuid;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reserved ranges leave no 10.X.Y.0/24 for a tunnel; reserve less of 10.0.0.0/8")]
pub struct NoSubnetLeft;

/// Sets the IPv6 subnet's hash apart from the IPv4 one's.
const IPV6: &[u8] = b"vpn-edge tunnel IPv6";

/// The tenant's tunnel subnet, always a /24 of 10.0.0.0/8. IPv6 ranges in `reserved`
/// have no effect.
///
/// X and Y are the first two bytes of BLAKE2s-256 over the UUID's 16 bytes. If that
/// /24 overlaps a reserved range, the next candidates follow at an odd stride taken
/// from the hash: it visits all 65,536, spreads the tenants that have to move, and
/// moves no others.
pub fn tunnel_subnet(id: Uuid, reserved: &[IpNet]) -> Result<Ipv4Net, NoSubnetLeft> {
    let hash = Blake2s256::digest(id.as_bytes());
    let start = u16::from_be_bytes([hash[0], hash[1]]);
    let stride = u16::from_be_bytes([hash[2], hash[3]]) | 1;
    (0..=u16::MAX)
        .map(|step| subnet(start.wrapping_add(step.wrapping_mul(stride))))
        .find(|candidate| !reserved.iter().any(|range| overlap(range, candidate)))
        .ok_or(NoSubnetLeft)
}

/// Whether it can be a tunnel's subnet: a /24 of 10.0.0.0/8.
pub fn is_tunnel_subnet(subnet: Ipv4Net) -> bool {
    subnet.prefix_len() == 24
        && subnet.addr() == subnet.network()
        && subnet.addr().octets()[0] == 10
}

/// The tenant's IPv6 tunnel subnet: subnet 0 of a unique local prefix (RFC 4193)
/// whose 40 random bits are the first of BLAKE2s-256 over a constant text and the
/// UUID's 16 bytes. Such a random prefix practically never overlaps the cluster's
/// ranges.
pub fn tunnel_subnet6(id: Uuid) -> Ipv6Net {
    let hash = Blake2s256::new()
        .chain_update(IPV6)
        .chain_update(id.as_bytes())
        .finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&hash[..5]);
    Ipv6Net::new_assert(octets.into(), 64)
}

/// The gateway's address in the tunnel: `.1`.
pub fn gateway_address(subnet: Ipv4Net) -> Ipv4Addr {
    host(subnet, 1)
}

/// The client's address in the tunnel: `.2`.
pub fn client_address(subnet: Ipv4Net) -> Ipv4Addr {
    host(subnet, 2)
}

/// The gateway's IPv6 address in the tunnel: `::1`.
pub fn gateway_address6(subnet: Ipv6Net) -> Ipv6Addr {
    host6(subnet, 1)
}

/// The client's IPv6 address in the tunnel: `::2`.
pub fn client_address6(subnet: Ipv6Net) -> Ipv6Addr {
    host6(subnet, 2)
}

fn subnet(index: u16) -> Ipv4Net {
    let [x, y] = index.to_be_bytes();
    Ipv4Net::new_assert(Ipv4Addr::new(10, x, y, 0), 24)
}

fn host(subnet: Ipv4Net, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.network().octets();
    Ipv4Addr::new(a, b, c, number)
}

fn host6(subnet: Ipv6Net, number: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | u128::from(number))
}

fn overlap(range: &IpNet, candidate: &Ipv4Net) -> bool {
    range.contains(&IpAddr::V4(candidate.network()))
        || matches!(range, IpNet::V4(range) if candidate.contains(&range.network()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn range(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_subnet_of_a_uuid_never_changes() {
        let table = [
            (
                "00000000-0000-0000-0000-000000000000",
                "10.102.100.0/24",
                "10.230.117.0/24",
            ),
            (
                "00000000-0000-0000-0000-000000000001",
                "10.10.47.0/24",
                "10.161.250.0/24",
            ),
            (
                "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44",
                "10.55.59.0/24",
                "10.235.190.0/24",
            ),
        ];
        for (id, first, next) in table {
            let id: Uuid = id.parse().unwrap();
            assert_eq!(tunnel_subnet(id, &[]), Ok(net(first)));
            assert_eq!(tunnel_subnet(id, &[net(first).into()]), Ok(net(next)));
        }
    }

    #[test]
    fn a_tunnels_subnet_is_a_24_of_ten() {
        for (text, is) in [
            ("10.55.59.0/24", true),
            ("10.55.59.1/24", false),
            ("10.55.59.0/25", false),
            ("10.0.0.0/8", false),
            ("192.168.1.0/24", false),
        ] {
            assert_eq!(is_tunnel_subnet(net(text)), is, "{text}");
        }
    }

    #[test]
    fn nothing_left_is_an_error() {
        let id = Uuid::from_u128(1);
        assert_eq!(tunnel_subnet(id, &[range("10.0.0.0/8")]), Err(NoSubnetLeft));
        assert_eq!(tunnel_subnet(id, &[range("0.0.0.0/0")]), Err(NoSubnetLeft));
    }

    #[test]
    fn the_last_free_subnet_is_found() {
        // Everything of 10.0.0.0/8 but 10.0.0.0/24.
        let reserved: Vec<IpNet> = (9..=24)
            .map(|len| Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | 1 << (32 - len)), len).unwrap())
            .map(IpNet::V4)
            .collect();
        for n in 0..20 {
            assert_eq!(
                tunnel_subnet(Uuid::from_u128(n), &reserved),
                Ok(net("10.0.0.0/24"))
            );
        }
    }

    #[test]
    fn a_reserved_range_smaller_than_the_subnet_moves_it_too() {
        let id = Uuid::from_u128(7);
        let first = tunnel_subnet(id, &[]).unwrap();
        let inside = Ipv4Net::new(client_address(first), 32).unwrap();
        assert_ne!(tunnel_subnet(id, &[inside.into()]).unwrap(), first);
    }

    #[test]
    fn the_gateway_is_one_and_the_client_two() {
        let subnet = net("10.42.128.0/24");
        assert_eq!(gateway_address(subnet), Ipv4Addr::new(10, 42, 128, 1));
        assert_eq!(client_address(subnet), Ipv4Addr::new(10, 42, 128, 2));
        let subnet: Ipv6Net = "fd12:3456:789a::/64".parse().unwrap();
        assert_eq!(gateway_address6(subnet).to_string(), "fd12:3456:789a::1");
        assert_eq!(client_address6(subnet).to_string(), "fd12:3456:789a::2");
    }

    #[test]
    fn the_ipv6_subnet_of_a_uuid_never_changes() {
        let table = [
            (
                "00000000-0000-0000-0000-000000000000",
                "fdd1:56e1:79bc::/64",
            ),
            (
                "00000000-0000-0000-0000-000000000001",
                "fd51:f0f5:e9f6::/64",
            ),
            (
                "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44",
                "fd78:181c:f4b0::/64",
            ),
        ];
        for (id, subnet) in table {
            assert_eq!(tunnel_subnet6(id.parse().unwrap()).to_string(), subnet);
        }
    }

    #[test]
    fn ipv6_ranges_move_no_ipv4_subnet() {
        let id = Uuid::from_u128(7);
        let all: IpNet = "::/0".parse().unwrap();
        assert_eq!(tunnel_subnet(id, &[all]), tunnel_subnet(id, &[]));
    }

    proptest! {
        #[test]
        fn the_subnet_is_a_24_of_ten_and_clear_of_the_reserved_ranges(
            id in any::<u128>(),
            ranges in prop::collection::vec((any::<u32>(), 9u8..=32), 0..8),
        ) {
            let reserved: Vec<IpNet> = ranges
                .into_iter()
                .map(|(bits, len)| {
                    let address = Ipv4Addr::from(0x0a00_0000 | (bits >> 8));
                    Ipv4Net::new(address, len).unwrap().trunc().into()
                })
                .collect();
            if let Ok(subnet) = tunnel_subnet(Uuid::from_u128(id), &reserved) {
                prop_assert!(net("10.0.0.0/8").contains(&subnet));
                prop_assert_eq!(subnet.prefix_len(), 24);
                for range in &reserved {
                    let subnet = IpNet::from(subnet);
                    prop_assert!(!range.contains(&subnet) && !subnet.contains(range));
                }
                let first = tunnel_subnet(Uuid::from_u128(id), &[]).unwrap();
                if !reserved.iter().any(|range| overlap(range, &first)) {
                    prop_assert_eq!(subnet, first, "moved without need");
                }
            }
        }
    }
}
