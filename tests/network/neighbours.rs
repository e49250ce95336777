//! Next hops that the kernel keeps resolved.

use anyhow::{Result, ensure};
use lab::node::Node;

use super::{Followed, Pair, settings};

/// What the kernel knows of a neighbour behind `up0`.
fn entry(edge: &Node, address: &str) -> Result<String> {
    edge.sh(&format!("ip neigh show nud all {address} dev up0"))
}

/// Waits until it is resolved, and managed.
fn await_kept(edge: &Node, address: &str, mac: &str) -> Result<()> {
    edge.await_sh(&format!(
        "ip neigh show {address} dev up0 | grep -q 'lladdr {mac}.* managed' ||
         {{ ip neigh show nud all; false; }}"
    ))
}

/// A pair where the far end is also the way to other networks.
fn routed() -> Result<Pair> {
    let pair = Pair::new()?;
    pair.far.sh(
        "ip address add 192.0.2.3/24 dev far0; ip address add 192.0.2.4/24 dev far0
         ip address add fe80::3/64 dev far0 nodad; ip address add 2001:db8::4/64 dev far0 nodad
         ip link set far0 address 02:00:00:00:00:0a",
    )?;
    pair.edge.sh("ip route add 203.0.113.0/24 via 192.0.2.3
         ip route add 198.51.100.0/24 via inet6 fe80::3 dev up0
         ip route add 2001:db8:5::/64 via fe80::3 dev up0
         ip neigh flush dev up0")?;
    Ok(pair)
}

const MAC: &str = "02:00:00:00:00:0a";

/// Ages entries within fractions of a second.
const HURRY: &str = "for family in ipv4 ipv6; do
     for setting in base_reachable_time_ms=200 retrans_time_ms=50 interval_probe_time_ms=200; do
         sysctl -qw net.$family.neigh.up0.$setting
     done
     sysctl -qw net.$family.neigh.up0.delay_first_probe_time=1
 done";

#[test]
fn next_hops_are_resolved_and_stay_so() -> Result<()> {
    let Pair { edge, far, _lab } = routed()?;
    edge.sh(HURRY)?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    // On the link, and through gateways of either family; one has no route,
    // one is the node itself.
    let nodes = [
        "192.0.2.2",
        "203.0.113.9",
        "198.51.100.9",
        "2001:db8::2",
        "2001:db8:5::9",
        "233.252.0.1",
        "192.0.2.1",
    ];
    let count = followed.count();
    followed.keep(&nodes)?;
    let hops = ["192.0.2.2", "192.0.2.3", "fe80::3", "2001:db8::2"];
    for hop in hops {
        await_kept(&edge, hop, MAC)?;
    }
    followed.await_change(count)?;
    ensure!(entry(&edge, "203.0.113.9")?.is_empty());
    ensure!(entry(&edge, "192.0.2.1")?.is_empty());

    // They are gone, for whatever reason, and nobody asks for them.
    edge.sh("ip neigh flush dev up0; ip -6 neigh flush dev up0")?;
    for hop in hops {
        await_kept(&edge, hop, MAC)?;
    }
    // The carrier goes and comes.
    far.sh("ip link set far0 down")?;
    edge.await_sh("! ip neigh show dev up0 | grep -q lladdr")?;
    far.sh(
        "ip link set far0 up; ip address add 2001:db8::2/64 dev far0 nodad
         ip address add fe80::3/64 dev far0 nodad",
    )?;
    for hop in hops {
        await_kept(&edge, hop, MAC)?;
    }
    // Another machine takes over.
    let count = followed.count();
    far.sh("ip link set far0 address 02:00:00:00:00:0b")?;
    for hop in hops {
        await_kept(&edge, hop, "02:00:00:00:00:0b")?;
    }
    followed.await_change(count)?;
    Ok(())
}

#[test]
fn next_hops_are_let_go_when_nobody_wants_them() -> Result<()> {
    let Pair {
        edge,
        far: _far,
        _lab,
    } = routed()?;
    let managed = || edge.sh("ip neigh show dev up0 | grep -w managed | sort || true");
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    followed.keep(&["192.0.2.2", "203.0.113.9", "2001:db8::2"])?;
    for hop in ["192.0.2.2", "192.0.2.3", "2001:db8::2"] {
        await_kept(&edge, hop, MAC)?;
    }
    followed.keep(&["203.0.113.9"])?;
    let left = managed()?;
    ensure!(left.lines().count() == 1, "{left}");
    ensure!(left.starts_with("192.0.2.3 "), "{left}");
    // What is let go is as good as before.
    ensure!(entry(&edge, "192.0.2.2")?.contains(MAC));

    // The next process knows what this one asked for.
    drop(followed);
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    ensure!(managed()? == left);
    followed.keep(&["2001:db8::2"])?;
    await_kept(&edge, "2001:db8::2", MAC)?;
    ensure!(entry(&edge, "192.0.2.3")?.contains(MAC));
    let left = managed()?;
    ensure!(left.lines().count() == 1, "{left}");
    followed.keep(&[])?;
    ensure!(managed()?.is_empty(), "{}", managed()?);
    Ok(())
}

#[test]
fn entries_of_others_stay_as_they_are() -> Result<()> {
    let Pair {
        edge,
        far: _far,
        _lab,
    } = routed()?;
    edge.sh(
        "ip neigh add 192.0.2.21 dev up0 lladdr 02:00:00:00:00:21 nud permanent
         ip neigh add 192.0.2.22 dev up0 lladdr 02:00:00:00:00:22 nud noarp
         ip neigh add 192.0.2.23 dev up0 lladdr 02:00:00:00:00:23 nud stale extern_learn
         ip neigh add 192.0.2.24 dev up0 lladdr 02:00:00:00:00:24 nud stale proto static
         ip neigh add 2001:db8::21 dev up0 lladdr 02:00:00:00:00:26 nud permanent
         ip neigh add 192.0.2.4 dev up0 managed",
    )?;
    await_kept(&edge, "192.0.2.4", MAC)?;
    let of_others = || {
        edge.sh("ip neigh show nud all dev up0 | grep -E '^(192.0.2.2[1-4]|2001:db8::21) ' | sort")
    };
    let before = of_others()?;
    ensure!(before.lines().count() == 5, "{before}");
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    let nodes = [
        "192.0.2.21",
        "192.0.2.22",
        "192.0.2.23",
        "192.0.2.24",
        "2001:db8::21",
        "192.0.2.4",
        "192.0.2.2",
    ];
    followed.keep(&nodes)?;
    await_kept(&edge, "192.0.2.2", MAC)?;
    ensure!(of_others()? == before, "{}", of_others()?);

    // An admin takes one over from us.
    edge.sh("ip neigh replace 192.0.2.2 dev up0 lladdr 02:00:00:00:00:2f nud permanent")?;
    followed.keep(&nodes)?;
    let fixed = entry(&edge, "192.0.2.2")?;
    ensure!(fixed.contains("02:00:00:00:00:2f PERMANENT"), "{fixed}");

    followed.keep(&[])?;
    ensure!(of_others()? == before, "{}", of_others()?);
    ensure!(entry(&edge, "192.0.2.2")? == fixed);
    await_kept(&edge, "192.0.2.4", MAC)
}

#[test]
fn routes_towards_kept_nodes_are_followed() -> Result<()> {
    let Pair {
        edge,
        far: _far,
        _lab,
    } = routed()?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    let nodes = ["203.0.113.9", "2001:db8:5::9"];
    followed.keep(&nodes)?;
    await_kept(&edge, "192.0.2.3", MAC)?;
    await_kept(&edge, "fe80::3", MAC)?;

    // All hops of a route, not only one that some packet takes.
    for (script, hops) in [
        (
            "ip route replace 203.0.113.0/24 nexthop via 192.0.2.2 nexthop via 192.0.2.4",
            &["192.0.2.2", "192.0.2.4", "fe80::3"][..],
        ),
        (
            "ip route replace 2001:db8:5::/64 nexthop via 2001:db8::2 nexthop via 2001:db8::4",
            &["192.0.2.2", "192.0.2.4", "2001:db8::2", "2001:db8::4"],
        ),
        (
            "ip route add 203.0.113.9/32 via 192.0.2.3",
            &["192.0.2.3", "2001:db8::2", "2001:db8::4"],
        ),
        (
            "ip route del 203.0.113.9/32; ip route del 203.0.113.0/24
             ip route add default via 192.0.2.2",
            &["192.0.2.2", "2001:db8::2", "2001:db8::4"],
        ),
        (
            "ip route add unreachable 203.0.113.9/32",
            &["2001:db8::2", "2001:db8::4"],
        ),
        (
            "ip route add 203.0.113.0/24 via 192.0.2.3 table 9
             ip rule add to 203.0.113.0/24 table 9",
            &["192.0.2.3", "2001:db8::2", "2001:db8::4"],
        ),
    ] {
        let count = followed.count();
        edge.sh(script)?;
        followed.await_change(count)?;
        followed.keep(&nodes)?;
        for hop in hops {
            await_kept(&edge, hop, MAC)?;
        }
        let managed = edge.sh("ip neigh show dev up0 | grep -cw managed")?;
        ensure!(managed == hops.len().to_string(), "{script}: {managed}");
    }
    Ok(())
}

#[test]
fn routes_and_neighbours_that_lead_elsewhere_are_not_told() -> Result<()> {
    let Pair {
        edge,
        far: _far,
        _lab,
    } = routed()?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    followed.keep(&["203.0.113.9", "2001:db8:5::9"])?;
    await_kept(&edge, "192.0.2.3", MAC)?;
    await_kept(&edge, "fe80::3", MAC)?;
    // All that is behind is told.
    let more = "ip address add 192.0.2.10/24 dev up0";
    followed.after(&edge, more, |now| now.own.len() == 3)?;
    let before = followed.count();
    edge.sh(
        "ip route add 203.0.114.0/24 via 192.0.2.2; ip route add 2001:db8:6::/64 via fe80::3 dev up0
         ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0
         ip neigh change 192.0.2.77 lladdr 02:00:00:00:00:78 dev up0
         ip neigh del 192.0.2.77 dev up0
         ip route del 203.0.114.0/24",
    )?;
    let sentinel = "ip address add 192.0.2.11/24 dev up0";
    followed.after(&edge, sentinel, |now| now.own.len() == 4)?;
    ensure!(followed.count() == before + 1, "{}", followed.count());
    Ok(())
}
