//! Checks of forwarding, filters, routes to other nodes, and routes back to clients.

use std::net::IpAddr;

use super::network::{Link, Network};
use super::{Finding, Settings, Severity, Sysctl};

pub async fn check(settings: &Settings, network: &Network) -> Vec<Finding> {
    let served = network.served(settings);
    let uplinks = network.uplinks(settings);
    let v4 = served.iter().any(IpAddr::is_ipv4);
    let v6 = served.iter().any(IpAddr::is_ipv6);
    let mut findings = forwarding(settings, &uplinks, v4, v6);
    if v4 {
        findings.extend(uplinks.iter().filter_map(|link| {
            let elsewhere =
                network.has_default(false, None) && !network.has_default(false, Some(link));
            rp_filter(link, uplinks.len() > 1 || elsewhere)
        }));
    }
    for (served, is_v6) in [(v4, false), (v6, true)] {
        if served && !network.has_default(is_v6, None) {
            findings.push(no_default(is_v6));
        }
    }
    for node in &settings.nodes {
        findings.extend(reach(*node, network, &uplinks).await);
    }
    findings
}

/// The node routes gateways' packets, and looking up the route to another node
/// depends on the uplink's own setting.
fn forwarding(settings: &Settings, uplinks: &[&Link], v4: bool, v6: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = Sysctl(&["ipv4", "ip_forward"]);
    if v4 && all.number() == Some(0) {
        findings.push(Finding::error(
            "forwarding",
            format!("{} is 0: packets are not forwarded", all.name()),
            format!("`sysctl -w {}=1`", all.name()),
        ));
    }
    for link in uplinks {
        let setting = |family| [family, "conf", &link.name, "forwarding"];
        let off = |parts: &[&str]| Sysctl(parts).number() == Some(0);
        let found =
            |name: &str| format!("{name} is 0: packets from {} are not forwarded", link.name);
        // The node-wide setting sets those of all interfaces.
        if v4 && all.number() != Some(0) && off(&setting("ipv4")) {
            let name = Sysctl(&setting("ipv4")).name();
            findings.push(Finding::error(
                "forwarding",
                found(&name),
                format!("`sysctl -w {name}=1`"),
            ));
        }
        if v6 && off(&setting("ipv6")) {
            let name = Sysctl(&setting("ipv6")).name();
            let accept = Sysctl(&["ipv6", "conf", &link.name, "accept_ra"]);
            // A forwarding interface accepts router advertisements only with the
            // value 2.
            let keep = match accept.number() {
                Some(1) => format!("{}=2 ", accept.name()),
                _ => String::new(),
            };
            // Gateways on this node are reached by IPv4.
            let severity = if settings.nodes.iter().any(IpAddr::is_ipv6) {
                Severity::Error
            } else {
                Severity::Warning
            };
            findings.push(Finding::new(
                severity,
                "forwarding",
                found(&name),
                format!("`sysctl -w {keep}{name}=1`"),
            ));
        }
    }
    findings
}

/// Steered packets pass no filter; but errors and replies for the node itself may
/// arrive on another interface than the one it would use.
fn rp_filter(link: &Link, asymmetric: bool) -> Option<Finding> {
    let all = Sysctl(&["ipv4", "conf", "all", "rp_filter"]).number()?;
    let parts = ["ipv4", "conf", &link.name, "rp_filter"];
    let own = Sysctl(&parts);
    let effective = all.max(own.number()?);
    (asymmetric && effective == 1).then(|| {
        Finding::warning(
            "rp_filter",
            format!(
                "{} is strict ({all} for all, {} of its own; the greater counts): the node drops \
                 packets that arrive on {} from addresses that it reaches by another interface",
                own.name(),
                own.number().unwrap_or_default(),
                link.name
            ),
            format!("`sysctl -w {}=2`", own.name()),
        )
    })
}

fn no_default(is_v6: bool) -> Finding {
    let (family, option, network) = if is_v6 {
        ("IPv6", "-6 ", "::/0")
    } else {
        ("IPv4", "", "0.0.0.0/0")
    };
    Finding::warning(
        "default_route",
        format!("no default route of {family}: clients beyond the known networks get no answer"),
        format!("add one: ip {option}route add {network} via ROUTER"),
    )
}

async fn reach(node: IpAddr, network: &Network, uplinks: &[&Link]) -> Option<Finding> {
    let own = network.addresses.iter().any(|own| own.address == node);
    let way = network.way(node).await;
    if own || way.as_ref().is_some_and(|way| way.local) {
        return Some(Finding::error(
            "node_own",
            format!("the other node {node} is this node"),
            "give each node an address of its own, and no node that of another",
        ));
    }
    let unreached = || {
        Finding::error(
            "node_route",
            format!("there is no route to the node {node}"),
            format!("add one: ip route add {node} via ROUTER; see `ip route get {node}`"),
        )
    };
    let Some(way) = way else {
        return Some(unreached());
    };
    let Some(link) = way.link.and_then(|index| network.links.get(&index)) else {
        return Some(unreached());
    };
    let name = &link.name;
    if !uplinks.is_empty() && !uplinks.iter().any(|uplink| uplink.index == link.index) {
        return Some(Finding::error(
            "node_uplink",
            format!(
                "the node {node} is behind {name}, which is not an uplink: \
                 its gateways' replies arrive unseen"
            ),
            format!("add --uplink {name}"),
        ));
    }
    if network.silent.contains(&(link.index, way.next_hop)) {
        return Some(Finding::warning(
            "node_neighbour",
            format!(
                "{} on {name}, the next hop to the node {node}, does not answer",
                way.next_hop
            ),
            format!("check that it is up, and on the same network as {name}"),
        ));
    }
    let widest = uplinks.iter().max_by_key(|uplink| uplink.mtu)?;
    // Different MTUs of uplinks are reported once, for the uplink.
    let fits = way.mtu?;
    (fits < widest.mtu).then(|| {
        Finding::warning(
            "node_mtu",
            format!(
                "packets of up to {} bytes come in by {}, but no more than {fits} \
                 go to the node {node}",
                widest.mtu, widest.name
            ),
            format!(
                "raise the MTU of the route (see `ip route get {node}` it), \
                 or lower the uplink's: ip link set dev {} mtu {fits}",
                widest.name
            ),
        )
    })
}
