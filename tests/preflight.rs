//! What would keep the edge from working is found on a node that has it, and
//! is gone once the remedy was applied as printed.

use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;
use lab::node::{Lab, Node, program};
use serde_json::Value;
use vpn_edge::datapath::{self, Datapath, Hook};

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(env!("BENCH_EBPF"));

/// A node that lacks nothing, and its neighbour on two wires.
struct World {
    edge: Node,
    other: Node,
    _lab: Lab,
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (edge, other) = (lab.node("edge")?, lab.node("other")?);
        edge.link("eth0", &other, "far0")?;
        edge.link("eth1", &other, "far1")?;
        edge.sh("ip address add 198.51.100.2/24 dev eth0
             ip address add 203.0.113.2/24 dev eth1
             ip route add default via 198.51.100.1
             sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 \
                net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0 \
                net.ipv4.ip_local_port_range='32768 60999' net.ipv4.ip_local_reserved_ports=8080")?;
        other.sh("ip address add 198.51.100.1/24 dev far0
             ip address add 203.0.113.1/24 dev far1")?;
        Ok(Self {
            edge,
            other,
            _lab: lab,
        })
    }

    /// What the preflight finds, which its exit status must agree with.
    fn check(&self, arguments: &str) -> Result<Vec<Value>> {
        self.check_by("", arguments)
    }

    fn check_by(&self, wrapper: &str, arguments: &str) -> Result<Vec<Value>> {
        let program = program("preflight")?;
        let said = self.edge.sh(&format!(
            "status=0; {wrapper} {} {arguments} || status=$?; echo $status",
            program.display()
        ))?;
        let (json, status) = said.rsplit_once('\n').context("no status")?;
        let findings: Vec<Value> = serde_json::from_str(json).with_context(|| said.clone())?;
        let failed = findings
            .iter()
            .any(|finding| finding["severity"] == "error");
        ensure!(status == if failed { "1" } else { "0" }, "{said}");
        Ok(findings)
    }

    fn clean(&self, arguments: &str) -> Result<()> {
        let found = self.check(arguments)?;
        ensure!(found.is_empty(), "{arguments}: {found:#?}");
        Ok(())
    }

    /// The one thing that is found, which must be called so and say all of
    /// `words`.
    fn finds(&self, arguments: &str, check: &str, severity: &str, words: &[&str]) -> Result<Value> {
        one(self.check(arguments)?, check, severity, words)
    }

    /// The same, and it is gone after the command of the remedy.
    fn repairs(&self, arguments: &str, check: &str, severity: &str, words: &[&str]) -> Result<()> {
        self.clean_after(arguments, &self.finds(arguments, check, severity, words)?)
    }

    fn clean_after(&self, arguments: &str, finding: &Value) -> Result<()> {
        let remedy = finding["remedy"].as_str().context("no remedy")?;
        let command = remedy.split('`').nth(1);
        let command = command.with_context(|| format!("no command: {remedy}"))?;
        self.edge.sh(command)?;
        self.clean(arguments)
            .with_context(|| format!("after {command}"))
    }
}

fn one(found: Vec<Value>, check: &str, severity: &str, words: &[&str]) -> Result<Value> {
    let [finding] = found.as_slice() else {
        anyhow::bail!("{check} was to be found alone: {found:#?}");
    };
    ensure!(
        finding["check"] == check && finding["severity"] == severity,
        "{check}, {severity}: {finding}"
    );
    let text = format!("{} {}", finding["found"], finding["remedy"]);
    for word in words {
        ensure!(text.contains(word), "no `{word}`: {text}");
    }
    Ok(finding.clone())
}

const ONE: &str = "--uplink eth0";
const BOTH: &str = "--uplink eth0 --uplink eth1";

#[test]
fn a_node_that_lacks_nothing_is_left_alone() -> Result<()> {
    let world = World::new()?;
    let before = world
        .edge
        .sh("ip -details address; ip rule; sysctl net.ipv4 net.ipv6")?;
    world.clean(ONE)?;
    world.clean(&format!(
        "{BOTH} --node 198.51.100.1 --node 203.0.113.1 --ports 30000-32767"
    ))?;
    let after = world
        .edge
        .sh("ip -details address; ip rule; sysctl net.ipv4 net.ipv6")?;
    let volatile = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.contains("random") && !line.contains("_lft"))
            .map(str::to_owned)
            .collect()
    };
    ensure!(volatile(&before) == volatile(&after), "{before}\n{after}");
    Ok(())
}

