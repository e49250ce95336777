//! The operator's commands, on a daemon with real clients.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::EbpfLoader;
use aya::maps::{Array, Map, MapData};
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use etherparse::PacketBuilder;
use lab::client::Client;
use lab::edge::{Edge, Tenant};
use lab::node::{Node, Process};
use lab::topology::{A, EDGE, Topology, Uplink};
use nix::sys::signal::Signal;
use serde_json::Value;
use vpn_edge::datapath::{self, DEFAULT_ROOT, OBJECT, Reader};
use vpn_edge_common::{Allocation, map, mode, program};

const SOURCE: &str = "192.0.2.2:51820";
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// A client of tenant A whose tunnel is up.
fn connected(uplink: Uplink) -> Result<(Edge, Client, Tenant, Topology)> {
    let topology = Topology::new(uplink)?;
    let edge = Edge::start(&topology, uplink, &[])?;
    let tenant = edge.enabled(&A)?;
    let client = Client::up(&topology.client_a, &tenant.configuration)?;
    client.await_reach(A.server)?;
    Ok((edge, client, tenant, topology))
}

/// Runs `work` in the node and waits for it.
fn inside<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    node.inside(work).join().expect("the thread does not panic")
}

/// A session index that the tenant's gateway has announced.
fn live_session(edge: &Edge, port: u16) -> Result<u32> {
    inside(&edge.node, move || {
        let tables = Reader::open(Path::new(DEFAULT_ROOT))?.snapshot()?;
        let slot = tables.allocations[&port].slot;
        let entries = tables.sessions[&slot].0.iter().flat_map(|bucket| &bucket.0);
        let live = entries
            .map(|way| way.load())
            .find(|&entry| entry as u32 > tables.tick);
        Ok((live.context("no session is live")? >> 32) as u32)
    })
}

/// What `vpn-edge` did, however it ended.
fn output(edge: &Edge, arguments: &[&str]) -> Result<Output> {
    let mut command = edge.node.command("timeout");
    command.arg("20").arg(edge.program()).args(arguments);
    edge.node.output(command)
}

