//! The whole system end to end, in the lab: real WireGuard at both ends.

#[path = "lab/options.rs"]
mod options;
#[path = "lab/own_key.rs"]
mod own_key;
#[path = "lab/secrets.rs"]
mod secrets;
#[path = "lab/session.rs"]
mod session;
#[path = "lab/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lab::client::Client;
use lab::edge::{Edge, Tenant};
use lab::node::Node;
use lab::topology::{A, B, EDGE, Topology, Uplink};
use serde_json::Value;
use vpn_edge_common::{Allocation, mode};

fn start() -> Result<(Topology, Edge)> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    Ok((topology, edge))
}

/// A client of tenant A whose tunnel is up.
fn connected() -> Result<(Edge, Client, Tenant, Topology)> {
    let (topology, edge) = start()?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    Ok((edge, client, tenant, topology))
}

type Connected = (Client, Tenant);

/// A client of each tenant, both tunnels up.
fn both_connected() -> Result<(Edge, [Connected; 2], Topology)> {
    let (edge, client_a, a, topology) = connected()?;
    let b = edge.enabled(&B)?;
    let client_b = Client::up(&topology.client_b, &b.configuration)?;
    client_b.await_reach(B.server)?;
    Ok((edge, [(client_a, a), (client_b, b)], topology))
}

fn line<'a>(configuration: &'a str, key: &str) -> &'a str {
    configuration
        .lines()
        .find(|line| line.starts_with(key))
        .expect("the configuration has the key")
}

/// The gateways' processes, as `(PID, start time)`.
fn gateways(edge: &Edge) -> Result<String> {
    edge.node
        .sh("ps -eo pid,lstart,args | grep '[v]pn-edge gateway' | sort")
}

#[test]
fn a_client_reaches_its_network_through_the_edge() -> Result<()> {
    let (edge, _, tenant, _) = connected()?;
    let port = &edge.ports()?[&tenant.port];
    ensure!(port["ingress"]["packets"].as_u64() > Some(0), "{port}");
    ensure!(port["egress"]["packets"].as_u64() > Some(0), "{port}");
    Ok(())
}

#[test]
fn each_of_two_tenants_reaches_its_own_network_and_not_the_others() -> Result<()> {
    let (edge, [(client_a, _), (client_b, _)], _) = both_connected()?;
    ensure!(!client_a.reaches(B.server), "tenant A reaches B's network");
    ensure!(!client_b.reaches(A.server), "tenant B reaches A's network");
    for port in edge.ports()?.values() {
        ensure!(port["mode"] == "xdp", "{port}");
    }
    Ok(())
}

#[test]
fn disabling_cuts_the_client_off_and_clears_port_and_keys() -> Result<()> {
    let (edge, [(client_a, a), (client_b, b)], topology) = both_connected()?;

    edge.tenant(&["disable", &a.id])?;
    client_a.await_cut(A.server)?;
    edge.await_ports(|ports| ports.keys().eq([&b.port]))?;
    ensure!(
        client_b.reaches(B.server),
        "the other tenant is cut off too"
    );
    let refused = edge.configuration(&a.id).unwrap_err().to_string();
    ensure!(refused.contains("VPN is not enabled"), "{refused}");
    let left = edge
        .node
        .sh("ls /run/netns /run/vpn-edge/gateways; ip -br link")?;
    ensure!(
        !left.contains(&a.port.to_string()),
        "the gateway left something: {left}"
    );
    // A new life is a new one: other keys, whatever the port.
    edge.tenant(&["enable", &a.id])?;
    let again = edge.configuration(&a.id)?;
    ensure!(line(&again, "PrivateKey") != line(&a.configuration, "PrivateKey"));
    Client::up(&topology.client_a, &again)?.await_reach(A.server)
}

