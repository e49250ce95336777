//! A path of frames in a network namespace of its own.
//!
//! Two veth pairs, `source`–`uplink` and `host`–`pod`, and between uplink and
//! host whatever is measured.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::kube_proxy::{self, Service};
use lab::region::Family;
use nix::sched::{CloneFlags, setns, unshare};
use vpn_edge_common::bench::gateway;

use crate::messages::{FIRST_PORT, MACS, NODE, NODE6};
use crate::subjects::Way;

pub struct World {
    namespace: File,
}

impl World {
    /// A path for `way`, with what the kernel needs to bring packets of
    /// `ports` tenants along it. The calling thread is in it afterwards.
    pub fn new(way: Way, ports: u16) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        // No frames but ours: neighbour discovery would be counted too.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        feed("ip", &["-batch", "-"], &links())?;
        if way.is_kernel() || way == Way::Hairpin {
            feed("ip", &["-batch", "-"], &addresses())?;
            for (name, value) in [
                ("ip_forward", "1"),
                ("conf/all/rp_filter", "0"),
                ("conf/uplink/rp_filter", "0"),
                ("conf/host/rp_filter", "0"),
            ] {
                set(&format!("ipv4/{name}"), value)?;
            }
        }
        let services = (FIRST_PORT..FIRST_PORT + ports).map(|port| Service {
            port,
            endpoint: Ipv4Addr::from(gateway(port)).into(),
        });
        match way {
            Way::Redirect | Way::Steered | Way::Hairpin | Way::Routing => {}
            Way::Nftables => {
                let rules = kube_proxy::nftables(Ipv4Addr::from(NODE).into(), services);
                feed("nft", &["-f", "-"], &rules)?;
            }
            Way::Iptables => {
                // Of the two there are, today's distributions use the one over
                // nftables. The legacy one walks the same rules in half the time.
                feed(
                    "iptables-nft-restore",
                    &[],
                    &kube_proxy::iptables(Family::V4, services),
                )?;
            }
        }
        if way.tracks() {
            // Flows stay known for as long as the run takes.
            for name in ["udp_timeout", "udp_timeout_stream"] {
                set(&format!("netfilter/nf_conntrack_{name}"), "3600")?;
            }
        }
        Ok(Self { namespace })
    }

    /// A path that does IPv6 as well. The kernel may send frames of its own
    /// along it.
    pub fn dual() -> Result<Self> {
        let world = Self::new(Way::Hairpin, 1)?;
        for interface in ["uplink", "host"] {
            set(&format!("ipv6/conf/{interface}/disable_ipv6"), "0")?;
        }
        set("ipv6/conf/all/forwarding", "1")?;
        feed("ip", &["-6", "-batch", "-"], &addresses6())?;
        Ok(world)
    }

    /// Moves the calling thread in.
    pub fn enter(&self) -> Result<()> {
        Ok(setns(&self.namespace, CloneFlags::CLONE_NEWNET)?)
    }
}

/// Forgets all flows of the namespace that the thread is in.
pub fn forget_flows() -> Result<()> {
    feed("conntrack", &["-F"], "")
}

/// Whether connection tracking sums every packet up itself. A network card
/// that has done so spares it.
pub fn check_sums(yes: bool) -> Result<()> {
    let value = if yes { "1" } else { "0" };
    set("netfilter/nf_conntrack_checksum", value)
}

pub fn index(interface: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}

fn links() -> String {
    let [source, uplink, host, pod] = MACS.map(mac);
    let mut script = format!(
        "link add source address {source} type veth peer name uplink address {uplink}
link add host address {host} type veth peer name pod address {pod}
"
    );
    for interface in ["lo", "source", "uplink", "host", "pod"] {
        script += &format!("link set dev {interface} up\n");
    }
    script
}

/// Addresses, routes and neighbours, so that nothing has to be asked for.
fn addresses() -> String {
    let [source, _, _, pod] = MACS.map(mac);
    let node = Ipv4Addr::from(NODE);
    format!(
        "address add {node}/24 dev uplink
address add 192.0.2.1/30 dev host
neighbour add 198.51.100.1 lladdr {source} dev uplink nud permanent
neighbour add 192.0.2.2 lladdr {pod} dev host nud permanent
route add default via 198.51.100.1 dev uplink
route add 100.64.0.0/10 via 192.0.2.2 dev host
"
    )
}

fn addresses6() -> String {
    let [source, _, _, pod] = MACS.map(mac);
    let node = Ipv6Addr::from(NODE6);
    format!(
        "address add {node}/64 dev uplink nodad
address add 2001:db8:1::1/64 dev host nodad
neighbour add 2001:db8::1 lladdr {source} dev uplink nud permanent
neighbour add 2001:db8:1::2 lladdr {pod} dev host nud permanent
route add default via 2001:db8::1 dev uplink
route add 2001:db8:2::/64 via 2001:db8:1::2 dev host
"
    )
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {path}"))
}

/// Runs a program over `input`; what it prints is told only if it fails.
fn feed(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`: is its package installed?"))?;
    let mut stdin = child.stdin.take().context("a piped input")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "`{program} {}` failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
            .lines()
            .take(5)
            .collect::<Vec<_>>()
            .join("; ")
    );
    Ok(written?)
}
