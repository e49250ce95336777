//! A gateway's node that runs nothing of ours, but kube-proxy's rules.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use lab::agent::Allocation;
use lab::client::Client;
use lab::kube_proxy::{self, Mode};
use lab::manual_setup::ByHand;
use lab::message;
use lab::node::Node;
use lab::region::{EDGES, Family, Region, WORKERS};
use lab::topology::{A, B, HOSTNAME};
use lab::transfer::{Length, Transfer};
use vpn_edge::wireguard::PublicKey;

use crate::counts::Count;
use crate::running::{clients, drops};
use crate::scene::Scene;

const PORT: u16 = 31_000;

/// A region with a gateway behind the first worker's rules, and agents.
fn scene(mode: Mode) -> Result<(ByHand, Scene)> {
    let region = Region::new()?;
    let gateway = ByHand::start(&region, 0, PORT, A)?;
    kube_proxy::lay(&region.workers[0], &WORKERS[0], mode, &gateway.services())?;
    let row = Allocation::new(PORT, &gateway.public_key(), Some(&WORKERS[0]));
    Ok((gateway, Scene::new(region, &[row])?))
}

fn comes_through(mode: Mode) -> Result<()> {
    let (gateway, scene) = scene(mode)?;
    let region = &scene.region;
    for family in Family::BOTH {
        region.names(&region.client_a, &[family])?;
        let client = Client::up(&region.client_a, &gateway.configuration(HOSTNAME)?)?;
        client
            .await_reach(A.server)
            .with_context(|| format!("{family:?}: {}", gateway.log()))?;
        ensure!(!client.reaches(B.server), "the gateway lets through all");
        for (edge, agent) in EDGES.iter().zip(&scene.agents) {
            region.balancer.pin(&[edge.name])?;
            client.await_reach(A.server)?;
            ensure!(region.balancer.targets_of(PORT)? == [edge.name]);
            client.lose_nothing(A.server, 500, || Ok(()))?;
            let length = Length::Bytes(2 << 20);
            let transfer = Transfer::start(&region.client_a, &region.cluster, A.server, length)?;
            transfer.finish()?;
            let row = &agent.ports()?[&PORT];
            ensure!(row["mode"] == "hop" && row["dropped"] == 0, "{row}");
            // The gateway sees none of us, by rules that masquerade. The edge
            // knows whose answers these are.
            let endpoint = gateway.endpoint()?;
            let ours = family.address(edge);
            ensure!(!endpoint.contains(ours), "{endpoint} is not masqueraded");
            let clients = clients(agent, PORT)?;
            let client = match family {
                Family::V4 => "192.0.2.2:",
                Family::V6 => "[2001:db8:a::2]:",
            };
            let known = clients.iter().any(|place| place.starts_with(client));
            ensure!(known, "no {client} in {clients:?}");
        }
        client.down()?;
    }
    Ok(())
}

#[test]
fn a_client_reaches_a_gateway_behind_the_rules_of_the_nftables_mode() -> Result<()> {
    comes_through(Mode::Nftables)
}

#[test]
fn a_client_reaches_a_gateway_behind_the_rules_of_the_iptables_mode() -> Result<()> {
    comes_through(Mode::Iptables)
}

/// Sends `messages` from `node` to the balancer's `port`, from one socket.
fn send(node: &Node, family: Family, port: u16, messages: Vec<Vec<u8>>) -> Result<()> {
    let sent = node.inside(move || {
        let own = match family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "::",
        };
        let socket = UdpSocket::bind((own, 0))?;
        for message in messages {
            socket.send_to(&message, (family.vip(), port))?;
        }
        Ok(())
    });
    sent.join().expect("the thread does not panic")
}

#[test]
fn strangers_get_no_further_than_the_edge() -> Result<()> {
    let (gateway, scene) = scene(Mode::Nftables)?;
    let (region, port) = (&scene.region, PORT);
    region.balancer.pin(&[EDGES[0].name])?;
    let worker = &region.workers[0];
    let arrived = Count::new(worker, "arrived", &format!("udp dport {port}"))?;
    let elsewhere = Count::new(
        worker,
        "elsewhere",
        &format!("udp dport 30000-32767 udp dport != {port}"),
    )?;
    let key: PublicKey = gateway.public_key().parse()?;
    let (agent, stranger) = (&scene.agents[0], &region.client_b);
    let mut expected = 0;
    for (at, family) in (0..).zip(Family::BOTH) {
        let forged = |number: u32| {
            let mut initiation = message::initiation(number, key.as_bytes());
            initiation[116..132].fill(number as u8);
            initiation
        };
        let before = drops(agent, port)?.get("mac1").copied().unwrap_or_default();
        send(stranger, family, port, (1..=10).map(forged).collect())?;
        send(stranger, family, port, vec![vec![0; 148], vec![4; 20]])?;
        let known = message::initiation(100 + at, key.as_bytes());
        send(stranger, family, port + 1, vec![known.clone()])?;
        // What comes through shows that all before it has come to the edge.
        send(stranger, family, port, vec![known])?;
        expected += 1;
        worker.await_sh(&format!(
            "nft list counter inet arrived seen | grep -q 'packets {expected} '"
        ))?;
        ensure!(arrived.packets()? == expected, "{}", arrived.packets()?);
        ensure!(elsewhere.packets()? == 0, "{}", elsewhere.packets()?);
        let after = drops(agent, port)?.get("mac1").copied().unwrap_or_default();
        ensure!(after == before + 10, "{before}, then {after}");
    }
    Ok(())
}
