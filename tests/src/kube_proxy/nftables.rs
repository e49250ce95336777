//! The rules of the nftables mode.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use super::{Family, Service};

/// A rule set for `nft -f`, of services whose endpoints are of the family of
/// the node's address.
#[must_use]
pub fn nftables(node: IpAddr, services: impl Iterator<Item = Service>) -> String {
    let family = Family::of(node);
    let (ip, kind) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let (cluster, service_range) = (family.cluster(), family.services());
    let [mut addresses, mut by_address, mut by_port] = [const { Vec::new() }; 3];
    let mut chains = String::new();
    for service in services {
        let (address, endpoint) = (service.cluster_address(), service.endpoint);
        let (port, inner) = (service.port, Service::PORT);
        let socket = SocketAddr::new(endpoint, port);
        let name = format!("{port:08}-vpn/gateway-{port}/udp/wireguard");
        // nft takes no colons in names.
        let place = endpoint.to_string().replace(':', ".");
        addresses.push(address.to_string());
        by_address.push(format!("{address} . udp . {inner} : goto service-{name}"));
        by_port.push(format!("udp . {port} : goto external-{name}"));
        let _ = write!(
            chains,
            "
    chain endpoint-{name}__{place}/{port} {{
        {ip} saddr {endpoint} jump mark-for-masquerade
        meta l4proto udp dnat to {socket}
    }}
    chain service-{name} {{
        {ip} daddr {address} {ip} saddr != {cluster} jump mark-for-masquerade
        numgen random mod 1 vmap {{ 0 : goto endpoint-{name}__{place}/{port} }}
    }}
    chain external-{name} {{
        jump mark-for-masquerade
        goto service-{name}
    }}"
        );
    }
    let [addresses, by_address, by_port] =
        [addresses, by_address, by_port].map(|elements| elements.join(", "));
    format!(
        "table {ip} kube-proxy {{
    set cluster-ips {{ type {kind}; elements = {{ {addresses} }}; }}
    set nodeport-ips {{ type {kind}; elements = {{ {node} }}; }}
    map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
    map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
    map service-ips {{
        type {kind} . inet_proto . inet_service : verdict
        elements = {{ {by_address} }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        elements = {{ {by_port} }}
    }}
    chain mark-for-masquerade {{ mark set mark or 0x4000; }}
    chain masquerading {{
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain reject-chain {{ reject; }}
    chain cluster-ips-check {{
        {ip} daddr @cluster-ips reject
        {ip} daddr {{ {service_range} }} drop
    }}
    chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain nodeport-endpoints-check {{
        {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }}
    chain service-endpoints-check {{
        {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain services {{
        {ip} daddr . meta l4proto . th dport vmap @service-ips
        {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain filter-prerouting-pre-dnat {{
        type filter hook prerouting priority -110
        ct state new jump firewall-check
    }}
    chain filter-output-pre-dnat {{
        type filter hook output priority -110
        ct state new jump firewall-check
    }}
    chain filter-forward {{
        type filter hook forward priority 0
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain filter-input {{
        type filter hook input priority 0
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }}
    chain filter-output {{
        type filter hook output priority 0
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
{chains}
}}
"
    )
}