#[test]
fn regenerating_kills_the_old_configuration_and_keeps_port_and_address() -> Result<()> {
    let (edge, client, tenant, topology) = connected()?;

    edge.tenant(&["regenerate", &tenant.id])?;
    let new = edge.configuration(&tenant.id)?;
    client.await_cut(A.server)?;
    for key in ["Endpoint", "Address", "AllowedIPs", "DNS"] {
        ensure!(
            line(&new, key) == line(&tenant.configuration, key),
            "{key} changed"
        );
    }
    for key in ["PrivateKey", "PublicKey"] {
        ensure!(
            line(&new, key) != line(&tenant.configuration, key),
            "{key} stayed"
        );
    }
    Client::up(&topology.client_a, &new)?.await_reach(A.server)?;
    // Brought up anew, the old one gets no further.
    let old = Client::up(&topology.client_a, &tenant.configuration)?;
    old.await_cut(A.server)
}

#[test]
fn twenty_enables_at_once_get_twenty_ports_and_the_dry_pool_recovers() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[("--ports", "31000-31019")])?;
    let create = |number: usize| -> Result<String> {
        let organisation = format!("organisation-{number}");
        let plan = ["--plan", "enterprise_cloud", "--ready"];
        let tenant =
            edge.tenant(&[&["create", "--organisation", &organisation], &plan[..]].concat())?;
        Ok(tenant["id"].as_str().context("no id")?.to_owned())
    };
    let ids = (0..21).map(create).collect::<Result<Vec<_>>>()?;
    let (last, first) = ids.split_last().context("there are tenants")?;

    edge.node.sh(&format!(
        "export VPN_EDGE_TOKEN={}
         for id in {}; do {} tenant enable --no-wait $id >/dev/null & done; wait",
        edge.token(),
        first.join(" "),
        edge.program().display()
    ))?;
    let port = |id: &String| -> Result<u64> {
        edge.tenant(&["status", id])?["port"]
            .as_u64()
            .context("no port")
    };
    let ports = first.iter().map(port).collect::<Result<BTreeSet<u64>>>()?;
    ensure!(ports == (31_000..31_020).collect(), "{ports:?}");
    edge.await_ports(|ports| {
        ports.len() == 20 && ports.values().all(|port| port["mode"] == "xdp")
    })?;
    for id in first {
        edge.await_state(id, "enabled")?;
    }

    let refused = edge.tenant(&["enable", last]).unwrap_err().to_string();
    ensure!(refused.contains("no VPN ports available"), "{refused}");
    ensure!(edge.tenant(&["status", last])?["state"] == "disabled");
    let freed = edge.tenant(&["status", &first[7]])?["port"].clone();
    edge.tenant(&["disable", &first[7]])?;
    ensure!(edge.tenant(&["enable", last])?["port"] == freed);
    Ok(())
}

#[test]
fn killing_and_restarting_the_daemon_loses_no_packet_and_changes_nothing() -> Result<()> {
    let (mut edge, client, tenant, _) = connected()?;
    let before = (
        gateways(&edge)?,
        map_of(&edge.node)?,
        program_id(&edge.node)?,
    );

    client.lose_nothing(A.server, 5_000, || {
        edge.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        let down = edge.ports()?;
        ensure!(
            down.keys().eq([&tenant.port]),
            "`ports` while the daemon is down: {down:?}"
        );
        edge.restart()
    })?;
    ensure!(
        !edge.log().contains("Enabled to=Enabling"),
        "{}",
        edge.log()
    );
    let after = (
        gateways(&edge)?,
        map_of(&edge.node)?,
        program_id(&edge.node)?,
    );
    ensure!(
        before.0 == after.0,
        "a gateway was restarted: {before:?} {after:?}"
    );
    ensure!(before.1 == after.1, "the map changed: {before:?} {after:?}");
    ensure!(before.2 != after.2, "the old program still runs");
    ensure!(
        edge.configuration(&tenant.id)? == tenant.configuration,
        "keys or port changed"
    );

    // An orderly end does as much.
    client.lose_nothing(A.server, 5_000, || {
        edge.stop()?;
        edge.restart()
    })
}

#[test]
fn new_programs_replace_the_running_ones_without_losing_a_packet() -> Result<()> {
    let (mut edge, client, _, _) = connected()?;
    client.lose_nothing(A.server, 8_000, || {
        for _ in 0..5 {
            let before = program_id(&edge.node)?;
            edge.stop()?;
            edge.restart()?;
            ensure!(
                program_id(&edge.node)? != before,
                "the old program still runs"
            );
        }
        Ok(())
    })
}

