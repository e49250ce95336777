//! Edges with several uplinks, or several addresses.

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, EDGE, Topology, Uplink};

use crate::scene::{EDGE6, HOPS, Hairpin, endpoint, naming, small, turn_to};

/// Of the second uplink.
const SECOND: [&str; 2] = ["203.0.113.2", "2001:db8:200::2"];

/// Gives `edge` another network towards `router`, on eth2. In IPv6 a route of
/// a higher metric is not found for an interface: it takes a rule.
fn second(edge: &Node, router: &Node) -> Result<()> {
    edge.link("eth2", router, "second")?;
    let [v4, v6] = SECOND;
    edge.sh(&format!(
        "ip addr add {v4}/24 dev eth2; ip addr add {v6}/64 dev eth2 nodad
         sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 \
                    net.ipv4.conf.eth2.rp_filter=0
         ip route add default via 203.0.113.1 dev eth2 metric 200
         ip -6 route add default via 2001:db8:200::1 dev eth2 table 200
         ip -6 rule add from {v6} lookup 200"
    ))?;
    // XDP sends into a veth only if its other end is polled.
    router
        .sh("ethtool -K second gro on
             ip addr add 203.0.113.1/24 dev second; ip addr add 2001:db8:200::1/64 dev second nodad")
        .map(drop)
}

/// Counts what comes from the edge by each link, by address.
fn watch(router: &Node, first: &str, port: u16) -> Result<()> {
    router
        .sh(&format!(
            "nft -f - <<END
table inet watch {{
  counter first {{ }}
  counter second {{ }}
  counter astray {{ }}
  chain came {{
    type filter hook prerouting priority -500;
    udp sport {port} iifname {first} ip saddr 198.51.100.0/24 counter name first accept
    udp sport {port} iifname {first} ip6 saddr 2001:db8:100::/64 counter name first accept
    udp sport {port} iifname second ip saddr 203.0.113.0/24 counter name second accept
    udp sport {port} iifname second ip6 saddr 2001:db8:200::/64 counter name second accept
    udp sport {port} iifname {{ {first}, second }} counter name astray
  }}
}}
END"
        ))
        .map(drop)
}

fn count(router: &Node, counter: &str) -> Result<u64> {
    let text = router.sh(&format!("nft list counter inet watch {counter}"))?;
    let mut words = text.split_whitespace();
    words
        .find(|word| *word == "packets")
        .context("no counter")?;
    Ok(words.next().context("no count")?.parse()?)
}

/// Turns the client to each address in turn: it is answered from there.
fn follow(
    client: &Client,
    node: &Node,
    router: &Node,
    port: u16,
    turns: &[(&str, &str)],
) -> Result<()> {
    let handshake = node.sh("wg show wg0 latest-handshakes")?;
    for (address, counter) in turns {
        turn_to(node, port, address)?;
        // The gateway, too, learns from the first.
        client.await_reach(A.server)?;
        let before = [count(router, counter)?, count(router, "astray")?];
        let all = || -> Result<u64> { Ok(count(router, "first")? + count(router, "second")?) };
        let sum = all()?;
        client
            .lose_nothing(A.server, 300, || Ok(()))
            .with_context(|| address.to_string())?;
        let after = count(router, counter)?;
        ensure!(after >= before[0] + 300, "{address}: {after} by {counter}");
        ensure!(
            all()? - sum == after - before[0],
            "{address}: others were answered by the other uplink"
        );
        ensure!(count(router, "astray")? == 0, "{address}: some went astray");
    }
    ensure!(node.sh("wg show wg0 latest-handshakes")? == handshake);
    Ok(())
}

#[test]
fn a_local_gateway_answers_by_the_uplink_and_from_the_address_that_was_asked() -> Result<()> {
    let topology = small(Uplink::Veth)?;
    second(&topology.edge, &topology.router)?;
    let edge = Edge::on(&topology.edge, "eth0", &[("--uplink=eth2", "")])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let node = &topology.client_a;
    let client = Client::up(node, &naming(&tenant.configuration, SECOND[0]))?;
    client.await_reach(A.server)?;
    watch(&topology.router, "edge", tenant.port)?;
    let turns = [
        (SECOND[0], "second"),
        (EDGE, "first"),
        (SECOND[1], "second"),
        (EDGE6, "first"),
        (SECOND[0], "second"),
    ];
    follow(&client, node, &topology.router, tenant.port, &turns)
}

#[test]
fn an_edge_answers_for_other_nodes_by_the_uplink_that_was_asked() -> Result<()> {
    let prepare = |region: &lab::region::Region| second(&region.edges[0], &region.balancer.node);
    let scene = Hairpin::new(prepare, &["--uplink", "eth2"])?;
    let (region, port) = (&scene.region, scene.tenant.port);
    let client = scene.client(SECOND[0])?;
    let router = &region.balancer.node;
    watch(router, "eth0", port)?;
    let turns = [
        (SECOND[0], "second"),
        (HOPS[0], "first"),
        (SECOND[1], "second"),
        (HOPS[1], "first"),
        (SECOND[0], "second"),
    ];
    follow(&client, &region.client_a, router, port, &turns)
}

/// Where replies come from, as the router sees them.
fn from(topology: &Topology, port: u16, address: &str) -> Result<u64> {
    let table = "nft add table ip seen; nft add chain ip seen c '{ type filter hook prerouting priority -400; }'";
    topology.router.sh(&format!(
        "nft list table ip seen >/dev/null 2>&1 || {{ {table}; }}
         nft flush chain ip seen c
         nft add rule ip seen c udp sport {port} ip saddr {address} counter"
    ))?;
    Ok(0)
}

#[test]
fn named_addresses_are_the_edges_and_each_is_answered_from() -> Result<()> {
    const OTHERS: [&str; 2] = ["198.51.100.3", "198.51.100.4"];
    let topology = small(Uplink::Veth)?;
    for other in OTHERS {
        topology
            .edge
            .sh(&format!("ip addr add {other}/24 dev eth0"))?;
    }
    // The last one is the node's, but not the edge's.
    let more = [
        ("--address=198.51.100.3", ""),
        ("--address=198.51.100.2", ""),
    ];
    let edge = Edge::start(&topology, Uplink::Veth, &more)?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let (node, port) = (&topology.client_a, tenant.port);
    let client = Client::up(node, &naming(&tenant.configuration, EDGE))?;
    client.await_reach(A.server)?;
    for address in [EDGE, OTHERS[0], EDGE] {
        turn_to(node, port, address)?;
        client.await_reach(A.server)?;
        from(&topology, port, address)?;
        client.lose_nothing(A.server, 200, || Ok(()))?;
        let seen = topology.router.sh("nft list chain ip seen c")?;
        let count = seen.split("packets ").nth(1).context("no count")?;
        let count: u64 = count.split(' ').next().context("no count")?.parse()?;
        ensure!(count >= 200, "{address}: {seen}");
    }
    turn_to(node, port, OTHERS[1])?;
    client.await_cut(A.server)?;
    ensure!(endpoint(&edge.node, port)?.starts_with(A.client));
    Ok(())
}
