//! IPv6 outside, at the gateways' links, and inside, in the tunnels.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::client::Client;
use lab::client_netns::{Laptop, Outcome};
use lab::edge::{Edge, Tenant};
use lab::names;
use lab::node::{Lab, Node, Process, program};
use lab::postgres::{Account, Database};
use lab::raw::Raw;
use lab::topology::{A, B, DNS, Side, Topology, Uplink};
use serde_json::json;

/// The tenants' networks in IPv6, with a server each.
const NETWORK6_A: &str = "fd00:97:1::/64";
const SERVER6_A: &str = "fd00:97:1::1";
const NETWORK6_B: &str = "fd00:97:2::/64";
const SERVER6_B: &str = "fd00:97:2::1";
const DNS6: &str = "fd00:96::10";

/// What clients route into the tunnel.
const ROUTED: &str = "10.96.0.0/12,10.0.0.0/8,fd00:96::/31";

const DUAL_STACK: [(&str, &str); 2] = [("--tunnel-ipv6", ""), ("--allowed-ips", ROUTED)];

/// The lab's cluster with IPv6, which the edge forwards.
fn topology() -> Result<Topology> {
    let topology = Topology::new(Uplink::Veth)?;
    topology
        .edge
        .sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         ip addr add fd00:200::1/64 dev eth1 nodad
         ip route add fd00:96::/31 via fd00:200::2")?;
    topology.cluster.sh(&format!(
        "ip addr add fd00:200::2/64 dev eth0 nodad
         ip route add default via fd00:200::1
         for address in {DNS6} {SERVER6_A} {SERVER6_B}; do
             ip addr add $address/128 dev lo nodad
         done"
    ))?;
    Ok(topology)
}

/// A tenant with its network in IPv6 besides.
fn enabled(edge: &Edge, side: &Side, network6: &str) -> Result<Tenant> {
    let tenant = edge.enabled(side)?;
    edge.tenant(&[
        "patch",
        &tenant.id,
        "--network",
        side.network,
        "--network",
        network6,
    ])?;
    Ok(tenant)
}

fn line<'a>(configuration: &'a str, key: &str) -> &'a str {
    configuration
        .lines()
        .find(|line| line.starts_with(key))
        .expect("the configuration has the key")
}

/// The gateways' processes, with their start times.
fn gateways(edge: &Edge) -> Result<String> {
    edge.node
        .sh("ps -eo pid,lstart,args | grep '[v]pn-edge gateway' | sort")
}

/// Runs the script in the namespace of the tenant's gateway.
fn in_gateway(edge: &Edge, tenant: &Tenant, script: &str) -> Result<String> {
    let port = tenant.port;
    edge.node
        .sh(&format!("ip netns exec vpn-edge-{port} sh -ec '{script}'"))
}

#[test]
fn each_of_two_tenants_reaches_its_own_networks_of_both_versions() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &DUAL_STACK)?;
    let a = enabled(&edge, &A, NETWORK6_A)?;
    let b = enabled(&edge, &B, NETWORK6_B)?;
    let client_a = Client::up(&topology.client_a, &a.configuration)?;
    let client_b = Client::up(&topology.client_b, &b.configuration)?;
    for (client, own, foreign) in [
        (&client_a, [A.server, SERVER6_A], [B.server, SERVER6_B]),
        (&client_b, [B.server, SERVER6_B], [A.server, SERVER6_A]),
    ] {
        for address in own {
            client.await_reach(address)?;
        }
        for address in foreign {
            ensure!(!client.reaches(address), "reaches the other's {address}");
        }
    }
    // The subnet is shown, and its first address is the gateway.
    let status = edge.tenant(&["status", &a.id])?;
    let subnet = status["subnet6"].as_str().context("no subnet6")?;
    ensure!(line(&a.configuration, "Address").contains(&subnet.replace("::/", "::2/")));
    ensure!(client_a.reaches(&subnet.replace("::/64", "::1")));

    edge.tenant(&["regenerate", &a.id])?;
    for address in [A.server, SERVER6_A] {
        client_a.await_cut(address)?;
    }
    ensure!(
        client_b.reaches(SERVER6_B),
        "the other tenant is cut off too"
    );
    let new = edge.configuration(&a.id)?;
    for key in ["Endpoint", "Address", "AllowedIPs", "DNS"] {
        ensure!(
            line(&new, key) == line(&a.configuration, key),
            "{key} changed"
        );
    }
    let client_a = Client::up(&topology.client_a, &new)?;
    for address in [A.server, SERVER6_A] {
        client_a.await_reach(address)?;
    }
    Ok(())
}