/// What it says when it refuses.
fn refused(edge: &Edge, arguments: &[&str]) -> Result<String> {
    let output = output(edge, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    Ok(said)
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect()
}

/// `vpn-edge trace … -o json` of one packet.
fn trace(edge: &Edge, arguments: &[&str]) -> Result<Value> {
    let text = edge.vpn_edge(&[&["trace", "-o", "json"], arguments].concat())?;
    let traced = lines(&text)?;
    ensure!(traced.len() == 1, "{text}");
    Ok(traced[0].clone())
}

/// `vpn-edge trace` of fields, as one line of JSON.
fn fields(edge: &Edge, port: u16, more: &[&str]) -> Result<Value> {
    let port = port.to_string();
    trace(
        edge,
        &[&["--port", &port, "--source", SOURCE], more].concat(),
    )
}

fn asked(stage: &Value) -> Vec<&str> {
    let steps = stage["steps"].as_array().map(Vec::as_slice);
    let names = steps.unwrap_or_default().iter();
    names.filter_map(|step| step["asked"].as_str()).collect()
}

fn drops(edge: &Edge, port: u16, reason: &str) -> Result<u64> {
    let port = &edge.ports()?[&port];
    Ok(port["drops"][reason].as_u64().unwrap_or_default())
}

fn public_key(tenant: &Tenant) -> Result<&str> {
    let line = tenant
        .configuration
        .lines()
        .find_map(|line| line.strip_prefix("PublicKey = "));
    line.context("the configuration has a public key")
}

fn frame(port: u16, message: &[u8]) -> Result<Vec<u8>> {
    let edge: Ipv4Addr = EDGE.parse()?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([192, 0, 2, 2], edge.octets(), 64)
        .udp(51_820, port)
        .write(&mut frame, message)?;
    Ok(frame)
}

fn data(index: u32) -> Vec<u8> {
    let mut message = vec![0; 64];
    message[0] = 4;
    message[4..8].copy_from_slice(&index.to_le_bytes());
    message
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_packet_of_a_live_session_is_traced_to_its_gateway() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let index = live_session(&edge, tenant.port)?.to_string();
    let traced = fields(&edge, tenant.port, &["--type", "data", "--index", &index])?;
    let port = &edge.ports()?[&tenant.port];
    ensure!(port["sessions"].as_u64() > Some(0), "{port}");
    ensure!(port["handshakes"].as_u64() > Some(0), "{port}");

    ensure!(traced["agrees"] == true, "{traced:#}");
    let stages = traced["stages"].as_array().context("stages")?;
    ensure!(stages.len() == 1, "{traced:#}");
    let stage = &stages[0];
    ensure!(stage["hook"] == "xdp", "{stage:#}");
    ensure!(
        asked(stage)[..3] == ["allocation", "edge", "session"],
        "{stage:#}"
    );
    let allocation = &stage["steps"][0]["found"];
    ensure!(allocation["tenant"] == tenant.id.as_str(), "{allocation}");
    ensure!(allocation["mode"] == "xdp", "{allocation}");
    let answer = &stage["steps"][2]["answer"];
    let left = answer["seconds_left"].as_u64();
    ensure!(answer["is"] == "live", "{answer}");
    ensure!(left > Some(60) && left < Some(190), "{answer}");
    ensure!(stage["verdict"] == "steer", "{stage:#}");
    ensure!(stage["gateway"] == port["gateway"], "{stage:#}");
    ensure!(stage["interface"] == port["interface"], "{stage:#}");
    ensure!(stage["kernel"]["answer"] == "redirect", "{stage:#}");
    let gateway = port["gateway"].as_str().context("a gateway")?;
    let destination = format!("{gateway}:{}", tenant.port);
    ensure!(stage["kernel"]["destination"] == destination, "{stage:#}");

    let text = edge.vpn_edge(&[
        "trace", "--tenant", &tenant.id, "--source", SOURCE, "--index", &index,
    ])?;
    ensure!(text.contains("is live for"), "{text}");
    ensure!(text.contains("says redirect to"), "{text}");
    ensure!(text.contains("and agrees"), "{text}");
    Ok(())
}

#[test]
fn a_client_that_sends_from_a_port_between_nodes_is_a_client() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let tenant = edge.enabled(&A)?;
    let own_port = "[Interface]\nListenPort = 61005\n";
    let configuration = tenant.configuration.replacen("[Interface]\n", own_port, 1);
    let client = Client::up(&topology.client_a, &configuration)?;
    client.await_reach(A.server)?;
    let expected = format!("{}:61005", A.client);
    let listed = edge.vpn_edge(&["flows", "--port", &tenant.port.to_string(), "-o", "json"])?;
    let listed: Vec<Value> = serde_json::from_str(&listed)?;
    let [flow] = listed.as_slice() else {
        anyhow::bail!("{listed:#?}");
    };
    ensure!(flow["client"] == *expected, "{flow:#}");
    ensure!(flow["edge_node"] == false, "{flow:#}");
    let session = edge.tenant(&["session", &tenant.id])?;
    ensure!(session["client"] == *expected, "{session:#}");
    Ok(())
}

#[test]
fn the_client_is_listed_with_the_way_to_its_gateway() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let port = tenant.port.to_string();
    let listed = lines(&edge.vpn_edge(&["flows", "--tenant", &tenant.id, "-o", "json"])?)?;
    let flows = listed[0].as_array().context("a list")?;
    ensure!(flows.len() == 1, "{flows:#?}");
    let (flow, row) = (&flows[0], &edge.ports()?[&tenant.port]);
    let client = flow["client"].as_str().context("a client")?;
    ensure!(client.starts_with("192.0.2.2:"), "{flow:#}");
    ensure!(flow["edge_node"] == false, "{flow:#}");
    ensure!(flow["own"] == EDGE, "{flow:#}");
    ensure!(flow["gateway"] == row["gateway"], "{flow:#}");
    ensure!(flow["interface"] == row["interface"], "{flow:#}");
    ensure!(flow["hop_port"].is_null(), "{flow:#}");
    ensure!(flow["answered_seconds_ago"].is_u64(), "{flow:#}");
    ensure!(row["flows"] == 1, "{row:#}");

    let text = edge.vpn_edge(&["flows"])?;
    ensure!(text.contains(client), "{text}");
    let shown = edge.vpn_edge(&["ports", "--port", &port])?;
    ensure!(shown.contains("flows: 1"), "{shown}");
    let watched = edge.vpn_edge(&["ports", "--watch=0.1", "--count", "2", "-o", "json"])?;
    let looks = lines(&watched)?;
    ensure!(looks.len() == 2, "{watched}");
    let rate = |look: &Value| look[0]["ingress"]["bits_per_second"].clone();
    ensure!(
        rate(&looks[0]).is_null() && rate(&looks[1]).is_u64(),
        "{watched}"
    );
    for command in ["flows", "drops"] {
        let watched = edge.vpn_edge(&[command, "--watch=0.1", "--count", "3", "-o", "json"])?;
        ensure!(lines(&watched)?.len() == 3, "{command}: {watched}");
    }
    let said = refused(&edge, &["flows", "--port", "31999"])?;
    ensure!(said.contains("port 31999 is not allocated"), "{said}");
    Ok(())
}