#[test]
fn forwarding_that_is_off_is_switched_on() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("sysctl -w net.ipv4.ip_forward=0")?;
    world.repairs(BOTH, "forwarding", "error", &["net.ipv4.ip_forward is 0"])?;
    world.edge.sh("sysctl -w net.ipv4.conf.eth1.forwarding=0")?;
    world.clean(ONE)?;
    world.repairs(
        BOTH,
        "forwarding",
        "error",
        &["net.ipv4.conf.eth1.forwarding"],
    )?;

    // Names with dots are sysctl's own riddle.
    world.edge.sh("ip link set dev eth1 down name eth1.7
         ip link set dev eth1.7 up
         sysctl -w net.ipv4.conf.eth1/7.forwarding=0")?;
    let uplinks = "--uplink eth0 --uplink eth1.7";
    world.repairs(uplinks, "forwarding", "error", &["net.ipv4.conf.eth1/7"])
}

#[test]
fn ipv6_forwards_and_goes_on_to_heed_routers() -> Result<()> {
    let world = World::new()?;
    world.edge.sh(
        "sysctl -w net.ipv6.conf.eth0.forwarding=0 net.ipv6.conf.eth0.accept_ra=1
         ip address add 2001:db8:1::2/64 dev eth0 nodad",
    )?;
    let found = world.check(ONE)?;
    ensure!(found.len() == 2, "{found:#?}");
    one(
        vec![found[1].clone()],
        "default_route",
        "warning",
        &["IPv6", "::/0"],
    )?;
    world.edge.sh("ip route add default via 2001:db8:1::1")?;
    let words = ["net.ipv6.conf.eth0.forwarding is 0"];
    let node = "--uplink eth0 --node 2001:db8:1::1";
    world.finds(node, "forwarding", "error", &words)?;
    world.repairs(ONE, "forwarding", "warning", &words)?;
    let ra = world.edge.sh("sysctl -n net.ipv6.conf.eth0.accept_ra")?;
    ensure!(ra == "2", "{ra}");
    Ok(())
}

#[test]
fn strict_filters_matter_where_ways_differ() -> Result<()> {
    let world = World::new()?;
    world
        .edge
        .sh("sysctl -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth1.rp_filter=2")?;
    world.clean(ONE)?;
    world.repairs(BOTH, "rp_filter", "warning", &["1 for all, 0 of its own"])?;
    world.edge.sh("sysctl -w net.ipv4.conf.eth1.rp_filter=1")?;
    // The default route leaves by eth0.
    world.repairs(
        "--uplink eth1",
        "rp_filter",
        "warning",
        &["net.ipv4.conf.eth1.rp_filter"],
    )
}

#[test]
fn uplinks_are_there_up_connected_and_have_addresses() -> Result<()> {
    let world = World::new()?;
    world.finds("--uplink eth0 --uplink eth9", "uplink", "error", &["eth9"])?;
    ensure!(
        world
            .check("")?
            .iter()
            .any(|finding| finding["check"] == "uplink")
    );

    world.edge.sh("ip link set dev eth1 down")?;
    world.finds(BOTH, "uplink_down", "warning", &["eth1 is down"])?;
    world.repairs("--uplink eth1", "uplink_down", "error", &["eth1 is down"])?;

    world.other.sh("ip link set dev far1 down")?;
    world.finds(BOTH, "uplink_carrier", "warning", &["eth1"])?;
    world.finds("--uplink eth1", "uplink_carrier", "error", &["eth1"])?;
    world.other.sh("ip link set dev far1 up")?;
    world.clean(BOTH)?;

    world.edge.sh("ip address flush dev eth1 scope global")?;
    world.finds("--uplink eth1", "address", "error", &["eth1"])?;
    world.finds(BOTH, "address", "warning", &["eth1"])?;
    world.clean("--uplink eth1 --address 198.51.100.2")?;
    world.repairs(
        "--uplink eth1 --address 192.0.2.77",
        "address",
        "warning",
        &["192.0.2.77/32"],
    )
}

