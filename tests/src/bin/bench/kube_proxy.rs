//! kube-proxy's rules for NodePort Services of UDP with one endpoint each.
//!
//! Their shape is that of Kubernetes 1.34 with its defaults: external traffic
//! policy `Cluster`, which masquerades, and no session affinity. Left out is
//! what a kernel without accounting objects (`nfacct`) would not get either:
//! iptables' second rule a node port, for the node's own loopback. Hashes in
//! the names of chains are replaced by the port.

use std::fmt::Write;
use std::net::Ipv4Addr;

use vpn_edge_common::bench::gateway;

const CLUSTER: &str = "100.64.0.0/10";
/// With more endpoints than these, iptables' rules go without their comments.
const LARGE: usize = 1_000;

/// A Service, known by its node port.
#[derive(Clone, Copy)]
struct Service(u16);

impl Service {
    fn name(self) -> String {
        format!("vpn/gateway-{}:wireguard", self.0)
    }

    fn cluster_address(self) -> Ipv4Addr {
        (u32::from(Ipv4Addr::new(10, 96, 0, 0)) + u32::from(self.0)).into()
    }

    /// Port of the cluster address.
    const PORT: u16 = 51_820;

    fn endpoint(self) -> Ipv4Addr {
        gateway(self.0).into()
    }
}

/// A rule set for `nft -f -`.
pub fn nftables(node: Ipv4Addr, ports: impl Iterator<Item = u16>) -> String {
    let [mut addresses, mut by_address, mut by_port] = [const { Vec::new() }; 3];
    let mut chains = String::new();
    for service in ports.map(Service) {
        let (address, endpoint) = (service.cluster_address(), service.endpoint());
        let (port, inner) = (service.0, Service::PORT);
        let name = format!("{port:08}-vpn/gateway-{port}/udp/wireguard");
        addresses.push(address.to_string());
        by_address.push(format!("{address} . udp . {inner} : goto service-{name}"));
        by_port.push(format!("udp . {port} : goto external-{name}"));
        let _ = write!(
            chains,
            "
    chain endpoint-{name}__{endpoint}/{port} {{
        ip saddr {endpoint} jump mark-for-masquerade
        meta l4proto udp dnat to {endpoint}:{port}
    }}
    chain service-{name} {{
        ip daddr {address} ip saddr != {CLUSTER} jump mark-for-masquerade
        numgen random mod 1 vmap {{ 0 : goto endpoint-{name}__{endpoint}/{port} }}
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
        "table ip kube-proxy {{
    set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }}; }}
    set nodeport-ips {{ type ipv4_addr; elements = {{ {node} }}; }}
    map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
    map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map service-ips {{
        type ipv4_addr . inet_proto . inet_service : verdict
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
        ip daddr @cluster-ips reject
        ip daddr {{ 10.96.0.0/12 }} drop
    }}
    chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain nodeport-endpoints-check {{
        ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }}
    chain service-endpoints-check {{
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
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

/// A rule set for `iptables-restore`.
pub fn iptables(ports: impl Iterator<Item = u16> + Clone) -> String {
    let large = ports.clone().count() > LARGE;
    let comment = |text: &str| match large {
        true => String::new(),
        false => format!("-m comment --comment \"{text}\""),
    };
    let [mut chains, mut portals, mut node_ports, mut rules] = [const { String::new() }; 4];
    for service in ports.map(Service) {
        let (name, address, endpoint) = (
            service.name(),
            service.cluster_address(),
            service.endpoint(),
        );
        let (port, inner) = (service.0, Service::PORT);
        let of = |kind: &str| format!("KUBE-{kind}-{port:016}");
        let (svc, ext, sep) = (of("SVC"), of("EXT"), of("SEP"));
        let cluster = comment(&format!("{name} cluster IP"));
        let external = comment(&format!(
            "masquerade traffic for {name} external destinations"
        ));
        let balanced = comment(&format!("{name} -> {endpoint}:{port}"));
        let named = comment(&name);
        let _ = write!(chains, ":{svc} - [0:0]\n:{ext} - [0:0]\n:{sep} - [0:0]\n");
        let _ = writeln!(
            portals,
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -p udp -m udp -d {address} --dport {inner} -j {svc}"
        );
        let _ = writeln!(
            node_ports,
            "-A KUBE-NODEPORTS -m comment --comment {name} -p udp -m udp --dport {port} -j {ext}"
        );
        let _ = write!(
            rules,
            "\
-A {svc} {cluster} -p udp -m udp -d {address} --dport {inner} ! -s {CLUSTER} -j KUBE-MARK-MASQ
-A {svc} {balanced} -j {sep}
-A {ext} {external} -j KUBE-MARK-MASQ
-A {ext} -j {svc}
-A {sep} {named} -s {endpoint} -j KUBE-MARK-MASQ
-A {sep} {named} -p udp -m udp -j DNAT --to-destination {endpoint}:{port}
"
        );
    }
    [
        FILTER,
        NAT,
        &chains,
        MASQUERADE,
        &node_ports,
        &portals,
        NODE_PORTS,
        &rules,
        "COMMIT\n",
    ]
    .concat()
}

/// Refuses what has no endpoints, of which there is none, and lets the rest by.
const FILTER: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const MASQUERADE: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

const NODE_PORTS: &str = r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"#;
