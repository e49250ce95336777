//! What Prometheus and a load balancer are told of a running edge, and that
//! dashboard and alerts ask for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::client::Client;
use lab::edge::{Edge, Tenant};
use lab::node::Node;
use lab::topology::{A, B, EDGE, Topology, Uplink};
use serde_json::Value;
use vpn_edge_common::SCHEMA;

const DASHBOARD: &str = include_str!("../manifests/grafana-dashboard.json");
const RULES: &str = include_str!("../manifests/prometheus-rules.yaml");

const HEALTH: &str = "127.0.0.1:9095";
const METRICS: &str = "127.0.0.1:9096";

/// Whether the kernel counts runs is the machine's business. The edge is told
/// `what`, whatever the machine does.
fn stats(edge: &Node, what: &str) -> Result<()> {
    let file = edge.folder.join(format!("stats-{what}"));
    edge.sh(&format!(
        "echo {what} > {0}; mount --bind {0} /proc/sys/kernel/bpf_stats_enabled",
        file.display()
    ))
    .map(drop)
}

fn start() -> Result<(Topology, Edge)> {
    let topology = Topology::new(Uplink::Veth)?;
    stats(&topology.edge, "0")?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    Ok((topology, edge))
}

fn connected(topology: &Topology, edge: &Edge) -> Result<(Client, Tenant)> {
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    Ok((client, tenant))
}

/// What the edge answers on its node: status, headers and body.
fn get(edge: &Edge, server: &'static str, path: &'static str) -> Result<(u16, String, String)> {
    let asked = edge.node.inside(move || {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = asked.join().expect("the thread does not panic")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, head.to_lowercase(), body.to_owned()))
}

/// What was scraped.
#[derive(Debug)]
struct Scrape {
    /// Values by name and labels, as written.
    series: BTreeMap<String, f64>,
    /// Families by name, as declared.
    families: BTreeSet<String>,
}

impl Scrape {
    fn of(edge: &Edge) -> Result<Self> {
        let (status, head, body) = get(edge, METRICS, "/metrics")?;
        ensure!(status == 200, "{status}: {body}");
        ensure!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        ensure!(body.ends_with("# EOF\n"), "{body}");
        let mut scrape = Self {
            series: BTreeMap::new(),
            families: BTreeSet::new(),
        };
        for line in body.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').context("no type")?;
                let suffix = if kind == "counter" { "_total" } else { "" };
                let new = scrape.families.insert(format!("{name}{suffix}"));
                ensure!(new, "declared twice: {name}");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').context("no value")?;
                let before = scrape.series.insert(series.to_owned(), value.parse()?);
                ensure!(before.is_none(), "told twice: {series}");
            }
        }
        Ok(scrape)
    }

    fn value(&self, series: &str) -> Result<f64> {
        let found = self.series.get(series);
        found
            .copied()
            .with_context(|| format!("no {series} in {self:#?}"))
    }

    /// A tenant's value.
    fn of_tenant(&self, name: &str, tenant: &Tenant) -> Result<f64> {
        self.value(&series(name, tenant, ""))
    }

    /// Whether something is told under the name.
    fn tells(&self, name: &str) -> bool {
        let told = |series: &String| {
            let rest = series.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.series.keys().any(told)
    }
}

fn series(name: &str, tenant: &Tenant, more: &str) -> String {
    let Tenant { id, port, .. } = tenant;
    format!("vpn_edge_{name}{{tenant=\"{id}\",port=\"{port}\"{more}}}")
}

/// A scrape, and the ports as `vpn-edge ports` has them at the same time.
fn settled(edge: &Edge) -> Result<(Scrape, BTreeMap<u16, Value>)> {
    let start = Instant::now();
    loop {
        let before = edge.ports()?;
        let scrape = Scrape::of(edge)?;
        let after = edge.ports()?;
        if before == after {
            return Ok((scrape, after));
        }
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "traffic goes on: {before:#?} {after:#?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends what the guard refuses, for four reasons.
fn send_garbage(topology: &Topology, edge: &Edge, tenant: &Tenant) -> Result<()> {
    let port = tenant.port;
    let send = topology.client_a.inside(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        for _ in 0..5 {
            socket.send_to(&[b'A'; 64], (EDGE, port))?;
        }
        let mut initiation = [0; 148];
        initiation[0] = 1;
        socket.send_to(&initiation, (EDGE, port))?;
        socket.send_to(&initiation, (EDGE, port))?;
        socket.send_to(&initiation[..147], (EDGE, port))?;
        socket.send_to(b"short", (EDGE, port))?;
        Ok(())
    });
    send.join().expect("the thread does not panic")?;
    edge.await_ports(|ports| ports[&port]["dropped"].as_u64() >= Some(9))
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let of_name = |c: char| c.is_ascii_lowercase() || c == '_';
    text.match_indices("vpn_edge_")
        .map(|(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|c| !of_name(c)).unwrap_or(rest.len())]
        })
        .collect()
}

