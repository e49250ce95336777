//! Uplinks and own addresses, as they come and go.

use anyhow::{Context, Result, bail, ensure};
use vpn_edge::network::{MAX_OWN, Snapshot};

use super::{Followed, Pair, index, refused, settings};

fn own(snapshot: &Snapshot) -> Vec<String> {
    let addresses = snapshot.own.iter();
    addresses.map(|own| own.address.to_string()).collect()
}

/// Whether an uplink is up, if it is there.
fn up(snapshot: &Snapshot, name: &str) -> Option<bool> {
    let mut links = snapshot.uplinks.iter();
    links.find(|link| link.name == name).map(|link| link.up)
}

/// The index of the interface that replies from an address leave by.
fn leaves_by(snapshot: &Snapshot, address: &str) -> Result<u32> {
    let mut own = snapshot.own.iter();
    let found = own.find(|own| own.address.to_string() == address);
    Ok(found
        .context(format!("no {address}: {snapshot:#?}"))?
        .uplink)
}

#[test]
fn uplinks_and_their_addresses_are_followed() -> Result<()> {
    let Pair { edge, far, _lab } = Pair::new()?;
    edge.sh("ip link add up1 mtu 9000 type veth peer name end1
         ip link set up1 up; ip link set end1 up")?;
    edge.await_sh("ip link show up1 | grep -q 'state UP'")?;
    let followed = Followed::begin(&edge, settings(&["up0", "up1"], &[]))?;
    let begun = followed.snapshot()?;
    ensure!(own(&begun) == ["192.0.2.1", "2001:db8::1"], "{begun:#?}");
    let [up0, up1] = &begun.uplinks[..] else {
        bail!("{begun:#?}");
    };
    ensure!((up0.index, up0.mtu, up0.up) == (index(&edge, "up0")?, 1500, true));
    ensure!((up1.index, up1.mtu, up1.up) == (index(&edge, "up1")?, 9000, true));
    ensure!(begun.own.iter().all(|own| own.uplink == up0.index));

    // By family, then by uplink, then by age; secondary ones last.
    let after = |script: &str, expected: &[&str]| {
        followed.after(&edge, script, |snapshot| own(snapshot) == expected)
    };
    after(
        "ip address add 198.51.100.1/24 dev up1",
        &["192.0.2.1", "198.51.100.1", "2001:db8::1"],
    )?;
    after(
        "ip address add 192.0.2.7/24 dev up0",
        &["192.0.2.1", "192.0.2.7", "198.51.100.1", "2001:db8::1"],
    )?;
    let expected = ["192.0.2.1", "10.9.0.1", "192.0.2.7"];
    after(
        "ip address add 10.9.0.1/24 dev up0",
        &[&expected[..], &["198.51.100.1", "2001:db8::1"]].concat(),
    )?;
    let all = after(
        "ip address add 2001:d00::1/64 dev up1 nodad; ip address add 2001:d00::2/64 dev up0 nodad",
        &[
            &expected[..],
            &["198.51.100.1", "2001:db8::1", "2001:d00::2", "2001:d00::1"],
        ]
        .concat(),
    )?;
    ensure!(leaves_by(&all, "198.51.100.1")? == up1.index);
    ensure!(leaves_by(&all, "2001:d00::1")? == up1.index);
    ensure!(leaves_by(&all, "192.0.2.7")? == up0.index);
    after(
        "ip address del 10.9.0.1/24 dev up0; ip address del 2001:d00::2/64 dev up0
         ip address del 192.0.2.7/24 dev up0",
        &["192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:d00::1"],
    )?;

    let off = |now: &Snapshot| up(now, "up1") == Some(false);
    followed.after(&edge, "ip link set up1 down", off)?;
    let mtu = |now: &Snapshot| now.uplinks[1].mtu == 1400;
    followed.after(&edge, "ip link set up1 mtu 1400", mtu)?;
    let gone = |now: &Snapshot| up(now, "up1").is_none();
    let left = followed.after(&edge, "ip link del up1", gone)?;
    ensure!(own(&left) == ["192.0.2.1", "2001:db8::1"], "{left:#?}");
    followed.after(
        &edge,
        "ip link add up1 type veth peer name end1; ip link set end1 up
         ip address add 198.51.100.9/24 dev up1; ip link set up1 up",
        |now| own(now)[1] == "198.51.100.9" && up(now, "up1") == Some(true),
    )?;
    let renamed = |now: &Snapshot| up(now, "up1").is_none();
    followed.after(&edge, "ip link set up1 name other", renamed)?;

    // The carrier goes with the other end.
    let count = followed.count();
    ensure!(up(&followed.snapshot()?, "up0") == Some(true));
    far.sh("ip link set far0 down")?;
    followed.await_change(count)?;
    ensure!(up(&followed.snapshot()?, "up0") == Some(false));
    Ok(())
}

#[test]
fn addresses_that_are_not_meant_to_last_are_left_out() -> Result<()> {
    let Pair { edge, far, _lab } = Pair::new()?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    let base = ["192.0.2.1", "2001:db8::1"];
    // The kernel makes a temporary address of this one.
    edge.sh("sysctl -qw net.ipv6.conf.up0.use_tempaddr=2
         ip address add 2001:db8:1::5/64 dev up0 mngtmpaddr nodad")?;
    edge.await_sh("ip -6 address show dev up0 temporary -tentative | grep -q 2001:db8:1:")?;
    // What is tried before an address is used now takes longer than the test.
    edge.sh("ip address add 2001:db8::6/64 dev up0 nodad preferred_lft 0
         ip address add 10.9.0.5/24 dev up0 scope link
         sysctl -qw net.ipv6.conf.up0.dad_transmits=1000
         ip address add 2001:db8::7/64 dev up0")?;
    let shown = |how: &str| edge.sh(&format!("ip -6 address show dev up0 {how}"));
    ensure!(shown("deprecated")?.contains("2001:db8::6"));
    let snapshot = followed.snapshot()?;
    ensure!(shown("tentative")?.contains("2001:db8::7"));
    let lasting = ["192.0.2.1", "2001:db8::1", "2001:db8:1::5"];
    ensure!(own(&snapshot) == lasting, "{snapshot:#?}");

    // Somebody else has it.
    far.sh("ip address add 2001:db8::8/64 dev far0 nodad")?;
    edge.sh("ip address del 2001:db8:1::5/64 dev up0
         sysctl -qw net.ipv6.conf.up0.dad_transmits=1
         ip address add 2001:db8::8/64 dev up0")?;
    edge.await_sh("ip -6 address show dev up0 dadfailed | grep -q 2001:db8::8")?;
    ensure!(own(&followed.snapshot()?) == base);
    // Nobody has this one, so it is used after a while.
    followed.after(&edge, "ip address add 2001:db8::9/64 dev up0", |now| {
        own(now) == ["192.0.2.1", "2001:db8::1", "2001:db8::9"]
    })?;
    let aged = "ip address change 2001:db8::9/64 dev up0 preferred_lft 0";
    followed.after(&edge, aged, |now| own(now) == base)?;
    Ok(())
}

#[test]
fn named_addresses_are_found_wherever_they_are() -> Result<()> {
    let Pair { edge, _lab, .. } = Pair::new()?;
    // Not every kernel has VLANs.
    edge.sh(
        "ip link add link up0 name vlan type vlan id 7 2>/dev/null ||
             ip link add link up0 name vlan type macvlan mode bridge
         ip link add link vlan name mac type macvlan mode bridge
         ip link add up1 type veth peer name end1
         ip link add bridge type bridge
         ip link set up1 master bridge
         ip link add pair0 type veth peer name pair1
         ip link add dummy type bridge
         for link in vlan mac up1 bridge pair0 pair1 dummy; do ip link set $link up; done
         ip address add 198.51.100.1/24 dev vlan
         ip address add 198.51.100.2/32 dev mac
         ip address add 198.51.100.3/32 dev bridge
         ip address add 198.51.100.4/32 dev pair0
         ip address add 198.51.100.5/32 dev dummy
         ip address add 2001:db8:5::1/128 dev lo nodad
         ip address add 2001:db8:5::2/64 dev vlan nodad preferred_lft 0
         ip address add 203.0.113.1/32 dev lo",
    )?;
    let named = [
        ("198.51.100.5", "up0"),
        ("2001:db8:5::1", "up0"),
        ("198.51.100.2", "mac"),
        ("198.51.100.1", "vlan"),
        ("198.51.100.3", "bridge"),
        ("198.51.100.4", "up0"),
        ("2001:db8:5::2", "vlan"),
        ("192.0.2.1", "up0"),
    ];
    let addresses = named.map(|(address, _)| address);
    let followed = Followed::begin(&edge, settings(&["up0", "up1"], &addresses))?;
    let snapshot = followed.snapshot()?;
    ensure!(own(&snapshot) == addresses, "{snapshot:#?}");
    for (address, interface) in named {
        let by = leaves_by(&snapshot, address)?;
        ensure!(by == index(&edge, interface)?, "{address}: {snapshot:#?}");
    }

    let moved = "ip address del 198.51.100.5/32 dev dummy; \
                 ip address add 198.51.100.5/32 dev vlan; ip address add 198.51.100.5/32 dev dummy";
    let vlan = index(&edge, "vlan")?;
    followed.after(&edge, moved, |now| {
        leaves_by(now, "198.51.100.5").ok() == Some(vlan)
    })?;
    let out = "ip link set up1 nomaster";
    let up0 = index(&edge, "up0")?;
    followed.after(&edge, out, |now| {
        leaves_by(now, "198.51.100.3").ok() == Some(up0)
    })?;
    let gone = |now: &Snapshot| !own(now).contains(&"198.51.100.1".to_owned());
    let left = followed.after(&edge, "ip link del vlan", gone)?;
    ensure!(leaves_by(&left, "198.51.100.5")? == up0, "{left:#?}");
    Ok(())
}

#[test]
fn what_does_not_matter_is_not_told() -> Result<()> {
    let Pair { edge, _lab, .. } = Pair::new()?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    let before = followed.count();
    edge.sh(
        "ip link add pod type veth peer name inner; ip link set pod up
         ip address add 10.9.0.1/24 dev pod; ip route add 10.8.0.0/16 dev pod
         ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0
         ip neigh del 192.0.2.77 dev up0
         ip address add 10.7.0.9/24 dev up0 scope link
         ip link set up0 promisc on; ip link set up0 promisc off
         ip rule add from 10.9.0.0/16 table 9
         ip link del pod",
    )?;
    // Notifications come in order.
    let sentinel = "ip address add 192.0.2.10/24 dev up0";
    followed.after(&edge, sentinel, |now| own(now).len() == 3)?;
    ensure!(followed.count() == before + 1, "{}", followed.count());
    Ok(())
}

#[test]
fn a_change_is_told_even_when_its_notification_was_lost() -> Result<()> {
    let Pair { edge, _lab, .. } = Pair::new()?;
    // Else the end of its trial would be told, and lead to a look.
    edge.await_sh("! ip -6 address show dev up0 tentative | grep -q .")?;
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    let before = followed.count();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    let holding = followed.runtime.spawn(async move {
        begin.send(())?;
        // Ends with the other end.
        let _ = held.recv();
        anyhow::Ok(())
    });
    begun.recv()?;
    // More than any socket holds, and nothing that would be told.
    edge.sh("for n in $(seq 1 4000); do
             echo neigh add 10.$((n / 250)).0.$((n % 250 + 1)) lladdr 02:00:00:00:00:01 dev up0
         done | ip -batch -
         ip address add 192.0.2.10/24 dev up0")?;
    let drops = edge.sh("awk '$2 == 0 && $9 > 0' /proc/net/netlink")?;
    ensure!(!drops.is_empty(), "nothing was lost");
    drop(release);
    followed.await_change(before)?;
    ensure!(own(&followed.snapshot()?).len() == 3);
    followed.runtime.block_on(holding)??;
    // And on it goes.
    let later = "ip address add 192.0.2.11/24 dev up0";
    followed.after(&edge, later, |now| own(now).len() == 4)?;
    Ok(())
}

#[test]
fn what_is_missing_is_refused_with_what_to_do() -> Result<()> {
    let Pair { edge, _lab, .. } = Pair::new()?;
    edge.sh("ip link add bare type bridge; ip link set bare up")?;
    for (uplinks, addresses, expected) in [
        (&[][..], &[][..], "name one of `ip link` with --uplink"),
        (&["up0", "up9"], &[], "no interface `up9`"),
        (&["bare"], &[], "no address on `bare`"),
        (&["up0"], &["192.0.2.99"], "192.0.2.99 is on no interface"),
    ] {
        let said = refused(&edge, settings(uplinks, addresses))?;
        ensure!(said.contains(expected), "{said}");
    }
    let followed = Followed::begin(&edge, settings(&["up0"], &[]))?;
    // Two are there already.
    let more: String = (10..10 + MAX_OWN - 1)
        .map(|n| format!("ip address add 192.0.2.{n}/24 dev up0\n"))
        .collect();
    let count = followed.count();
    edge.sh(&more)?;
    followed.await_change(count)?;
    let said = refused(&edge, settings(&["up0"], &[]))?;
    let expected = "9 addresses on `up0`, but an edge answers from 8: name those";
    ensure!(said.contains(expected), "{said}");
    let said = followed.snapshot().map(|now| own(&now));
    ensure!(said.is_err_and(|error| error.to_string().contains(expected)));
    let enough = |now: &Snapshot| own(now).len() == MAX_OWN;
    let count = followed.count();
    edge.sh("ip address del 192.0.2.10/24 dev up0")?;
    followed.await_change(count)?;
    ensure!(enough(&followed.snapshot()?));
    Ok(())
}
