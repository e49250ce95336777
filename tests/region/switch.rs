//! The switch: it loses no frame that an XDP program sends out of a node.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::DevMap;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use lab::node::Node;
use lab::region::{EDGES, Region, VIP};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BENCH_EBPF"));

const PORT: u16 = 31_000;
const FRAMES: usize = 10_000;
/// No more at a time than a veth's ring holds.
const BATCH: usize = 200;

/// What `redirect` of the benchmarks' programs writes: source, destination.
const MACS: [&str; 2] = ["02:00:00:00:00:03", "02:00:00:00:00:04"];

/// Sends all that comes in on the node's `eth0` out of it again, to another
/// MAC address, for as long as the program is kept.
fn redirect(node: &Node) -> Result<Ebpf> {
    let attached = node.inside(|| {
        let mut ebpf = Ebpf::load(OBJECT)?;
        let uplink = nix::net::if_::if_nametoindex("eth0")?;
        let mut targets: DevMap<_> = ebpf.map_mut("TARGETS").context("no map")?.try_into()?;
        targets.set(0, uplink, None, 0)?;
        let program: &mut Xdp = ebpf
            .program_mut("redirect")
            .context("no program")?
            .try_into()?;
        program.load()?;
        program.attach("eth0", XdpMode::Driver)?;
        Ok(ebpf)
    });
    attached.join().expect("the thread does not panic")
}

#[test]
fn frames_that_a_program_redirects_all_reach_another_node() -> Result<()> {
    let region = Region::new()?;
    let ([edge, _], [worker, _]) = (&region.edges, &region.workers);
    // Neither answers neighbours that ask for the edge, as it redirects all.
    edge.sh(&format!("ip link set eth0 address {}", MACS[0]))?;
    worker.sh(&format!(
        "ip link set eth0 address {}
         nft 'table inet test {{ chain in {{
             type filter hook prerouting priority raw;
             iifname eth0 ip daddr {} udp dport {PORT} counter drop
         }}; }}'",
        MACS[1], EDGES[0].v4
    ))?;
    region.balancer.node.sh(&format!(
        "ip neigh replace {} lladdr {} dev eth0 nud permanent",
        EDGES[0].v4, MACS[0]
    ))?;
    region.balancer.pin(&[EDGES[0].name])?;
    let program = redirect(edge)?;

    let connect = region.client_a.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((VIP, PORT))?;
        Ok(socket)
    });
    let socket = connect.join().expect("the thread does not panic")?;
    for sent in (BATCH..=FRAMES).step_by(BATCH) {
        for _ in 0..BATCH {
            socket.send(&[0; 100])?;
        }
        let arrived = format!("nft list table inet test | grep -q 'packets {sent} '");
        worker.await_sh(&arrived).with_context(|| {
            let counted = worker.sh("nft list table inet test").unwrap_or_default();
            format!("{sent} were sent: {counted}")
        })?;
    }
    for node in [edge, worker] {
        let lost = region.lost_at(node)?;
        ensure!(lost == 0, "the switch lost {lost} frames at {}", node.name);
    }
    drop(program);
    Ok(())
}
