//! This build's daemon started over an earlier version's programs, maps and
//! gateways, while packets pass.
//!
//! The version's own object makes the maps, and its programs run on them when
//! the clients connect, so that sessions, flows and limits in the maps are those
//! programs' own. What the version's agent wrote into the maps is this build's
//! here (`maps.rs` looks at the version's), and so are the gateways' processes,
//! behind the version's configuration files.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, TcAttachType, Xdp};
use lab::client::INTERFACE;
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::{A, B, Uplink};
use serde_json::Value;
use vpn_edge_common::SCHEMA;

use crate::fixture::{Fixture, each};
use crate::gateways;
use crate::machine::{self, ARGUMENTS};
use crate::maps::{Layout, OBJECT, load, on_links};

/// The place of the versions' clsact filters, where the kernel has no tcx.
const PRIORITY: u16 = 77;
const HANDLE: TcHandle = TcHandle::new(0, 77);

/// Puts the version's programs in place of those that run, and leaves no map
/// that the version does not have.
fn go_back(object: &[u8], layout: &Layout) -> Result<()> {
    let pins = layout.pins();
    let mut ebpf = load(object, &pins)?;
    for (pin, program) in &layout.links {
        let (_, interface) = pin.split_once('-').context("a link of no interface")?;
        let pin = pins.join("links").join(pin);
        if pin
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("xdp-"))
        {
            let link: FdLink = PinnedLink::from_pin(&pin)?.into();
            let program = xdp(&mut ebpf, program)?;
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            drop(program.take_link(id)?);
            continue;
        }
        let ingress = TcAttachType::Ingress;
        let link = if pin.exists() {
            let link: FdLink = PinnedLink::from_pin(&pin)?.into();
            SchedClassifierLink::try_from(link)?
        } else {
            SchedClassifierLink::attached(interface, ingress, PRIORITY, HANDLE, None)?
        };
        let program: &mut SchedClassifier = ebpf
            .program_mut(program)
            .context("no such program")?
            .try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        let id = program.attach_to_link(link)?;
        let link = program.take_link(id)?;
        // A filter without a pin goes with its link.
        if pin.exists() {
            drop(link)
        } else {
            std::mem::forget(link)
        }
    }
    for map in fs::read_dir(pins.join("maps"))? {
        let map = map?;
        if !layout.has(&map.file_name().to_string_lossy()) {
            fs::remove_file(map.path())?;
        }
    }
    Ok(())
}

/// The XDP program for frames of several fragments, or the other one where the
/// kernel has no such frames.
fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let plain = name.trim_end_matches("_frags");
    for name in [name, plain] {
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .context("no such program")?
            .try_into()?;
        if program.fd().is_ok() || program.load().is_ok() {
            return Ok(ebpf
                .program_mut(name)
                .context("no such program")?
                .try_into()?);
        }
    }
    bail!("the kernel takes no XDP program of that version")
}

fn inside<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    node.inside(work).join().expect("the thread does not panic")
}

fn running(node: &Node, layout: &Layout) -> Result<BTreeMap<String, u32>> {
    let pins = layout.pins();
    inside(node, move || on_links(&pins))
}

/// The gateways' processes, with their start times.
fn processes(node: &Node) -> Result<String> {
    node.sh("ps -eo pid,lstart,args | grep '[v]pn-edge gateway' | sort")
}

/// A machine on which the version's daemon has just ended.
fn machine_of(fixture: &Fixture, layout: &Layout) -> Result<(lab::topology::Topology, Edge)> {
    let topology = machine::topology()?;
    machine::restore_files(fixture, &topology.edge)?;
    let object = fs::read(fixture.path(OBJECT))?;
    let pins = layout.pins();
    let made = object.clone();
    inside(&topology.edge, move || load(&made, &pins).map(drop))?;
    let mut edge = Edge::start(&topology, Uplink::Veth, &ARGUMENTS)?;
    machine::await_gateways(&edge)?;
    edge.stop()?;
    let layout = layout.clone();
    inside(&topology.edge, move || go_back(&object, &layout))?;
    for port in gateways::ports(fixture)? {
        let file = fixture.path(&format!("gateways/{port}/config.json"));
        edge.node.sh(&format!(
            "cat {} > /run/vpn-edge/gateways/{port}/config.json",
            file.display()
        ))?;
    }
    Ok((topology, edge))
}

#[test]
fn programs_maps_and_gateways_are_taken_over_without_losing_a_packet() -> Result<()> {
    each(|fixture| {
        let layout: Layout = fixture.json("maps/layout.json")?;
        if layout.schema != SCHEMA {
            // No agent here fills that version's maps. What a change of the
            // schema costs, the `guard` suite shows.
            eprintln!("version {} has schema {}", fixture.version, layout.schema);
            return Ok(());
        }
        let (topology, mut edge) = machine_of(fixture, &layout)?;
        let before = running(&edge.node, &layout)?;
        let busy = machine::client(fixture, "made", &topology.client_a, &A)?;
        let silent = machine::client(fixture, "given", &topology.client_b, &B)?;
        let sessions = || {
            let nodes = [&topology.client_a, &topology.client_b];
            let began = |node: &Node| node.sh(&format!("wg show {INTERFACE} latest-handshakes"));
            Ok::<_, anyhow::Error>([began(nodes[0])?, began(nodes[1])?])
        };
        let (session, gateways) = (sessions()?, processes(&edge.node)?);

        busy.lose_nothing(A.server, 5_000, || {
            edge.restart()?;
            let start = Instant::now();
            loop {
                let now = running(&edge.node, &layout)?;
                if now.len() >= before.len()
                    && before.iter().all(|(pin, id)| now.get(pin) != Some(id))
                {
                    return Ok(());
                }
                ensure!(
                    start.elapsed() < Duration::from_secs(20),
                    "the old programs run: {now:?}"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        })?;
        silent.lose_nothing(B.server, 500, || Ok(()))?;
        let now = sessions()?;
        ensure!(
            now == session,
            "there was a new handshake: {session:?} {now:?}"
        );
        let now = processes(&edge.node)?;
        ensure!(
            now == gateways,
            "a gateway was made anew: {gateways}\n{now}"
        );
        for (port, row) in edge.ports()? {
            ensure!(row["mode"] == "xdp", "{row}");
            let shown = edge.vpn_edge(&["ports", "--port", &port.to_string(), "-o", "json"])?;
            let shown: Value = serde_json::from_str(&shown)?;
            // Every session was known, none passed by grace.
            ensure!(
                shown[0]["graced"] == 0 && shown[0]["dropped"] == 0,
                "{shown}"
            );
        }
        Ok(())
    })
}
