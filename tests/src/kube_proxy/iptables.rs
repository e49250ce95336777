//! The rules of the iptables mode.

use std::fmt::Write;
use std::net::SocketAddr;

use super::{Family, Service};

/// With more endpoints than these, rules go without their comments.
const LARGE: usize = 1_000;

/// A rule set for `iptables-restore`, or `ip6tables-restore`.
#[must_use]
pub fn iptables(family: Family, services: impl Iterator<Item = Service> + Clone) -> String {
    let large = services.clone().count() > LARGE;
    let range = family.cluster();
    let comment = |text: &str| match large {
        true => String::new(),
        false => format!("-m comment --comment \"{text}\""),
    };
    let [mut chains, mut portals, mut node_ports, mut rules] = [const { String::new() }; 4];
    for service in services {
        let (name, address, endpoint) =
            (service.name(), service.cluster_address(), service.endpoint);
        let (port, inner) = (service.port, Service::PORT);
        let socket = SocketAddr::new(endpoint, port);
        let of = |kind: &str| format!("KUBE-{kind}-{port:016}");
        let (svc, ext, sep) = (of("SVC"), of("EXT"), of("SEP"));
        let cluster = comment(&format!("{name} cluster IP"));
        let external = comment(&format!(
            "masquerade traffic for {name} external destinations"
        ));
        let balanced = comment(&format!("{name} -> {socket}"));
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
-A {svc} {cluster} -p udp -m udp -d {address} --dport {inner} ! -s {range} -j KUBE-MARK-MASQ
-A {svc} {balanced} -j {sep}
-A {ext} {external} -j KUBE-MARK-MASQ
-A {ext} -j {svc}
-A {sep} {named} -s {endpoint} -j KUBE-MARK-MASQ
-A {sep} {named} -p udp -m udp -j DNAT --to-destination {socket}
"
        );
    }
    let local = match family {
        Family::V4 => LOCAL,
        Family::V6 => "",
    };
    [
        FILTER,
        local,
        FORWARD,
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
"#;

/// IPv4's alone: no IPv6 packet from elsewhere reaches `::1`.
const LOCAL: &str = r#"-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
"#;

const FORWARD: &str = r#"-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
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
