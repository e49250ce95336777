//! Options of the daemon that are changed over a restart.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::client::Client;
use lab::edge::Edge;
use lab::names;
use lab::node::Node;
use lab::topology::{A, DNS};

use super::{connected, gateways, line};

const OTHER_DNS: &str = "10.96.0.11";

/// Whether the server answers the node a question about `db`.
fn answers(node: &Node, server: &str) -> Result<bool> {
    // RFC 1035, section 4: id 7, one question, of type A and class IN.
    const QUESTION: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x02db\0\0\x01\0\x01";
    let server = SocketAddr::new(server.parse()?, 53);
    let asked = node.inside(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send(QUESTION)?;
        let mut answer = [0; 512];
        Ok(socket.recv(&mut answer).is_ok() && answer[..2] == QUESTION[..2])
    });
    asked.join().expect("the thread does not panic")
}

fn await_answer(node: &Node, server: &str) -> Result<()> {
    let start = Instant::now();
    while !answers(node, server)? {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "no answer from {server}"
        );
    }
    Ok(())
}

fn handshake(node: &Node) -> Result<String> {
    node.sh("wg show wg0 latest-handshakes")
}

#[test]
fn another_dns_server_reaches_a_running_gateway_and_ends_no_session() -> Result<()> {
    let (mut edge, client, tenant, topology) = connected()?;
    let laptop = &topology.client_a;
    topology
        .cluster
        .sh(&format!("ip addr add {OTHER_DNS}/32 dev lo"))?;
    let _names = names::serve(&topology.cluster, &[DNS, OTHER_DNS], &[("db", A.server)])?;
    await_answer(laptop, DNS)?;
    ensure!(!answers(laptop, OTHER_DNS)?, "it is not the tenant's yet");
    let (running, session) = (gateways(&edge)?, handshake(laptop)?);

    edge.stop()?;
    edge.change(&[("--dns", OTHER_DNS)]);
    client.lose_nothing(A.server, 3_000, || edge.restart())?;
    let file = edge.configuration(&tenant.id)?;
    ensure!(line(&file, "DNS") == format!("DNS = {OTHER_DNS}"), "{file}");
    await_answer(laptop, OTHER_DNS)?;
    ensure!(!answers(laptop, DNS)?, "the old one is reached still");
    ensure!(gateways(&edge)? == running, "the gateway was restarted");
    ensure!(handshake(laptop)? == session, "the session was lost");
    Ok(())
}

#[test]
fn a_tunnel_keeps_its_subnet_when_other_ranges_are_reserved() -> Result<()> {
    let (mut edge, client, tenant, topology) = connected()?;
    let status = |edge: &Edge| {
        let status = edge.tenant(&["status", &tenant.id])?;
        anyhow::Ok(["subnet", "client_address"].map(|key| status[key].clone()))
    };
    let (running, before) = (gateways(&edge)?, status(&edge)?);
    let subnet = before[0].as_str().unwrap_or_default().to_owned();
    edge.stop()?;
    edge.change(&[("--cluster-ranges", &format!("10.96.0.0/12,{subnet}"))]);
    client.lose_nothing(A.server, 3_000, || edge.restart())?;
    ensure!(status(&edge)? == before, "another subnet is told");
    let file = edge.configuration(&tenant.id)?;
    ensure!(file == tenant.configuration, "{file}");
    ensure!(gateways(&edge)? == running, "the gateway was restarted");

    // New keys have it too; and who enables the VPN anew gets another.
    edge.tenant(&["regenerate", &tenant.id])?;
    ensure!(status(&edge)? == before, "another subnet is told");
    let file = edge.configuration(&tenant.id)?;
    let client = Client::up(&topology.client_a, &file)?;
    client.await_reach(A.server)?;
    edge.tenant(&["disable", &tenant.id])?;
    edge.tenant(&["enable", &tenant.id])?;
    ensure!(status(&edge)?[0] != before[0], "it is clear of the ranges");
    let file = edge.configuration(&tenant.id)?;
    let client = Client::up(&topology.client_a, &file)?;
    client.await_reach(A.server)
}

#[test]
fn a_restart_switches_the_programs_log_on_and_off() -> Result<()> {
    let (mut edge, mut client, tenant, topology) = connected()?;
    let logged = |edge: &Edge| edge.log().matches(" datapath: ").count();
    let reads = |edge: &Edge| anyhow::Ok(edge.threads()?.iter().any(|name| name == "datapath"));
    ensure!(logged(&edge) == 0 && !reads(&edge)?, "by default it is off");
    for (level, logs) in [("debug", true), ("trace", true), ("off", false)] {
        edge.stop()?;
        edge.change(&[("--datapath-log", level)]);
        client.lose_nothing(A.server, 3_000, || edge.restart())?;
        let before = logged(&edge);
        // Another handshake.
        client = Client::up(&topology.client_a, &tenant.configuration)?;
        client.await_reach(A.server)?;
        ensure!(reads(&edge)? == logs, "at {level}: {:?}", edge.threads()?);
        if !logs {
            ensure!(logged(&edge) == before, "at {level}:\n{}", edge.log());
            continue;
        }
        let announced = format!(
            "DEBUG datapath: port {}: the gateway announces session ",
            tenant.port
        );
        let start = Instant::now();
        while edge.log().matches(&announced).count() == 0 || logged(&edge) == before {
            ensure!(
                start.elapsed() < Duration::from_secs(10),
                "nothing logged at {level}:\n{}",
                edge.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