#[test]
fn a_laptop_reads_its_database_by_name_over_ipv6_alone() -> Result<()> {
    const DATABASE: Account = Account {
        owner: A.organisation,
        address: SERVER6_A,
        name: "db.acme.svc.cluster.local",
        password: "sesame",
    };
    let topology = topology()?;
    let database = Database::start(&topology.cluster, &DATABASE)?;
    let _names = names::serve(
        &topology.cluster,
        &[DNS6],
        &[(DATABASE.name, DATABASE.address)],
    )?;
    let more = [&DUAL_STACK[..], &[("--dns", DNS6)]].concat();
    let edge = Edge::start(&topology, Uplink::Veth, &more)?;
    let tenant = enabled(&edge, &A, NETWORK6_A)?;
    database.await_ready()?;

    let laptop = Laptop::new(&topology.client_a, "192.0.2.1")?;
    let file = laptop.save("acme", &tenant.configuration)?;
    laptop.wg_quick("up", &file)?;
    laptop.await_handshake("acme")?;
    let answer = laptop.query(&DATABASE.url(), "SELECT entry FROM ledger")?;
    ensure!(answer.outcome == Outcome::Rows, "{answer:?}");
    ensure!(answer.printed == "the ledger of acme", "{answer:?}");

    edge.tenant(&["regenerate", &tenant.id])?;
    let answer = laptop.query_at(SERVER6_A, &DATABASE.url(), "SELECT entry FROM ledger")?;
    ensure!(answer.outcome == Outcome::NoConnection, "{answer:?}");
    laptop.wg_quick("down", &file)
}

#[test]
fn ipv6_networks_given_and_taken_act_at_once_and_keep_the_session() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &DUAL_STACK)?;
    let tenant = enabled(&edge, &A, NETWORK6_A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(SERVER6_A)?;
    let before = gateways(&edge)?;
    edge.tenant(&["patch", &tenant.id, "--network", NETWORK6_B])?;
    client.await_cut(SERVER6_A)?;
    client.await_reach(SERVER6_B)?;
    ensure!(gateways(&edge)? == before, "the gateway was restarted");
    Ok(())
}

#[test]
fn bulk_transfers_run_both_ways_over_ipv6_in_the_tunnel() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &DUAL_STACK)?;
    let tenant = enabled(&edge, &A, NETWORK6_A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(SERVER6_A)?;
    for direction in ["", "--reverse"] {
        let mut server = topology.cluster.command("timeout");
        server.args(["40", "iperf3", "-s", "-1", "-B", SERVER6_A]);
        let _server = topology.cluster.start("iperf3", server)?;
        topology
            .cluster
            .await_sh(&format!("ss -Hltn 'src [{SERVER6_A}]:5201' | grep -q ."))?;
        topology.client_a.sh(&format!(
            "timeout 40 iperf3 -c {SERVER6_A} -n 20M {direction}"
        ))?;
    }
    Ok(())
}

#[test]
fn without_the_flag_all_is_ipv4_and_ipv6_is_refused_with_what_to_do() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    ensure!(
        !tenant.configuration.lines().any(|line| line.contains("fd")
            && ["Address", "AllowedIPs", "DNS"]
                .iter()
                .any(|key| line.starts_with(key))),
        "{}",
        tenant.configuration
    );
    ensure!(
        edge.tenant(&["status", &tenant.id])?
            .get("subnet6")
            .is_none()
    );
    let refused = edge
        .tenant(&["patch", &tenant.id, "--network", NETWORK6_A])
        .unwrap_err()
        .to_string();
    ensure!(
        refused.contains("fd00:97:1::/64 is IPv6") && refused.contains("--tunnel-ipv6"),
        "{refused}"
    );
    let rules = in_gateway(&edge, &tenant, "nft list ruleset")?;
    ensure!(!rules.contains("ip6 "), "{rules}");
    Ok(())
}

