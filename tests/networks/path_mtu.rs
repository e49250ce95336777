//! ICMP errors find whoever sent the packet that they are about.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::raw::Raw;
use lab::region::{EDGES, WORKERS};
use lab::topology::{A, EDGE, Uplink};

use crate::scene::{CLIENT6, EDGE6, HOPS, Hairpin, download, in_gateway, naming, small};

/// MTUs of a link on the way.
const NARROW: [u16; 2] = [1400, 1280];

/// Pings in the tunnel that fill its packets: the gateway's answers are too long
/// for the narrow link, until it knows.
fn provoke(client: &lab::node::Node) {
    let large = format!("ping -n -q -i 0.05 -c 5 -W 1 -s 1372 {} || true", A.server);
    // Lost, most of them, as they are to be.
    let _ = client.sh(&large);
}

#[test]
fn a_gateway_of_this_node_learns_how_large_its_clients_links_are() -> Result<()> {
    for mtu in NARROW {
        let topology = small(Uplink::Veth)?;
        let edge = Edge::start(&topology, Uplink::Veth, &[])?;
        let tenant = edge.enabled(&A)?;
        edge.await_state(&tenant.id, "enabled")?;
        let node = &topology.client_a;
        for (own, far) in [(A.client, EDGE), (CLIENT6, EDGE6)] {
            let client = Client::up(node, &naming(&tenant.configuration, far))?;
            client.await_reach(A.server)?;
            let prefix = if own.contains(':') { 128 } else { 32 };
            topology.router.sh(&format!(
                "ip route replace {own}/{prefix} dev client-a mtu lock {mtu}"
            ))?;
            let path = format!("ip route get {own}");
            ensure!(!in_gateway(&edge.node, tenant.port, &path)?.contains("mtu"));
            provoke(node);
            let path = in_gateway(&edge.node, tenant.port, &path)?;
            ensure!(path.contains(&format!("mtu {mtu}")), "{far}: {path}");
            // As an operator sets it, for links that narrow: WireGuard pads to 16 bytes.
            node.sh(&format!("ip link set wg0 mtu {}", mtu - 104))?;
            download(node, &topology.cluster, 5).with_context(|| format!("{far}, {mtu}"))?;
            client.down()?;
        }
    }
    Ok(())
}

#[test]
fn a_gateway_of_another_node_learns_how_large_its_clients_links_are() -> Result<()> {
    let scene = Hairpin::new(|_| Ok(()), &[])?;
    let region = &scene.region;
    let balancer = &region.balancer.node;
    for address in HOPS {
        let client = scene.client(address)?;
        let own = if address.contains(':') {
            "2001:db8:a::2/128"
        } else {
            "192.0.2.2/32"
        };
        balancer.sh(&format!(
            "ip route replace {own} dev client-a mtu lock 1400"
        ))?;
        // To the gateway, the edge is the client.
        let path = format!("ip route get {address}");
        ensure!(!scene.in_gateway(&path)?.contains("mtu"));
        provoke(&region.client_a);
        let path = scene.in_gateway(&path)?;
        ensure!(path.contains("mtu 1400"), "{address}: {path}");
        region.client_a.sh("ip link set wg0 mtu 1296")?;
        download(&region.client_a, &region.cluster, 5)?;
        client.down()?;
    }
    Ok(())
}

#[test]
fn a_client_learns_how_large_the_way_to_its_gateways_node_is() -> Result<()> {
    let scene = Hairpin::new(|_| Ok(()), &[])?;
    let region = &scene.region;
    let [edge, _] = &region.edges;
    let narrow = &region.edges[1];
    // Over another node, which says what does not fit: so that it is not the
    // edge's own routes that do.
    narrow
        .sh("sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0")?;
    for (address, [via, worker]) in HOPS
        .into_iter()
        .zip([[EDGES[1].v4, WORKERS[0].v4], [EDGES[1].v6, WORKERS[0].v6]])
    {
        let length = if address.contains(':') { 128 } else { 32 };
        edge.sh(&format!("ip route add {worker}/{length} via {via}"))?;
        narrow.sh(&format!(
            "ip route add {worker}/{length} dev eth0 mtu lock 1400"
        ))?;
        edge.await_sh(&format!("ip neigh show {via} | grep -q lladdr"))?;
        let client = scene.client(address)?;
        let path = format!("ip route get {address}");
        ensure!(!region.client_a.sh(&path)?.contains("mtu"));
        provoke(&region.client_a);
        let path = region.client_a.sh(&path)?;
        ensure!(path.contains("mtu 1400"), "{address}: {path}");
        client.down()?;
        edge.sh(&format!("ip route del {worker}/{length}"))?;
    }
    Ok(())
}

#[test]
fn a_strangers_error_about_no_flow_reaches_nobody() -> Result<()> {
    let topology = small(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    edge.await_state(&tenant.id, "enabled")?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    let own: u16 = topology.client_a.sh("wg show wg0 listen-port")?.parse()?;
    in_gateway(
        &edge.node,
        tenant.port,
        "nft add table ip seen
         nft add chain ip seen c \"{ type filter hook prerouting priority -400; }\"
         nft add rule ip seen c icmp type destination-unreachable counter",
    )?;
    let edge_address: Ipv4Addr = EDGE.parse()?;
    let count = |packets: u32| {
        format!(
            "ip netns exec vpn-edge-{} nft list chain ip seen c | grep -q 'packets {packets} '",
            tenant.port
        )
    };
    let tell = |to: Ipv4Addr, port: u16| {
        let sent = SocketAddrV4::new(edge_address, tenant.port);
        let tell = topology.router.inside(move || {
            let raw = Raw::open()?;
            (0..3).try_for_each(|_| raw.too_big(sent, SocketAddrV4::new(to, port), 1400))
        });
        tell.join().expect("the thread does not panic")
    };
    for (to, port) in [(A.client, own ^ 1), ("192.0.2.77", own)] {
        tell(to.parse()?, port)?;
    }
    // These come after, and are all that has come.
    tell(A.client.parse()?, own)?;
    edge.node.await_sh(&count(3))?;
    Ok(())
}