#[test]
fn a_restarted_daemon_replaces_programs_in_place() -> Result<()> {
    let (mut edge, client, tenant, _) = connected()?;
    let veth = format!("vpn-edge-{}", tenant.port);
    let attached = |edge: &Edge| -> Result<(usize, usize)> {
        let filters = edge.node.sh(&format!(
            "for device in eth0 {veth}; do tc filter show dev $device ingress; done"
        ))?;
        let links = edge.node.sh("ls /sys/fs/bpf/vpn-edge/v3/links")?;
        Ok((
            filters.matches("direct-action").count(),
            links.lines().count(),
        ))
    };
    let before = attached(&edge)?;
    // XDP is a link everywhere; both tc programs are too from Linux 6.6.
    ensure!([(0, 3), (2, 1)].contains(&before), "{before:?}");
    for _ in 0..2 {
        edge.stop()?;
        ensure!(
            client.reaches(A.server),
            "traffic goes on without the daemon"
        );
        edge.restart()?;
        edge.await_state(&tenant.id, "enabled")?;
        ensure!(client.reaches(A.server));
        ensure!(attached(&edge)? == before, "{:?}", attached(&edge)?);
    }
    Ok(())
}

#[test]
fn a_tenant_deleted_while_the_daemon_was_down_is_gone_after_its_start() -> Result<()> {
    let (topology, mut edge) = start()?;
    let (a, b) = (edge.enabled(&A)?, edge.enabled(&B)?);
    let client = Client::up(&topology.client_a, &a.configuration)?;
    client.await_reach(A.server)?;
    edge.stop()?;
    edge.node.sh(&format!(
        "sqlite3 {} \"PRAGMA foreign_keys = ON; DELETE FROM tenant WHERE id = '{}'\"",
        edge.node.folder.join("vpn-edge.db").display(),
        a.id
    ))?;
    ensure!(
        client.reaches(A.server),
        "traffic goes on while the daemon is down"
    );
    edge.restart()?;
    edge.await_ports(|ports| ports.keys().eq([&b.port]))?;
    client.await_cut(A.server)?;
    edge.node
        .await_sh(&format!("! test -e /run/netns/vpn-edge-{}", a.port))
}