#[test]
fn a_daemon_that_cannot_give_ipv6_says_why() -> Result<()> {
    let topology = topology()?;
    let mut edge = Edge::start(&topology, Uplink::Veth, &[])?;
    edge.stop()?;
    let ipv6 = ("--tunnel-ipv6", "");
    for (arguments, script, says) in [
        (("--allowed-ips", ROUTED), "", "add --tunnel-ipv6"),
        (("--dns", DNS6), "", "add --tunnel-ipv6"),
        (("--gateway-range6", "fd00::/120"), "", "/112 or larger"),
        (ipv6, "ip link set eth0 mtu 1359", "an MTU of 1360 or more"),
        (
            ipv6,
            "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding=1",
        ),
    ] {
        topology.edge.sh(script)?;
        let said = edge.refused(&[arguments])?;
        ensure!(said.contains(says), "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn switching_ipv6_on_makes_gateways_anew_once_and_a_restart_leaves_them_alone() -> Result<()> {
    let topology = topology()?;
    let mut edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    let before = gateways(&edge)?;
    edge.stop()?;
    edge.change(&DUAL_STACK);
    edge.restart()?;
    let start = Instant::now();
    while gateways(&edge)? == before || gateways(&edge)?.is_empty() {
        ensure!(start.elapsed() < Duration::from_secs(20), "{}", edge.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    edge.await_state(&tenant.id, "enabled")?;
    // The old configuration goes on, and a new one has IPv6 too.
    client.await_reach(A.server)?;
    edge.tenant(&[
        "patch",
        &tenant.id,
        "--network",
        A.network,
        "--network",
        NETWORK6_A,
    ])?;
    let client = Client::up(&topology.client_a, &edge.configuration(&tenant.id)?)?;
    client.await_reach(SERVER6_A)?;
    let before = gateways(&edge)?;
    client.lose_nothing(SERVER6_A, 5_000, || {
        edge.stop()?;
        edge.restart()
    })?;
    ensure!(gateways(&edge)? == before, "the gateway was restarted");
    Ok(())
}

#[test]
fn a_gateway_of_an_earlier_build_goes_on_and_its_rules_can_be_changed() -> Result<()> {
    let topology = topology()?;
    let mut edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    let before = gateways(&edge)?;
    // As it was before gateways had IPv6.
    in_gateway(&edge, &tenant, "ip -6 addr flush dev eth0")?;
    edge.await_ports(|ports| ports[&tenant.port]["gateway6"].is_null())?;
    edge.stop()?;
    let file = format!("/run/vpn-edge/gateways/{}/config.json", tenant.port);
    edge.node.sh(&format!(
        r#"sed -i 's/"addresses":\["\([^"]*\)"\]/"address":"\1"/; s/,"only_edge":true//' {file}
           grep -q '"address":"10\.' {file}
           ! grep -q 'addresses\|only_edge' {file}"#
    ))?;
    client.lose_nothing(A.server, 3_000, || edge.restart())?;
    edge.tenant(&["patch", &tenant.id, "--network", B.network])?;
    client.await_reach(B.server)?;
    client.await_cut(A.server)?;
    ensure!(gateways(&edge)? == before, "the gateway was restarted");
    Ok(())
}

#[test]
fn a_gateway_hears_that_its_wireguard_packets_are_too_big() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    let port = topology.client_a.sh("wg show wg0 listen-port")?.parse()?;
    let gateway: Ipv4Addr = edge.ports()?[&tenant.port]["gateway"]
        .as_str()
        .context("no gateway")?
        .parse()?;
    let learned = format!(
        "ip netns exec vpn-edge-{} ip route get {} | grep -q 'mtu 1400'",
        tenant.port, A.client
    );
    // What it never sent is not taken for its own.
    for (port, learns) in [(port ^ 1, false), (port, true)] {
        let sent = SocketAddrV4::new(gateway, tenant.port);
        let to = SocketAddrV4::new(A.client.parse()?, port);
        let tell = edge
            .node
            .inside(move || Raw::open()?.too_big(sent, to, 1400));
        tell.join().expect("the thread does not panic")?;
        match learns {
            true => edge.node.await_sh(&learned)?,
            false => ensure!(edge.node.sh(&learned).is_err(), "it believed it"),
        }
    }
    Ok(())
}

/// The gateway's address: the port is the offset into the range.
fn outside(tenant: &Tenant) -> String {
    format!("fd64:7670:6e00::{:x}", tenant.port)
}

#[test]
fn a_gateways_link_carries_ipv6_and_nothing_on_it_is_asked_or_learned() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let (link, address) = (format!("vpn-edge-{}", tenant.port), outside(&tenant));
    in_gateway(&edge, &tenant, "ping -n -c 3 -i 0.2 fd00:200::1")?;
    // The cluster's answer comes back by the node's route.
    in_gateway(&edge, &tenant, "ping -n -c 1 fd00:200::2")?;
    let addresses = in_gateway(&edge, &tenant, "ip -6 -o addr show dev eth0")?;
    ensure!(
        addresses.lines().count() == 1 && addresses.contains(&format!("{address}/128")),
        "{addresses}"
    );
    ensure!(!addresses.contains("tentative"), "{addresses}");
    ensure!(
        edge.node
            .sh(&format!("ip -6 -o addr show dev {link}"))?
            .is_empty()
    );
    for neighbours in [
        edge.node.sh(&format!("ip -6 neigh show dev {link}"))?,
        in_gateway(&edge, &tenant, "ip -6 neigh show dev eth0")?,
    ] {
        let unicast = neighbours
            .lines()
            .filter(|line| !line.starts_with("ff02::"));
        let unicast: Vec<&str> = unicast.collect();
        ensure!(
            unicast.len() == 1 && unicast[0].contains("PERMANENT"),
            "{neighbours}"
        );
    }
    for asked in ["NeighborSolicits", "RouterSolicits"] {
        let script = format!("grep Icmp6Out{asked} /proc/net/dev_snmp6/eth0");
        let count = in_gateway(&edge, &tenant, &script)?;
        ensure!(count.ends_with("\t0") || count.ends_with(" 0"), "{count}");
    }
    Ok(())
}

#[test]
fn wireguard_takes_nothing_over_ipv6_that_was_routed_past_the_edge() -> Result<()> {
    let topology = topology()?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let received = |counter: &str| -> Result<u64> {
        let script = format!("grep {counter} /proc/net/snmp6");
        let line = in_gateway(&edge, &tenant, &script)?;
        let value = line.split_whitespace().last().context("no counter")?;
        Ok(value.parse()?)
    };
    let before = received("Ip6InReceives")?;
    // A client on the node itself, with the right keys.
    let direct = tenant.configuration.replace(
        line(&tenant.configuration, "Endpoint"),
        &format!("Endpoint = [{}]:{}", outside(&tenant), tenant.port),
    );
    let direct = direct.replace(line(&direct, "AllowedIPs"), "AllowedIPs = 10.97.1.0/24");
    let client = Client::up(&edge.node, &direct)?;
    client.await_cut(A.server)?;
    ensure!(received("Ip6InReceives")? > before, "nothing came");
    ensure!(received("Udp6InDatagrams")? == 0, "WireGuard got it");
    Ok(())
}

#[test]
fn a_node_without_ipv6_does_all_over_ipv4() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    topology
        .edge
        .sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    let addresses = in_gateway(&edge, &tenant, "ip -6 -o addr show dev eth0")?;
    ensure!(!addresses.contains("fd64:"), "{addresses}");
    Ok(())
}

/// A gateway by itself, behind a router, open to whoever is routed there.
struct Open {
    client: Node,
    gateway: Node,
    configuration: String,
    _process: Process,
    _lab: Lab,
}

impl Open {
    const PORT: u16 = 31_001;

    fn start() -> Result<Self> {
        let lab = Lab::new()?;
        let (client, router) = (lab.node("client")?, lab.node("router")?);
        let gateway = lab.node("gateway")?;
        client.link("eth0", &router, "client")?;
        gateway.link("eth0", &router, "gateway")?;
        for (node, network) in [(&client, 1), (&gateway, 2)] {
            node.sh(&format!(
                "ip addr add 10.1.{network}.2/24 dev eth0
                 ip addr add fd00:{network}::2/64 dev eth0 nodad
                 ip route add default via 10.1.{network}.1
                 ip route add default via fd00:{network}::1"
            ))?;
        }
        router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             ip addr add 10.1.1.1/24 dev client
             ip addr add 10.1.2.1/24 dev gateway
             ip addr add fd00:1::1/64 dev client nodad
             ip addr add fd00:2::1/64 dev gateway nodad
             # The way to the client is narrower than its link.
             ip route add 10.1.1.2/32 dev client mtu lock 1400
             ip route add fd00:1::2/128 dev client mtu lock 1400")?;
        let key = || client.sh("wg genkey");
        let public = |key: &str| client.sh(&format!("echo {key} | wg pubkey"));
        let (server, own) = (key()?, key()?);
        let file = gateway.folder.join("config.json");
        let status = gateway.folder.join("status.sock");
        let config = json!({
            "tenant": "6f1c2b1e-5f0e-4d63-9d51-0c8f2a7b3e44",
            "generation": 1,
            "port": Self::PORT,
            "interface": "wg31001",
            "link": "eth0",
            "addresses": ["10.55.59.1/24", "fd78:181c:f4b0::1/64"],
            "mtu": 1420,
            "private_key": server,
            "peers": [{
                "public_key": public(&own)?,
                "allowed_ips": ["10.55.59.2/32", "fd78:181c:f4b0::2/128"],
            }],
            "dns": DNS,
            "networks": [],
            "status": status,
            "only_edge": false,
        });
        fs::write(&file, config.to_string())?;
        let mut command = gateway.command(program("vpn-edge")?);
        command.args(["gateway", "--config"]).arg(&file);
        let process = gateway.start("vpn-edge", command)?;
        gateway
            .await_sh(&format!("ss -Hlnu sport = :{} | grep -q .", Self::PORT))
            .with_context(|| process.log())?;
        let configuration = format!(
            "[Interface]\nPrivateKey = {own}\nAddress = 10.55.59.2/24, fd78:181c:f4b0::2/64\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.55.0.0/16, fd78:181c:f4b0::/64\n",
            public(&server)?
        );
        Ok(Self {
            client,
            gateway,
            configuration,
            _process: process,
            _lab: lab,
        })
    }

    /// Has a tunnel to the gateway's `address`, and looks whether the gateway
    /// learns that the way to `client` is narrow.
    fn learns_the_path(&self, address: &str, client: &str) -> Result<()> {
        let endpoint = format!(
            "{}Endpoint = {address}:{}\n",
            self.configuration,
            Self::PORT
        );
        let tunnel = Client::up(&self.client, &endpoint)?;
        for inside in ["10.55.59.1", "fd78:181c:f4b0::1"] {
            tunnel.await_reach(inside)?;
        }
        let path = || self.gateway.sh(&format!("ip route get {client}"));
        ensure!(!path()?.contains("mtu"), "too soon: {}", path()?);
        // The answers are too large for the router, until the gateway hears
        // of it.
        let start = Instant::now();
        while self
            .client
            .sh("ping -n -c 1 -W 1 -s 1372 10.55.59.1")
            .is_err()
        {
            if start.elapsed() > Duration::from_secs(20) {
                bail!("large packets stay away: {}", path()?);
            }
        }
        ensure!(path()?.contains("mtu 1400"), "{}", path()?);
        tunnel.down()
    }
}

#[test]
fn an_open_gateway_serves_whoever_is_routed_to_it_over_both_versions() -> Result<()> {
    let open = Open::start()?;
    open.learns_the_path("10.1.2.2", "10.1.1.2")?;
    open.learns_the_path("[fd00:2::2]", "fd00:1::2")
}
