//! Real WireGuard from a client through the balancer and kube-proxy's rules on
//! the edges to a gateway on a worker.

use anyhow::{Context, Result, ensure};
use lab::client::Client;
use lab::kube_proxy::{self, Mode};
use lab::manual_setup::ByHand;
use lab::region::{EDGES, Family, Region};
use lab::topology::{A, B, HOSTNAME};

const PORT: u16 = 31_000;

/// Connects a client of tenant A by each of `families` in turn.
fn comes_through(mode: Mode, families: &[Family]) -> Result<()> {
    let region = Region::new()?;
    let gateway = ByHand::start(&region, 0, PORT, A)?;
    for (host, node) in region.hosts() {
        kube_proxy::lay(node, &host, mode, &gateway.services())?;
    }
    for family in families {
        region.names(&region.client_a, &[*family])?;
        let client = Client::up(&region.client_a, &gateway.configuration(HOSTNAME)?)?;
        client
            .await_reach(A.server)
            .with_context(|| format!("{family:?}: {}", gateway.log()))?;
        ensure!(!client.reaches(B.server), "the gateway lets through all");

        // Whichever edge the flow is on, the rules there bring it through, and
        // hide the client behind their node.
        for edge in EDGES {
            region.balancer.pin(&[edge.name])?;
            client.await_reach(A.server)?;
            ensure!(region.balancer.targets_of(PORT)? == [edge.name]);
            let (endpoint, address) = (gateway.endpoint()?, family.address(&edge));
            ensure!(endpoint.contains(address), "{endpoint}, not {address}");
        }
        client.down()?;
    }
    Ok(())
}

#[test]
fn a_client_comes_through_the_rules_of_the_nftables_mode() -> Result<()> {
    comes_through(Mode::Nftables, &Family::BOTH)
}

#[test]
fn a_client_comes_through_the_rules_of_the_iptables_mode() -> Result<()> {
    comes_through(Mode::Iptables, &Family::BOTH)
}

#[test]
fn without_the_rules_nobody_comes_through() -> Result<()> {
    let region = Region::new()?;
    let gateway = ByHand::start(&region, 1, PORT, B)?;
    let [edge, _] = &region.edges;
    region.balancer.pin(&[EDGES[0].name])?;
    kube_proxy::lay(edge, &EDGES[0], Mode::Nftables, &gateway.services())?;
    let client = Client::up(&region.client_b, &gateway.configuration(Family::V4.vip())?)?;
    client.await_reach(B.server)?;
    kube_proxy::clear(edge)?;
    client.await_cut(B.server)?;
    kube_proxy::lay(edge, &EDGES[0], Mode::Iptables, &gateway.services())?;
    client.await_reach(B.server)
}