#[test]
fn map_entries_changed_by_someone_else_are_repaired() -> Result<()> {
    let (edge, client, tenant, _) = connected()?;
    let right = map_of(&edge.node)?;
    let port = tenant.port;
    let corrupt = edge.node.inside(move || {
        let mut map = allocations()?;
        let mut entry = map.get(&u32::from(port), 0)?;
        entry.ifindex += 1;
        entry.gateway = [9; 16];
        map.set(u32::from(port), entry, 0)?;
        let orphan = Allocation {
            mode: mode::XDP,
            ..entry
        };
        Ok(map.set(40_000, orphan, 0)?)
    });
    corrupt.join().expect("the thread does not panic")?;
    ensure!(map_of(&edge.node)? != right, "the map was corrupted");
    let open = edge.open_files()?;
    edge.await_ports(|ports| ports.len() == 1)?;
    let mut looks = 0;
    while map_of(&edge.node)? != right {
        looks += 1;
        ensure!(looks < 200, "the map stays corrupted");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Looking at hooks and maps again costs nothing that stays.
    ensure!(edge.open_files()? <= open + 1, "{open} files were open");
    client.await_reach(A.server)
}

#[test]
fn maps_follow_the_registry_also_while_the_uplink_is_not_to_be_had() -> Result<()> {
    let (edge, _, tenant, _) = connected()?;
    edge.node
        .sh("ip link set eth0 down; ip link set eth0 name gone0")?;
    let start = std::time::Instant::now();
    while !edge.log().contains("no interface `eth0`") {
        ensure!(start.elapsed() < Duration::from_secs(20), "{}", edge.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    edge.tenant(&["disable", &tenant.id])?;
    edge.await_ports(|ports| ports.is_empty())
}

#[test]
fn a_killed_gateway_is_made_again_and_the_client_finds_it() -> Result<()> {
    let (edge, client, tenant, _) = connected()?;
    let before = gateways(&edge)?;
    let pid = before.split_whitespace().next().context("a gateway runs")?;
    edge.node.sh(&format!("kill -9 {pid}"))?;
    edge.await_ports(|ports| ports[&tenant.port]["mode"] == "xdp")?;
    edge.await_state(&tenant.id, "enabled")?;
    client.await_reach(A.server)?;
    ensure!(gateways(&edge)? != before, "the gateway was made again");
    ensure!(
        edge.configuration(&tenant.id)? == tenant.configuration,
        "keys or port changed"
    );
    Ok(())
}

#[test]
fn networks_given_and_taken_act_at_once_and_keep_the_session() -> Result<()> {
    let (edge, client, tenant, _) = connected()?;
    let before = gateways(&edge)?;
    edge.tenant(&[
        "patch",
        &tenant.id,
        "--network",
        A.network,
        "--network",
        B.network,
    ])?;
    client.await_reach(B.server)?;
    edge.tenant(&["patch", &tenant.id, "--network", B.network])?;
    client.await_cut(A.server)?;
    ensure!(client.reaches(B.server));
    ensure!(gateways(&edge)? == before, "the gateway was restarted");
    Ok(())
}

#[test]
fn bulk_transfers_run_both_ways_over_xdp() -> Result<()> {
    let (topology, edge) = start()?;
    bulk(&topology, &edge, "xdp")
}

#[test]
fn bulk_transfers_run_both_ways_over_tc() -> Result<()> {
    let topology = Topology::new(Uplink::Bridge)?;
    let edge = Edge::start(&topology, Uplink::Bridge, &[])?;
    ensure!(edge.log().contains("no native XDP"), "{}", edge.log());
    bulk(&topology, &edge, "tc")
}

/// A transfer each way, without a stall and without a bad checksum anywhere.
fn bulk(topology: &Topology, edge: &Edge, hook: &str) -> Result<()> {
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    for direction in ["", "--reverse"] {
        let mut server = topology.cluster.command("timeout");
        server.args(["40", "iperf3", "-s", "-1", "-B", A.server]);
        let server = topology.cluster.start("iperf3", server)?;
        topology
            .cluster
            .await_sh(&format!("ss -ltn | grep -q {}:5201", A.server))?;
        let report = topology.client_a.sh(&format!(
            "timeout 40 iperf3 -c {} -t 4 -i 1 -J {direction}",
            A.server
        ))?;
        drop(server);
        let report: Value = serde_json::from_str(&report)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64();
        ensure!(received > Some(1 << 20), "{hook} {direction}: {report:#}");
        for interval in report["intervals"].as_array().context("no intervals")? {
            ensure!(
                interval["sum"]["bytes"].as_u64() > Some(0),
                "{hook} {direction} stalled: {report:#}"
            );
        }
    }
    let netns = format!("ip netns exec vpn-edge-{} cat /proc/net/snmp", tenant.port);
    for (node, read) in [
        (&topology.client_a, "cat /proc/net/snmp"),
        (&topology.cluster, "cat /proc/net/snmp"),
        (&topology.edge, "cat /proc/net/snmp"),
        (&topology.edge, netns.as_str()),
    ] {
        let errors = checksum_errors(&node.sh(read)?);
        ensure!(errors.is_empty(), "{hook}: {} has {errors:?}", node.name);
    }
    Ok(())
}

/// The checksum error counters of `/proc/net/snmp` that are not zero.
fn checksum_errors(snmp: &str) -> Vec<(String, u64)> {
    let lines: Vec<Vec<&str>> = snmp
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    lines
        .chunks_exact(2)
        .flat_map(|pair| {
            pair[0]
                .iter()
                .zip(&pair[1])
                .map(move |both| (pair[0][0], both))
        })
        .filter(|(_, (name, _))| **name == "InCsumErrors")
        .filter_map(|(protocol, (_, value))| Some((protocol.to_owned(), value.parse().ok()?)))
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[test]
fn other_traffic_through_the_uplink_passes_untouched() -> Result<()> {
    let (topology, edge) = start()?;
    let tenant = edge.enabled(&A)?;
    // A port of the pool that no tenant has, one outside it, and one that has
    // a tenant, but for TCP.
    for port in [30_777, 7] {
        let echo = topology.edge.inside(move || {
            let socket = UdpSocket::bind((EDGE, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut buffer = [0; 1500];
            let (length, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], from)?;
            Ok(())
        });
        let answer = topology.client_a.inside(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let message: Vec<u8> = (0..200).collect();
            let mut buffer = [0; 1500];
            for _ in 0..40 {
                socket.send_to(&message, (EDGE, port))?;
                if let Ok(length) = socket.recv(&mut buffer) {
                    ensure!(buffer[..length] == message, "the echo differs");
                    return Ok(());
                }
            }
            anyhow::bail!("no echo from port {port}")
        });
        answer.join().expect("the thread does not panic")?;
        echo.join().expect("the thread does not panic")?;
    }
    let port = tenant.port;
    let (listening, ready) = std::sync::mpsc::channel();
    let server = topology.edge.inside(move || {
        let listener = TcpListener::bind((EDGE, port))?;
        listening.send(())?;
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        Ok(all)
    });
    ready.recv_timeout(Duration::from_secs(10))?;
    let sent = topology.client_a.inside(move || {
        let message: Vec<u8> = (0..1_000_000_u32).map(|at| at as u8).collect();
        let mut stream = TcpStream::connect((EDGE, port))?;
        stream.write_all(&message)?;
        Ok(message)
    });
    let sent = sent.join().expect("the thread does not panic")?;
    let received = server.join().expect("the thread does not panic")?;
    ensure!(sent == received, "TCP brought something else");
    Ok(())
}

#[test]
fn what_is_no_wireguard_is_dropped_and_counted_by_reason() -> Result<()> {
    let (topology, edge) = start()?;
    let tenant = edge.enabled(&A)?;
    let port = tenant.port;
    let send = topology.client_a.inside(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        for _ in 0..5 {
            socket.send_to(&[b'A'; 64], (EDGE, port))?;
        }
        let mut initiation = [0; 147];
        initiation[0] = 1;
        socket.send_to(&initiation, (EDGE, port))?;
        socket.send_to(b"short", (EDGE, port))?;
        Ok(())
    });
    send.join().expect("the thread does not panic")?;
    edge.await_ports(|ports| ports[&port]["dropped"] == 7)?;
    let drops = &edge.ports()?[&port]["drops"];
    let expected = serde_json::json!({"message_length": 1, "message_type": 5, "truncated": 1});
    ensure!(*drops == expected, "{drops}");
    let shown = edge.vpn_edge(&["ports", "--port", &port.to_string()])?;
    ensure!(shown.contains("dropped message_type: 5"), "{shown}");
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_says_why() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    // Before the first start nothing is pinned.
    let mut ports = topology.edge.command(lab::node::program("vpn-edge")?);
    ports.arg("ports");
    let refused = topology.edge.output(ports)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("nothing is pinned"),
        "{said}"
    );

    let mut edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let says = |edge: &Edge, changed: &[(&str, &str)], expected: &str| -> Result<()> {
        let said = edge.refused(changed)?;
        ensure!(
            said.contains(expected),
            "expected `{expected}`, got `{said}`"
        );
        Ok(())
    };
    let elsewhere = ("--listen", "127.0.0.1:8081");
    says(&edge, &[elsewhere], "in use by another vpn-edge")?;
    let other = edge.node.folder.join("other.db").display().to_string();
    says(
        &edge,
        &[elsewhere, ("--database", &other)],
        "another vpn-edge runs gateways",
    )?;
    let refused = edge.vpn_edge(&["teardown"]).unwrap_err().to_string();
    ensure!(
        refused.contains("another vpn-edge runs gateways"),
        "{refused}"
    );
    edge.stop()?;

    let occupied = topology
        .edge
        .inside(|| Ok(vpn_edge::datapath::ready_gateway_end("eth1")?));
    let program = occupied.join().expect("the thread does not panic")?;
    says(&edge, &[("--uplink", "eth1")], "has another XDP program")?;
    drop(program);
    says(
        &edge,
        &[("--uplink", "nonesuch")],
        "no interface `nonesuch`",
    )?;
    says(
        &edge,
        &[("--address", "203.0.113.77")],
        "203.0.113.77 is on no interface",
    )?;
    says(
        &edge,
        &[("--gateway-range", "100.64.0.0/24")],
        "must be a /16 or larger",
    )?;
    says(&edge, &[("--ports", "20000-32767")], "an edge serves 4095")?;
    says(&edge, &[("--tokens", "/nonesuch")], "/nonesuch")?;
    says(&edge, &[("--bpffs", "/run/nonesuch")], "mount one with")?;
    edge.node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    says(&edge, &[], "sysctl -w net.ipv4.ip_forward=1")?;
    edge.node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    edge.restart()
}

#[test]
fn variables_set_the_daemons_options_and_none_of_a_gateways() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let environment = [
        ("VPN_EDGE_MTU", "1300"),
        ("VPN_EDGE_PORTS", "31000-31009"),
        // As if a gateway's options had some, which it inherits.
        ("VPN_EDGE_CONFIG", "/nonexistent"),
        ("VPN_EDGE_GENERATION", "77"),
        ("VPN_EDGE_INIT", "true"),
        ("VPN_EDGE_PROBE", "true"),
    ];
    let edge = Edge::with(&topology.edge, "eth0", &[], &environment)?;
    let tenant = edge.enabled(&A)?;
    let port = tenant.port;
    ensure!((31_000..=31_009).contains(&port), "{port}");
    let link = edge
        .node
        .sh(&format!("ip -n vpn-edge-{port} link show wg{port}"))?;
    ensure!(link.contains(" mtu 1300 "), "{link}");
    Client::up(&topology.client_a, &tenant.configuration)?.await_reach(A.server)
}

#[test]
fn teardown_leaves_nothing_and_the_next_start_brings_all_back() -> Result<()> {
    let (topology, mut edge) = start()?;
    let before = edge.node.sh(LEFT)?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    edge.stop()?;
    ensure!(
        client.reaches(A.server),
        "traffic goes on without the daemon"
    );
    edge.vpn_edge(&["teardown"])?;
    client.await_cut(A.server)?;
    let left = edge.node.sh(LEFT)?;
    ensure!(
        left == "eth0\neth1\nlo",
        "left: {left}, before the first tenant: {before}"
    );
    ensure!(
        program_id(&edge.node).is_err(),
        "the program is still attached"
    );
    edge.restart()?;
    edge.await_state(&tenant.id, "enabled")?;
    client.await_reach(A.server)
}

/// Interfaces, namespaces, pins, filters, reserved ports, gateways and their
/// sockets.
const LEFT: &str = "
    ls /sys/class/net
    ls /run/netns /run/vpn-edge/gateways /run/wireguard | grep -v ^/ | grep . || true
    find /sys/fs/bpf -type f ! -name '*.debug'
    tc filter show dev eth0 ingress
    grep . /proc/sys/net/ipv4/ip_local_reserved_ports || true
    pgrep -a vpn-edge || true";

fn allocations() -> Result<Array<MapData, Allocation>> {
    let data = MapData::from_pin("/sys/fs/bpf/vpn-edge/v3/maps/ALLOCATIONS")?;
    Ok(Array::try_from(Map::Array(data))?)
}

/// The allocated entries of the kernel's map.
fn map_of(node: &Node) -> Result<Vec<(u32, Allocation)>> {
    let read = node.inside(|| {
        let map = allocations()?;
        let mut found = Vec::new();
        for port in 0..1 << 16 {
            let allocation = map.get(&port, 0)?;
            if allocation.mode != mode::NONE {
                found.push((port, allocation));
            }
        }
        Ok(found)
    });
    read.join().expect("the thread does not panic")
}

/// The XDP program on the uplink.
fn program_id(node: &Node) -> Result<u64> {
    let links: Value = serde_json::from_str(&node.sh("ip -j -d link show dev eth0")?)?;
    links[0]["xdp"]["prog"]["id"]
        .as_u64()
        .with_context(|| format!("no XDP program: {links}"))
}