#[test]
fn what_fits_in_fits_out() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("ip link set dev eth0 mtu 1300")?;
    world.repairs(ONE, "mtu", "warning", &["1300", "1360"])?;
    world.edge.sh("ip link set dev eth1 mtu 2000")?;
    world.repairs(
        BOTH,
        "mtu",
        "warning",
        &["up to 2000 bytes come in by eth1", "1500"],
    )?;
    let node = "--uplink eth0 --uplink eth1 --node 198.51.100.1";
    world
        .edge
        .sh("ip route add 198.51.100.1 dev eth0 mtu 1400")?;
    world.finds(
        node,
        "node_mtu",
        "warning",
        &["2000", "1400", "198.51.100.1"],
    )?;
    world.edge.sh("ip route del 198.51.100.1 dev eth0")?;
    world.clean(node)
}

#[test]
fn a_program_of_somebody_else_is_named() -> Result<()> {
    let world = World::new()?;
    // Held by a link, which `ip link` cannot take off.
    let held = world
        .edge
        .inside(|| Ok(datapath::ready_gateway_end("eth0")?));
    let held = held.join().expect("the thread does not panic")?;
    let words = ["`pass_frags`", "xdpdrv", "bpftool link detach id"];
    world.finds(ONE, "xdp_occupied", "error", &words)?;
    drop(held);
    world.clean(ONE)?;

    let pinned = world.edge.inside(|| {
        let mut ebpf = Ebpf::load(PROGRAMS)?;
        let program: &mut Xdp = ebpf.program_mut("empty").context("empty")?.try_into()?;
        program.load()?;
        Ok(program.pin("/sys/fs/bpf/theirs")?)
    });
    pinned.join().expect("the thread does not panic")?;
    for mode in ["xdpgeneric", "xdpdrv"] {
        world.edge.sh(&format!(
            "ip link set dev eth0 {mode} pinned /sys/fs/bpf/theirs"
        ))?;
        world.repairs(ONE, "xdp_occupied", "error", &["`empty`", mode])?;
    }
    Ok(())
}

#[test]
fn programs_of_ours_are_known_by_their_pins() -> Result<()> {
    let world = World::new()?;
    let attached = world.edge.inside(|| {
        let mut datapath = Datapath::open(Path::new(datapath::DEFAULT_ROOT))?;
        Ok(datapath.attach_uplink("eth0")?)
    });
    let hook = attached.join().expect("the thread does not panic")?;
    ensure!(hook == Hook::Xdp, "{hook:?}");
    let number = "ip -o -d link show eth0 | grep -o 'prog/xdp.*id [0-9]*'";
    let before = world.edge.sh(number)?;
    world.clean(ONE)?;
    ensure!(world.edge.sh(number)? == before, "it runs another program");
    let elsewhere = format!("{ONE} --bpffs /sys/fs/bpf/elsewhere");
    world.finds(&elsewhere, "xdp_occupied", "error", &["`ingress_frags`"])?;
    Ok(())
}

#[test]
fn interfaces_without_native_xdp_are_told() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("ip link add br0 type bridge
         ip address flush dev eth1 scope global
         ip link set dev eth1 master br0
         ip address add 203.0.113.2/24 dev br0
         ip link set dev br0 up
         sysctl -w net.ipv4.conf.br0.rp_filter=0")?;
    world.edge.await_sh("ip link show br0 | grep -q LOWER_UP")?;
    let bridge = "--uplink br0 --node 203.0.113.1";
    world.finds(
        bridge,
        "native_xdp",
        "warning",
        &["br0", "--uplink eth1)", "--address"],
    )?;
    world.clean("--uplink eth1 --address 203.0.113.2")?;

    // A daemon that serves on tc has tried already.
    let attached = world.edge.inside(|| {
        let mut datapath = Datapath::open(Path::new(datapath::DEFAULT_ROOT))?;
        Ok(datapath.attach_uplink("br0")?)
    });
    let hook = attached.join().expect("the thread does not panic")?;
    ensure!(hook == Hook::Tc, "{hook:?}");
    world.finds(bridge, "native_xdp", "warning", &["it has been refused"])?;
    Ok(())
}