#[test]
fn metrics_agree_with_the_port_map() -> Result<()> {
    let (topology, edge) = start()?;
    let (_client, a) = connected(&topology, &edge)?;
    let b = edge.enabled(&B)?;
    send_garbage(&topology, &edge, &a)?;
    let (scrape, ports) = settled(&edge)?;

    for tenant in [&a, &b] {
        let row = &ports[&tenant.port];
        for (way, unit) in [
            ("ingress", "packets"),
            ("ingress", "bytes"),
            ("egress", "packets"),
            ("egress", "bytes"),
        ] {
            let told = scrape.of_tenant(&format!("{way}_{unit}_total"), tenant)?;
            ensure!(row[way][unit].as_f64() == Some(told), "{way} {unit}: {row}");
        }
        let open = scrape.value(&series("port_open", tenant, ",mode=\"xdp\""))?;
        ensure!(open == 1.0 && row["mode"] == "xdp", "{row}");
        let drops = row["drops"].as_object().context("no drops")?;
        for (reason, count) in drops {
            let label = format!(",reason=\"{reason}\"");
            let told = scrape.value(&series("drops_total", tenant, &label))?;
            ensure!(count.as_f64() == Some(told), "{reason}: {row}");
        }
        let of_tenant = series("drops_total", tenant, "");
        let of_tenant = of_tenant.trim_end_matches('}');
        let told = scrape.series.keys();
        let told = told.filter(|name| name.starts_with(of_tenant)).count();
        ensure!(told == drops.len(), "{row} {scrape:#?}");
    }

    let drops = |reason: &str| ports[&a.port]["drops"][reason].as_f64();
    ensure!(drops("mac1") == Some(2.0), "{ports:#?}");
    let refused = ["mac1", "replay", "source_rate", "handshake_rate"];
    let refused: f64 = refused.iter().filter_map(|reason| drops(reason)).sum();
    ensure!(scrape.of_tenant("handshakes_refused_total", &a)? == refused);
    for name in ["handshakes_accepted_total", "sessions_announced_total"] {
        ensure!(scrape.of_tenant(name, &a)? >= 1.0, "{name}");
        ensure!(scrape.of_tenant(name, &b)? == 0.0, "{name}");
    }
    ensure!((1.0..=64.0).contains(&scrape.of_tenant("sessions", &a)?));
    ensure!(scrape.of_tenant("sessions", &b)? == 0.0);
    ensure!(scrape.of_tenant("graced_packets_total", &a)? == 0.0);
    ensure!(!scrape.tells("vpn_edge_grace_remaining_seconds"));

    let value = |series: &str| scrape.value(&format!("vpn_edge_{series}"));
    ensure!(value("pool_ports")? == 2768.0);
    ensure!(value("pool_ports_allocated")? == 2.0);
    ensure!(value("map_entries{map=\"ALLOCATIONS\"}")? == 2.0);
    ensure!(value("map_entries{map=\"slots\"}")? == 2.0);
    let sessions = scrape.of_tenant("sessions", &a)?;
    ensure!(value("map_entries{map=\"SESSIONS\"}")? == sessions);
    ensure!(value("map_capacity{map=\"ALLOCATIONS\"}")? == 65_536.0);
    ensure!(value("map_capacity{map=\"slots\"}")? == 4095.0);
    ensure!(value("map_capacity{map=\"SESSIONS\"}")? == 4096.0 * 64.0);
    ensure!(value("map_capacity{map=\"FLOWS\"}")? == 4096.0 * 128.0);
    // Both tenants' clients have shaken hands.
    ensure!(scrape.of_tenant("flows", &a)? >= 1.0);
    ensure!(value("map_entries{map=\"FLOWS\"}")? >= scrape.of_tenant("flows", &a)?);
    ensure!(scrape.of_tenant("relayed_packets_total", &a)? == 0.0);
    ensure!(scrape.of_tenant("icmp_errors_total", &a)? == 0.0);

    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
    for program in ["ingress", "ingress_tc", "egress"] {
        let label = format!("{{program=\"{program}\"}}");
        let loaded = value(&format!("program_loaded_timestamp_seconds{label}"))?;
        ensure!((now - 600.0..=now + 2.0).contains(&loaded), "{loaded}");
        ensure!(value(&format!("program_instructions{label}"))? > 100.0);
    }
    ensure!(!scrape.tells("vpn_edge_program_runs_total"));

    ensure!(value("syncs_total{outcome=\"ok\"}")? >= 1.0);
    let last = value("last_sync_timestamp_seconds")?;
    ensure!((now - 30.0..=now + 2.0).contains(&last), "{last}");
    let attempts =
        value("syncs_total{outcome=\"ok\"}")? + value("syncs_total{outcome=\"failed\"}")?;
    // One may have come in between.
    ensure!((value("sync_duration_seconds_count")? - attempts).abs() <= 1.0);
    // Two tenants were created and enabled.
    ensure!(value("sync_lag_seconds_count")? >= 2.0);
    let (sum, count) = (
        value("sync_lag_seconds_sum")?,
        value("sync_lag_seconds_count")?,
    );
    ensure!(sum / count < 1.0, "a change takes {} s", sum / count);
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("build_info{{version=\"{version}\",schema=\"{SCHEMA}\"}}");
    ensure!(value(&build)? == 1.0);

    // Names that the endpoint does not have would be silent for ever.
    stats(&edge.node, "1")?;
    let scrape = Scrape::of(&edge)?;
    for program in ["ingress", "ingress_tc", "egress"] {
        for name in ["program_runs_total", "program_run_time_seconds_total"] {
            scrape.value(&format!("vpn_edge_{name}{{program=\"{program}\"}}"))?;
        }
    }
    for (file, text) in [("dashboard", DASHBOARD), ("rules", RULES)] {
        let names = names(text);
        ensure!(names.len() > 5, "{file}: {names:?}");
        for name in names {
            // These are told only while there is something to tell.
            let absent = [
                "vpn_edge_grace_remaining_seconds",
                "vpn_edge_node_drops_total",
            ];
            let told =
                scrape.tells(name) || absent.contains(&name) && scrape.families.contains(name);
            ensure!(told, "{file} asks for {name}, which nobody tells");
        }
    }
    for family in &scrape.families {
        let asked = names(DASHBOARD).iter().any(|name| {
            let suffix = name.strip_prefix(family.as_str());
            suffix.is_some_and(|suffix| ["", "_bucket", "_count", "_sum"].contains(&suffix))
        });
        ensure!(asked, "the dashboard does not show {family}");
    }
    Ok(())
}