#[test]
fn a_packet_to_another_address_than_the_nodes_cannot_be_asked_for() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let index = live_session(&edge, tenant.port)?.to_string();
    let own = fields(&edge, tenant.port, &["--index", &index, "--to", EDGE])?;
    ensure!(own["stages"][0]["verdict"] == "steer", "{own:#}");
    ensure!(own["agrees"] == true, "{own:#}");
    let port = tenant.port.to_string();
    let said = refused(
        &edge,
        &[
            "trace",
            "--port",
            &port,
            "--source",
            SOURCE,
            "--to",
            "192.0.2.9",
        ],
    )?;
    ensure!(said.contains("192.0.2.9 is not the node's"), "{said}");
    Ok(())
}

#[test]
fn a_packet_of_an_unknown_session_is_dropped_and_counted_unless_the_run_is_dry() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let before = drops(&edge, tenant.port, "unknown_session")?;
    let stage = |traced: &Value| -> Result<Value> {
        let stage = traced["stages"][0].clone();
        ensure!(
            asked(&stage) == ["allocation", "edge", "session", "grace"],
            "{stage:#}"
        );
        ensure!(stage["reason"] == "unknown_session", "{stage:#}");
        Ok(stage)
    };
    let dry = fields(&edge, tenant.port, &["--index", "0xdeadbeef", "--dry-run"])?;
    ensure!(stage(&dry)?["kernel"]["outcome"] == "not_run", "{dry:#}");
    ensure!(dry["agrees"].is_null(), "{dry:#}");
    ensure!(drops(&edge, tenant.port, "unknown_session")? == before);

    let wet = fields(&edge, tenant.port, &["--index", "0xdeadbeef"])?;
    ensure!(stage(&wet)?["kernel"]["answer"] == "drop", "{wet:#}");
    ensure!(wet["agrees"] == true, "{wet:#}");
    ensure!(drops(&edge, tenant.port, "unknown_session")? == before + 1);
    Ok(())
}

#[test]
fn a_handshake_passes_only_with_the_mac1_for_its_gateway() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let key = public_key(&tenant)?;
    let questions = ["allocation", "edge", "source", "mac1"];

    let bad = fields(&edge, tenant.port, &["--type", "initiation"])?;
    ensure!(asked(&bad["stages"][0]) == questions, "{bad:#}");
    ensure!(bad["stages"][0]["steps"][3]["good"] == false, "{bad:#}");
    ensure!(bad["stages"][0]["reason"] == "mac1", "{bad:#}");
    ensure!(bad["agrees"] == true, "{bad:#}");

    let initiation = ["--type", "initiation", "--public-key", key];
    let good = fields(&edge, tenant.port, &initiation)?;
    ensure!(asked(&good["stages"][0])[..4] == questions, "{good:#}");
    ensure!(good["stages"][0]["steps"][3]["good"] == true, "{good:#}");
    ensure!(good["stages"][0]["verdict"] == "steer", "{good:#}");
    ensure!(good["agrees"] == true, "{good:#}");
    let again = fields(&edge, tenant.port, &initiation)?;
    ensure!(again["stages"][0]["reason"] == "replay", "{again:#}");
    ensure!(again["agrees"] == true, "{again:#}");
    let left = |traced: &Value| traced["stages"][0]["steps"][2]["handshakes_left"].as_u64();
    ensure!(left(&bad) <= Some(20) && left(&bad) >= Some(15), "{bad:#}");

    let index = live_session(&edge, tenant.port)?.to_string();
    let response = ["--type", "response", "--public-key", key, "--index", &index];
    let good = fields(&edge, tenant.port, &response)?;
    ensure!(
        asked(&good["stages"][0])[2..5] == ["session", "source", "mac1"],
        "{good:#}"
    );
    ensure!(good["agrees"] == true, "{good:#}");
    Ok(())
}