#[test]
fn frames_larger_than_a_page_are_nothing_to_warn_of() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("ip link set dev eth0 mtu 9000")?;
    world.other.sh("ip link set dev far0 mtu 9000")?;
    let found = world.check(ONE)?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

#[test]
fn ports_between_nodes_are_nobody_elses() -> Result<()> {
    let world = World::new()?;
    let reserved = "sysctl -n net.ipv4.ip_local_reserved_ports";
    world
        .edge
        .sh("sysctl -w net.ipv4.ip_local_port_range='32768 61050'")?;
    let words = ["61000-61050", "net.ipv4.ip_local_port_range", "32768-61050"];
    world.repairs(ONE, "hop_ports_local", "error", &words)?;
    ensure!(world.edge.sh(reserved)? == "8080,61000-61127");

    let pool = "--uplink eth0 --ports 32000-33000";
    world.repairs(pool, "pool_local", "warning", &["32768-33000"])?;
    ensure!(world.edge.sh(reserved)? == "8080,32000-33000,61000-61127");

    let both = "--uplink eth0 --hop-ports 30000-30127 --ports 30100-32767";
    world.finds(both, "hop_ports_pool", "error", &["30100-30127"])?;

    for (address, port) in [
        ("0.0.0.0", "61003"),
        ("[::]", "61127"),
        ("198.51.100.2", "61000"),
    ] {
        let address = format!("{address}:{port}");
        let bound = world.edge.inside(move || Ok(UdpSocket::bind(address)?));
        let bound = bound.join().expect("the thread does not panic")?;
        world.finds(ONE, "hop_ports_bound", "warning", &[port, "ss -ulnp"])?;
        drop(bound);
    }
    let inner = world
        .edge
        .inside(|| Ok(UdpSocket::bind("127.0.0.1:61003")?));
    let _inner = inner.join().expect("the thread does not panic")?;
    world.clean(ONE)
}

#[test]
fn reserving_keeps_what_others_reserved() -> Result<()> {
    let world = World::new()?;
    world
        .edge
        .sh("sysctl -w net.ipv4.ip_local_port_range='32768 65535'")?;
    world.finds(ONE, "hop_ports_local", "error", &["61000-61127"])?;
    let reserved = "sysctl -n net.ipv4.ip_local_reserved_ports";
    for (arguments, wanted) in [
        ("", "8080,61000-61127"),
        ("", "8080,61000-61127"),
        ("--hop-ports 61120-61200", "8080,61000-61200"),
        ("--hop-ports 8081-8081", "8080-8081,61000-61200"),
    ] {
        world.edge.sh(&format!(
            "{} --reserve {arguments}",
            program("preflight")?.display()
        ))?;
        let now = world.edge.sh(reserved)?;
        ensure!(now == wanted, "{now}, not {wanted}");
    }
    ensure!(world.other.sh(reserved)?.is_empty(), "another namespace's");
    world.clean(ONE)
}

