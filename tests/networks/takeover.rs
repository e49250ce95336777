//! Ports that were the kernel's until the edge came, and are again after it.

use anyhow::{Context, Result, ensure};
use lab::agent::{Agent, Allocation};
use lab::client::Client;
use lab::kube_proxy::{self, Mode};
use lab::manual_setup::ByHand;
use lab::region::{EDGES, Region, WORKERS};
use lab::topology::A;

use crate::scene::{HOPS, bracketed, number};

const PORT: u16 = 31_000;

/// How many tracked connections of the port the node has.
const TRACKED: &str = "for family in ipv4 ipv6; do
                           conntrack -L -f $family -p udp --dport 31000 2>/dev/null
                       done | wc -l";

#[test]
fn a_chatty_client_is_taken_over_from_the_kernel_and_given_back() -> Result<()> {
    for address in HOPS {
        taken_over(address).with_context(|| address.to_owned())?;
    }
    Ok(())
}

fn taken_over(address: &str) -> Result<()> {
    let region = Region::new()?;
    let gateway = ByHand::start(&region, 0, PORT, A)?;
    for (host, node) in region.hosts() {
        kube_proxy::lay(node, &host, Mode::Nftables, &gateway.services())?;
    }
    let [edge, _] = &region.edges;
    let client = Client::up(
        &region.client_a,
        &gateway.configuration(&bracketed(address))?,
    )?;
    client.await_reach(A.server)?;
    ensure!(edge.sh(TRACKED)? != "0", "the kernel tracks nothing");

    // The client talks all the time.
    let mut row = Allocation::new(PORT, &gateway.public_key(), Some(&WORKERS[0]));
    row.tenant = "7c9e6679-7425-40de-944b-e07fc1f90ae7".to_owned();
    let mut command = region.client_a.command("ping");
    command.args(["-n", "-q", "-i", "0.005", A.server]);
    let _chatter = region.client_a.start("chatter", command)?;
    let mut agent = Agent::start(edge, &[], &[])?;
    agent.write(&[row.clone()])?;
    agent.await_ports(|ports| ports.get(&PORT).is_some_and(|row| row["mode"] == "hop"))?;
    edge.await_sh(&format!("test $({TRACKED}) = 0"))?;
    client.await_reach(A.server)?;
    client.lose_nothing(A.server, 300, || Ok(()))?;
    let counted = number(&agent.ports()?[&PORT], "/egress/packets")?;
    ensure!(counted >= 300, "the edge counts {counted}");
    ensure!(edge.sh(TRACKED)? == "0", "the kernel tracks it again");

    // Taken off, the port is the kernel's again.
    agent.write(&[])?;
    agent.await_ports(|ports| !ports.contains_key(&PORT))?;
    client.await_reach(A.server)?;
    edge.await_sh(&format!("test $({TRACKED}) != 0"))?;
    agent.write(&[row])?;
    edge.await_sh(&format!("test $({TRACKED}) = 0"))?;
    client.await_reach(A.server)?;
    agent.stop()?;
    agent.vpn_edge(&["teardown"])?;
    client.await_reach(A.server)?;
    edge.await_sh(&format!("test $({TRACKED}) != 0"))?;
    ensure!(gateway.endpoint()?.contains(EDGES[0].v4) || address.contains(':'));
    Ok(())
}
