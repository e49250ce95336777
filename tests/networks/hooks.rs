//! Edges that send on without XDP, or before XDP knows the way.

use anyhow::{Result, ensure};
use lab::region::{Region, WORKERS};
use lab::topology::A;

use crate::scene::{HOPS, Hairpin, bulk, grew, number};

/// Puts a bridge in place of the edge's uplink, by the same name.
fn bridged(region: &Region) -> Result<()> {
    let [edge, _] = &region.edges;
    let [v4, v6] = HOPS;
    edge.sh(&format!(
        "ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 name port
         ip link add eth0 type bridge forward_delay 0 mcast_snooping 0
         ip link set port master eth0; ip link set port up; ip link set eth0 up
         ip addr add {v4}/24 dev eth0; ip route replace default via 198.51.100.1
         ip addr add {v6}/64 dev eth0 nodad; ip -6 route replace default via 2001:db8:100::1"
    ))
    .map(drop)
}

#[test]
fn tc_alone_brings_clients_to_other_nodes() -> Result<()> {
    let scene = Hairpin::new(bridged, &[])?;
    let log = scene.agent.log();
    ensure!(log.contains("no native XDP"), "{log}");
    for address in HOPS {
        let client = scene.client(address)?;
        let before = scene.port()?;
        client.lose_nothing(A.server, 500, || Ok(()))?;
        bulk(&scene.region.client_a, &scene.region.cluster, "-n 5M")?;
        let after = scene.port()?;
        for path in ["/ingress/packets", "/egress/packets"] {
            grew(path, number(&before, path)?, number(&after, path)?, 500)?;
        }
        client.down()?;
    }
    Ok(())
}

#[test]
fn what_xdp_knows_no_way_for_is_sent_by_tc() -> Result<()> {
    let scene = Hairpin::new(|_| Ok(()), &[])?;
    let [edge, _] = &scene.region.edges;
    for (address, node) in HOPS.into_iter().zip([WORKERS[0].v4, WORKERS[0].v6]) {
        let client = scene.client(address)?;
        client.lose_nothing(A.server, 1_500, || {
            for _ in 0..5 {
                edge.sh(&format!("ip neigh del {node} dev eth0 || true"))?;
                scene.await_neighbours()?;
            }
            Ok(())
        })?;
        client.down()?;
    }
    Ok(())
}