#[test]
fn other_nodes_are_others_and_within_reach() -> Result<()> {
    let world = World::new()?;
    let node = |address: &str| format!("{ONE} --node {address}");
    world.finds(&node("203.0.113.2"), "node_own", "error", &["203.0.113.2"])?;
    world.finds(&node("127.0.0.2"), "node_own", "error", &["127.0.0.2"])?;
    world.finds(&node("203.0.113.1"), "node_uplink", "error", &["eth1"])?;
    world.clean(&format!("{BOTH} --node 203.0.113.1"))?;

    world.edge.sh("ip route add unreachable 192.0.2.128/25")?;
    world.finds(
        &node("192.0.2.130"),
        "node_route",
        "error",
        &["192.0.2.130"],
    )?;
    world.finds(
        &node("2001:db8::5"),
        "node_route",
        "error",
        &["2001:db8::5"],
    )?;
    world.edge.sh("ip route del unreachable 192.0.2.128/25")?;
    world.clean(&node("192.0.2.130"))?;

    world
        .edge
        .sh("ip route add 192.0.2.128/25 via 198.51.100.77")?;
    world.edge.sh("ping -c 1 -W 5 192.0.2.130 || true")?;
    world
        .edge
        .await_sh("ip neigh show 198.51.100.77 | grep -q FAILED")?;
    let words = ["198.51.100.77 on eth0", "192.0.2.130"];
    world.finds(&node("192.0.2.130"), "node_neighbour", "warning", &words)?;
    world.other.sh("ip address add 198.51.100.77/24 dev far0")?;
    world.edge.sh("ping -c 1 -W 5 198.51.100.77")?;
    world.clean(&node("192.0.2.130"))
}

#[test]
fn clients_are_answered_by_a_default_route() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("ip route del default")?;
    world.finds(
        ONE,
        "default_route",
        "warning",
        &["ip route add 0.0.0.0/0 via"],
    )?;
    // Several ways are as good as one, in whichever table.
    world.edge.sh(
        "ip route add default table 7 nexthop via 198.51.100.1 dev eth0 \
            nexthop via 203.0.113.1 dev eth1",
    )?;
    world.clean(ONE)
}

#[test]
fn the_machine_has_what_the_programs_need() -> Result<()> {
    let world = World::new()?;
    world.edge.sh("umount /sys/fs/bpf")?;
    world.repairs(ONE, "bpffs", "error", &["mount -t bpf bpf /sys/fs/bpf"])?;
    let own = format!("{ONE} --bpffs {}/own", world.edge.folder.display());
    world.repairs(&own, "bpffs", "error", &["mkdir -p"])?;
    world
        .edge
        .sh(&format!("umount {}/own", world.edge.folder.display()))?;

    for (dropped, words) in [
        ("cap_net_admin", "lacks CAP_NET_ADMIN"),
        ("cap_bpf,cap_sys_admin", "lacks CAP_BPF"),
        ("cap_perfmon,cap_sys_admin", "lacks CAP_PERFMON"),
    ] {
        let found = world.check_by(
            &format!("capsh --drop={dropped} --shell=/usr/bin/env --"),
            ONE,
        )?;
        one(found, "rights", "error", &[words])?;
    }

    // What is asked for is enough, and needed.
    let program = program("preflight")?;
    let opens = |dropped: &str| {
        let opened = world.edge.sh(&format!(
            "capsh --drop={dropped} --shell=/usr/bin/env -- {} --open --bpffs /sys/fs/bpf/{dropped}",
            program.display()
        ));
        opened.map(drop)
    };
    opens("cap_sys_admin")?;
    for needed in ["cap_perfmon", "cap_bpf"] {
        let refused = opens(&format!("cap_sys_admin,{needed}")).is_err();
        ensure!(refused, "it opens without {needed}");
    }

    // A namespace has neither a kernel nor a compiler of its own.
    world.edge.sh(&format!(
        "cd {}
         echo 5.14.0-503.el9.x86_64 > osrelease
         mount --bind osrelease /proc/sys/kernel/osrelease
         mkdir core
         echo 0 > core/bpf_jit_enable
         mount --bind core /proc/sys/net/core",
        world.edge.folder.display()
    ))?;
    let found = world.check(ONE)?;
    ensure!(found.len() == 2, "{found:#?}");
    one(
        vec![found[0].clone()],
        "kernel",
        "error",
        &["5.14.0-503", "5.15"],
    )?;
    one(
        vec![found[1].clone()],
        "jit",
        "warning",
        &["sysctl -w net.core.bpf_jit_enable=1"],
    )?;
    world
        .edge
        .sh("umount /proc/sys/kernel/osrelease; umount /proc/sys/net/core")?;
    world.clean(ONE)
}