#[test]
fn grace_and_closed_ports_are_told() -> Result<()> {
    let (topology, mut edge) = start()?;
    let (client, tenant) = connected(&topology, &edge)?;
    edge.stop()?;
    edge.node.sh("rm -r /sys/fs/bpf/vpn-edge")?;
    edge.restart()?;
    edge.await_state(&tenant.id, "enabled")?;
    client.await_reach(A.server)?;
    let (scrape, _) = settled(&edge)?;
    let grace = scrape.of_tenant("grace_remaining_seconds", &tenant)?;
    ensure!((100.0..=200.0).contains(&grace), "{grace}");
    ensure!(scrape.of_tenant("graced_packets_total", &tenant)? >= 1.0);

    // A gateway that ends closes its port until another is made, which takes
    // nft.
    let gateways = edge
        .node
        .sh("ps -eo pid,args | grep '[v]pn-edge gateway'")?;
    let pid = gateways
        .split_whitespace()
        .next()
        .context("a gateway runs")?;
    edge.node.sh(&format!(
        "mount --bind /dev/null $(command -v nft); kill -9 {pid}"
    ))?;
    edge.await_ports(|ports| ports[&tenant.port]["mode"] == "closed")?;
    let (scrape, _) = settled(&edge)?;
    let open = scrape.value(&series("port_open", &tenant, ",mode=\"closed\""))?;
    ensure!(open == 0.0);
    Ok(())
}