#[test]
fn frames_come_as_hex_and_as_captures() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let live = frame(tenant.port, &data(live_session(&edge, tenant.port)?))?;
    let junk = frame(tenant.port, &[b'A'; 64])?;
    let other = frame(7, &[b'A'; 64])?;

    let traced = trace(&edge, &["--hex", &hex(&live)])?;
    ensure!(traced["stages"][0]["verdict"] == "steer", "{traced:#}");
    ensure!(traced["agrees"] == true, "{traced:#}");
    let text = edge.node.sh(&format!(
        "echo {} | {} trace --hex - -o json",
        hex(&junk),
        edge.program().display()
    ))?;
    let traced = &lines(&text)?[0];
    ensure!(
        traced["stages"][0]["reason"] == "message_type",
        "{traced:#}"
    );
    ensure!(traced["agrees"] == true, "{traced:#}");

    // A pcap of Ethernet frames, in this machine's byte order.
    let word = u32::to_ne_bytes;
    let mut capture = [word(0xa1b2_c3d4), [2, 0, 4, 0], [0; 4], [0; 4]].concat();
    capture.extend([word(65_535), word(1)].concat());
    // The longest that the kernel runs on demand, and one byte more.
    let mut message = data(live_session(&edge, tenant.port)?);
    message.resize(4096 - 256 - 320 - 42, 0);
    let longest = frame(tenant.port, &message)?;
    message.push(0);
    let longer = frame(tenant.port, &message)?;
    for frame in [&live, &junk, &other, &longest, &longer] {
        let length = word(frame.len() as u32);
        capture.extend([[0; 4], [0; 4], length, length].concat());
        capture.extend(frame);
    }
    let path = edge.node.folder.join("packets.pcap");
    std::fs::write(&path, capture)?;
    let path = path.display().to_string();
    let traced = lines(&edge.vpn_edge(&["trace", "--pcap", &path, "-o", "json"])?)?;
    let verdicts: Vec<_> = traced
        .iter()
        .map(|traced| (&traced["stages"][0]["verdict"], &traced["agrees"]))
        .collect();
    ensure!(
        verdicts
            == [
                (&Value::from("steer"), &Value::from(true)),
                (&Value::from("drop"), &Value::from(true)),
                (&Value::from("pass"), &Value::from(true)),
                (&Value::from("steer"), &Value::from(true)),
                (&Value::from("steer"), &Value::Null),
            ],
        "{traced:#?}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_traced_is_refused_with_what_to_do() -> Result<()> {
    let topology = Topology::new(Uplink::Veth)?;
    let nothing = |arguments: &[&str]| -> Result<String> {
        let mut command = topology.edge.command(lab::node::program("vpn-edge")?);
        command.args(arguments);
        let output = topology.edge.output(command)?;
        ensure!(!output.status.success());
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for arguments in [
        &["trace", "--hex", "00"][..],
        &["drops"],
        &["drops", "--follow"],
        &["top"],
    ] {
        let said = nothing(arguments)?;
        ensure!(
            said.contains("nothing is pinned at"),
            "{arguments:?}: {said}"
        );
    }

    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    for (arguments, expected) in [
        (
            &["trace", "--port", "31999", "--source", SOURCE][..],
            "port 31999 is not allocated",
        ),
        (&["trace", "--hex", "0011"], "a frame begins with"),
        (&["trace", "--hex", "xyz"], "character 1 of the hex is 'x'"),
        (
            &["trace", "--pcap", "/nonesuch.pcap"],
            "cannot read capture /nonesuch.pcap",
        ),
        (&["drops", "--port", "31999"], "port 31999 is not allocated"),
        (&["ports", "--port", "31999"], "port 31999 is not allocated"),
        (&["top", "--port", "31999"], "port 31999 is not allocated"),
        (
            &["trace", "--source", SOURCE, "--tenant", NOBODY],
            "tenant 00000000-0000-0000-0000-000000000000 has no port",
        ),
        (&["top"], "use `vpn-edge ports --watch`"),
    ] {
        let said = refused(&edge, arguments)?;
        ensure!(said.contains(expected), "{arguments:?}: {said}");
    }
    ensure!(edge.vpn_edge(&["drops"])?.contains("nothing was dropped"));
    Ok(())
}

#[test]
fn a_port_on_the_tc_hook_is_traced_through_both_programs() -> Result<()> {
    let (mut edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let index = live_session(&edge, tenant.port)?.to_string();
    // The daemon would put it right.
    edge.stop()?;
    let port = tenant.port;
    inside(&edge.node, move || {
        let path = datapath::folder(Path::new(DEFAULT_ROOT))
            .join("maps")
            .join(map::ALLOCATIONS);
        let data = MapData::from_pin(path)?;
        let mut allocations: Array<_, Allocation> = Array::try_from(Map::Array(data))?;
        let mut allocation = allocations.get(&u32::from(port), 0)?;
        allocation.mode = mode::TC;
        Ok(allocations.set(u32::from(port), allocation, 0)?)
    })?;
    let traced = fields(&edge, port, &["--index", &index])?;
    let stages = traced["stages"].as_array().context("stages")?;
    let seen: Vec<_> = stages
        .iter()
        .map(|stage| (&stage["hook"], &stage["kernel"]["answer"]))
        .collect();
    ensure!(
        seen == [
            (&Value::from("xdp"), &Value::from("pass")),
            (&Value::from("tc"), &Value::from("redirect")),
        ],
        "{traced:#}"
    );
    ensure!(traced["agrees"] == true, "{traced:#}");
    Ok(())
}

#[test]
fn an_uplink_without_xdp_is_traced_through_tc_alone() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Bridge)?;
    let index = live_session(&edge, tenant.port)?.to_string();
    let traced = fields(&edge, tenant.port, &["--index", &index])?;
    let stages = traced["stages"].as_array().context("stages")?;
    ensure!(stages.len() == 1 && stages[0]["hook"] == "tc", "{traced:#}");
    ensure!(stages[0]["kernel"]["answer"] == "redirect", "{traced:#}");
    ensure!(traced["agrees"] == true, "{traced:#}");
    for (length, runs) in [(33, false), (34, true), (3520, true), (3521, false)] {
        let mut bytes = frame(tenant.port, &data(0))?;
        bytes.resize(length, 0);
        let traced = trace(&edge, &["--hex", &hex(&bytes)])?;
        let agrees = if runs { Value::from(true) } else { Value::Null };
        ensure!(traced["agrees"] == agrees, "{length}: {traced:#}");
    }
    // Without its pin it is found by its name, as before Linux 6.6.
    edge.node
        .sh("rm -f /sys/fs/bpf/vpn-edge/*/links/ingress-br0")?;
    let traced = fields(&edge, tenant.port, &["--index", &index])?;
    let kernel = &traced["stages"][0]["kernel"];
    ensure!(kernel["note"].as_str().is_some(), "{traced:#}");
    ensure!(traced["agrees"] == true, "{traced:#}");
    Ok(())
}

#[test]
fn a_program_that_does_otherwise_is_told_loudly() -> Result<()> {
    let (mut edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let index = live_session(&edge, tenant.port)?.to_string();
    edge.stop()?;
    // The same program on maps of its own, which know no tenant.
    inside(&edge.node, || {
        let maps = Path::new("/sys/fs/bpf/elsewhere");
        std::fs::create_dir(maps)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(maps)
            .load(OBJECT)?;
        let program: &mut Xdp = ebpf
            .program_mut(program::INGRESS)
            .context("no program")?
            .try_into()?;
        program.load()?;
        let pin = datapath::folder(Path::new(DEFAULT_ROOT)).join("links/xdp-eth0");
        let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
        let id = program.attach_to_link(link)?;
        drop(program.take_link(id)?);
        Ok(())
    })?;
    let port = tenant.port.to_string();
    let arguments = [
        "trace", "--port", &port, "--source", SOURCE, "--index", &index,
    ];
    let output = output(&edge, &arguments)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(text.contains("DISAGREES   the program passes it"), "{text}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("of another build"), "{said}");
    Ok(())
}

/// Sends each message to the edge's port from one of the client's.
fn send(client: &Node, port: u16, messages: Vec<Vec<u8>>) -> Result<u16> {
    inside(client, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        for message in messages {
            socket.send_to(&message, (EDGE, port))?;
        }
        Ok(socket.local_addr()?.port())
    })
}

fn junk() -> Vec<u8> {
    vec![b'A'; 64]
}

/// A data message of a session that nobody has announced.
fn unknown() -> Vec<u8> {
    data(0xdead_beef)
}

fn follow(edge: &Edge, name: &str, more: &[&str]) -> Result<Process> {
    let mut command = edge.node.command(edge.program());
    command.args(["drops", "--follow"]).args(more);
    let process = edge.node.start(name, command)?;
    await_log(&process, "following drops")?;
    Ok(process)
}

fn await_log(process: &Process, wanted: &str) -> Result<()> {
    let start = Instant::now();
    while !process.log().contains(wanted) {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "no `{wanted}`: {}",
            process.log()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until the process ends well.
fn await_end(process: &mut Process) -> Result<()> {
    let start = Instant::now();
    while process.running() {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "it goes on: {}",
            process.log()
        );
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(process.wait()?.success(), "{}", process.log());
    Ok(())
}

/// The followed drops so far, by reason.
fn followed(process: &Process) -> Result<BTreeMap<String, Value>> {
    let log = process.log();
    let json: Vec<&str> = log.lines().filter(|line| line.starts_with('{')).collect();
    lines(&json.join("\n"))?
        .into_iter()
        .map(|drop| Ok((drop["reason"].as_str().context("reason")?.to_owned(), drop)))
        .collect()
}

#[test]
fn drops_are_counted_by_tenant_and_followed_as_they_happen() -> Result<()> {
    let (edge, _client, tenant, topology) = connected(Uplink::Veth)?;
    let port = tenant.port;
    // It lies in the buffer when the first reader comes.
    send(&topology.client_a, port, vec![junk(), junk()])?;
    edge.await_ports(|ports| ports[&port]["drops"]["message_type"] == 2)?;
    let shown = edge.vpn_edge(&["drops", "--tenant", &tenant.id])?;
    ensure!(shown.contains("message_type"), "{shown}");
    ensure!(shown.contains("Not a WireGuard message"), "{shown}");
    let json: Value = serde_json::from_str(&edge.vpn_edge(&["drops", "-o", "json"])?)?;
    ensure!(json[0]["dropped"] == 2, "{json}");

    let mut follower = follow(&edge, "json", &["-o", "json", "--count", "1"])?;
    let second = refused(&edge, &["drops", "--follow"])?;
    ensure!(second.contains("another process follows"), "{second}");
    ensure!(
        edge.vpn_edge(&["drops"]).is_ok(),
        "the counters are there for all"
    );
    let source = send(&topology.client_a, port, vec![unknown()])?;
    await_end(&mut follower)?;
    let drops = followed(&follower)?;
    ensure!(drops.keys().eq(["unknown_session"]), "{drops:?}");
    let drop = &drops["unknown_session"];
    ensure!(drop["tenant"] == tenant.id.as_str(), "{drop}");
    ensure!(drop["port"] == port, "{drop}");
    ensure!(drop["source"] == format!("{}:{source}", A.client), "{drop}");
    ensure!(drop["message"] == "data", "{drop}");
    ensure!(drop["length"] == 14 + 20 + 8 + 64, "{drop}");
    ensure!(drop["count"].as_u64() >= Some(1), "{drop}");
    let time: jiff::Timestamp = drop["time"].as_str().context("time")?.parse()?;
    let ago = jiff::Timestamp::now().duration_since(time).as_secs();
    ensure!((0..20).contains(&ago), "{ago} s ago: {drop}");

    // A line for people, and an orderly end by Ctrl-C.
    let port = port.to_string();
    let mut follower = follow(&edge, "table", &["--port", &port])?;
    thread::sleep(Duration::from_secs(2));
    send(&topology.client_a, tenant.port, vec![junk()])?;
    await_log(&follower, "message_type")?;
    follower.signal(Signal::SIGINT)?;
    await_end(&mut follower)?;
    let log = follower.log();
    ensure!(log.contains(&tenant.id) && log.contains("type 65"), "{log}");
    Ok(())
}

#[test]
fn top_draws_on_a_terminal_and_quits_on_q() -> Result<()> {
    let (edge, _client, tenant, _topology) = connected(Uplink::Veth)?;
    let program = edge.program().display();
    let drawn = edge.node.sh(&format!(
        "export TERM=xterm
         {{ sleep 1; printf d; sleep 1; printf q; }} |
         timeout 20 script -qec 'stty rows 24 cols 120; {program} top --watch=0.2; stty -a' /dev/null"
    ))?;
    ensure!(drawn.contains("1 tenant "), "{drawn}");
    ensure!(drawn.contains(&tenant.port.to_string()), "{drawn}");
    ensure!(drawn.contains("SESSIONS"), "{drawn}");
    // The screen of before is back, and its settings.
    ensure!(drawn.contains("\x1b[?1049l"), "{drawn}");
    let after = drawn.rsplit("\x1b[?1049l").next().unwrap_or_default();
    ensure!(
        after.contains(" icanon") && after.contains(" echo "),
        "{after}"
    );
    Ok(())
}