/// What `/healthz` says once it answers with this status.
fn await_health(edge: &Edge, wanted: u16) -> Result<String> {
    let start = Instant::now();
    loop {
        let (status, _, body) = get(edge, HEALTH, "/healthz")?;
        if status == wanted {
            return Ok(body);
        }
        if start.elapsed() > Duration::from_secs(20) {
            bail!("/healthz stays {status}: {body}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_load_balancer_hears_when_the_edge_is_not_in_step() -> Result<()> {
    let (_topology, edge) = start()?;
    let healthy = |wanted: u16| await_health(&edge, wanted);
    ensure!(healthy(200)? == "ok\n");
    edge.node
        .sh("ip link set eth0 down; ip link set eth0 name gone0")?;
    let reason = healthy(503)?;
    ensure!(
        reason.contains("cannot sync the eBPF maps") && reason.contains("eth0"),
        "{reason}"
    );
    let failed = "vpn_edge_syncs_total{outcome=\"failed\"}";
    ensure!(Scrape::of(&edge)?.value(failed)? >= 1.0);
    edge.node
        .sh("ip link set gone0 name eth0; ip link set eth0 up")?;
    healthy(200)?;
    Ok(())
}

#[test]
fn a_token_file_that_is_not_in_order_is_told_and_takes_no_edge_out() -> Result<()> {
    let (_topology, edge) = start()?;
    let file = edge.node.folder.join("tokens");
    let mode = |mode| edge.node.sh(&format!("chmod {mode} {}", file.display()));
    await_health(&edge, 200)?;
    // Nobody calls the API meanwhile.
    let told = |expected: &str, readable: f64| -> Result<()> {
        let start = Instant::now();
        loop {
            let (status, _, body) = get(&edge, HEALTH, "/healthz")?;
            ensure!(status == 200, "{status}: {body}");
            if body.contains(expected) {
                break;
            }
            // What could not be read is tried again after a second.
            if start.elapsed() > Duration::from_secs(20) {
                bail!("expected `{expected}`, got `{body}`");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let metric = Scrape::of(&edge)?.value("vpn_edge_token_file_readable")?;
        ensure!(metric == readable, "{expected}: {metric}");
        Ok(())
    };
    told("ok\n", 1.0)?;
    mode("660")?;
    told("ok, but the token file", 0.0)?;
    told("run chmod 600", 0.0)?;
    edge.tenant(&["list"])?;
    mode("600")?;
    told("ok\n", 1.0)?;

    let rival = edge.member_token("rival")?;
    let list = [("VPN_EDGE_TOKEN", rival.as_str())];
    let rival_lists = || {
        let mut list_tenants = edge.node.command(edge.program());
        list_tenants.args(["tenant", "list"]).envs(list);
        edge.node.output(list_tenants)
    };
    ensure!(rival_lists()?.status.success());
    let text = std::fs::read_to_string(&file)?;
    let admins = text.lines().next().context("no line")?;
    std::fs::write(&file, format!("{admins}\n{rival}\n"))?;
    told("line 2: a line starts with a token's hash", 0.0)?;
    let (_, _, body) = get(&edge, HEALTH, "/healthz")?;
    ensure!(!body.contains(&rival), "{body}");
    ensure!(!edge.log().contains(&rival), "{}", edge.log());
    let refused = rival_lists()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("401"), "{said}");
    edge.tenant(&["list"])?;
    std::fs::write(&file, format!("{admins}\n"))?;
    told("ok\n", 1.0)
}

#[test]
fn whoever_may_ask_for_the_health_hears_of_no_tenant() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    stats(&topology.edge, "0")?;
    // All addresses are meant, whatever the node's own setting.
    topology.edge.sh("sysctl -qw net.ipv6.bindv6only=1")?;
    let open = [("--health", "[::]:9095"), ("--metrics", "[::]:9096")];
    let edge = Edge::start(&topology, Uplink::Veth, &open)?;
    edge.enabled(&A)?;
    for server in [HEALTH, "[::1]:9095"] {
        ensure!(get(&edge, server, "/healthz")?.0 == 200);
        ensure!(get(&edge, server, "/metrics")?.0 == 404);
    }
    for server in [METRICS, "[::1]:9096"] {
        let (status, _, body) = get(&edge, server, "/metrics")?;
        ensure!(
            status == 200 && body.contains("tenant="),
            "{status}: {body}"
        );
    }
    Ok(())
}

#[test]
fn an_address_that_cannot_be_had_is_refused_with_advice() -> Result<()> {
    let (_topology, mut edge) = start()?;
    edge.stop()?;
    for (what, own) in [("health", HEALTH), ("metrics", METRICS)] {
        let option = format!("--{what}");
        let said = edge.refused(&[(&option, "203.0.113.7:9097")])?;
        ensure!(
            said.contains("203.0.113.7:9097") && said.contains(&option),
            "{said}"
        );
        let occupied = edge.node.inside(move || Ok(TcpListener::bind(own)?));
        let occupied = occupied.join().expect("the thread does not panic")?;
        let said = edge.refused(&[])?;
        ensure!(
            said.contains(&format!("cannot serve {what} on {own}")) && said.contains("in use"),
            "{said}"
        );
        drop(occupied);
    }
    edge.restart()
}
