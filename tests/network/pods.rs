//! Which link a pod on this node is behind.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::node::Node;
use tokio::runtime::Builder;
use tokio::sync::watch;
use vpn_edge::cluster::edge_source::PodLinks;
use vpn_edge::gateways::{Addresses, Link, Location};
use vpn_edge::network::Network;

use super::{Followed, HANG, Pair, index, set, settings};

/// What keeps pods' neighbours resolved, and tells where pods are.
struct Pods {
    followed: Followed,
    links: PodLinks,
    moved: watch::Receiver<u64>,
}

impl Pods {
    /// Begins to follow the node of a [`Pair`].
    fn begin(edge: &Node) -> Result<Self> {
        let begun = edge.inside(|| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let changes = watch::Sender::new(0);
            let moved = changes.subscribe();
            let (network, links) = runtime.block_on(async {
                let network = Network::follow(settings(&["up0"], &[])).await?;
                anyhow::Ok((network, PodLinks::follow(changes)?))
            })?;
            let changes = network.changes();
            let followed = Followed {
                runtime,
                network,
                changes,
            };
            Ok((followed, links, moved))
        });
        let (followed, links, moved) = begun.join().expect("the thread does not panic")?;
        Ok(Self {
            followed,
            links,
            moved,
        })
    }

    fn locate(&self, pod: &[&str]) -> Result<Option<Location>> {
        let located = self
            .followed
            .runtime
            .block_on(self.links.locate(&[pair(pod)]))?;
        located.into_iter().next().context("one answer each")
    }

    /// Waits until it is behind a link of which this holds. Only what is told
    /// makes it look again.
    fn await_link(&self, pod: &[&str], holds: impl Fn(&Link) -> bool) -> Result<Link> {
        let mut changes = [self.followed.changes.clone(), self.moved.clone()];
        loop {
            for changes in &mut changes {
                changes.mark_unchanged();
            }
            let located = self.locate(pod)?;
            if let Some(Location::Here(link)) = &located
                && holds(link)
            {
                return Ok(link.clone());
            }
            self.followed.keep(pod)?;
            let [one, other] = &mut changes;
            let changed = async {
                tokio::select! {
                    told = one.changed() => told,
                    told = other.changed() => told,
                }
            };
            let changed = self
                .followed
                .runtime
                .block_on(async { tokio::time::timeout(HANG, changed).await });
            changed.with_context(|| format!("no change was told; {pod:?} is {located:?}"))??;
        }
    }
}

fn pair(pod: &[&str]) -> Addresses {
    let mut addresses = Addresses::default();
    for address in set(pod) {
        match address {
            IpAddr::V4(v4) => addresses.v4 = Some(v4),
            IpAddr::V6(v6) => addresses.v6 = Some(v6),
        }
    }
    addresses
}

const POD: [&str; 2] = ["10.244.1.9", "fd00:244::9"];

/// Links the pod to the node, which routes to it by this link.
fn routed(edge: &Node, pod: &Node, interface: &str, mac: u8) -> Result<()> {
    edge.link(interface, pod, "eth0")?;
    pod.sh(&format!(
        "ip link set eth0 address 02:00:00:00:01:{mac:02x}
         ip address add 10.244.1.9/32 dev eth0; ip address add fd00:244::9/128 dev eth0 nodad
         ip route add 192.0.2.0/24 dev eth0; ip route add 2001:db8::/64 dev eth0"
    ))?;
    edge.sh(&format!(
        "ip route add 10.244.1.9 dev {interface}; ip route add fd00:244::9 dev {interface}"
    ))?;
    Ok(())
}

#[test]
fn a_pod_with_a_link_of_its_own_is_behind_it() -> Result<()> {
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let pod = _lab.node("pod")?;
    let pods = Pods::begin(&edge)?;
    ensure!(pods.locate(&POD)?.is_none(), "there is no route yet");
    routed(&edge, &pod, "cali1", 1)?;
    ensure!(
        pods.locate(&POD)?.is_none(),
        "nobody has asked for its MAC address"
    );

    let link = pods.await_link(&POD, |link| link.addresses == pair(&POD))?;
    let wanted = Link {
        interface: "cali1".into(),
        ifindex: index(&edge, "cali1")?,
        gateway_mac: [2, 0, 0, 0, 1, 1],
        addresses: pair(&POD),
        takes_redirects: true,
    };
    assert_eq!(link, wanted);
    // The kernel knows no MAC address for a while: the pod is where it was.
    pod.sh("ip link set eth0 down")?;
    edge.await_sh("! ip neigh show dev cali1 | grep -q lladdr")?;
    assert_eq!(pods.locate(&POD)?, Some(Location::Here(link)));
    Ok(())
}

#[test]
fn a_pod_that_is_made_anew_is_found_again() -> Result<()> {
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let (pod, other) = (_lab.node("pod")?, _lab.node("other")?);
    let pods = Pods::begin(&edge)?;
    routed(&edge, &pod, "cali1", 1)?;
    let first = pods.await_link(&POD, |_| true)?;

    // By the same address and name, on another link.
    edge.sh("ip link delete cali1")?;
    ensure!(pods.locate(&POD)?.is_none());
    routed(&edge, &other, "cali1", 2)?;
    let second = pods.await_link(&POD, |link| link.addresses == pair(&POD))?;
    ensure!(second.ifindex != first.ifindex);
    assert_eq!(second.ifindex, index(&edge, "cali1")?);
    assert_eq!(second.gateway_mac, [2, 0, 0, 0, 1, 2]);

    // On the same link, with another MAC address, of which it tells.
    other.sh(
        "sysctl -qw net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1
         ip link set eth0 address 02:00:00:00:01:03",
    )?;
    let third = pods.await_link(&POD, |link| link.gateway_mac == [2, 0, 0, 0, 1, 3])?;
    assert_eq!(third.ifindex, second.ifindex);
    Ok(())
}

#[test]
fn a_pod_on_a_bridge_is_behind_its_port() -> Result<()> {
    const POD: [&str; 1] = ["10.244.2.9"];
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let [pod, neighbour, other] = ["pod", "neighbour", "other"].map(|name| _lab.node(name));
    let (pod, neighbour, other) = (pod?, neighbour?, other?);
    edge.sh("ip link add cni0 type bridge; ip link set cni0 up
         ip address add 10.244.2.1/24 dev cni0")?;
    let plug = |pod: &Node, port: &str, address: &str, mac: u8| -> Result<()> {
        edge.link(port, pod, "eth0")?;
        pod.sh(&format!(
            "ip link set eth0 address 02:00:00:00:02:{mac:02x}
             ip address add {address}/24 dev eth0"
        ))?;
        edge.sh(&format!("ip link set {port} master cni0"))
            .map(drop)
    };
    plug(&neighbour, "veth0", "10.244.2.8", 8)?;
    plug(&pod, "veth1", "10.244.2.9", 9)?;
    let pods = Pods::begin(&edge)?;
    let link = pods.await_link(&POD, |_| true)?;
    assert_eq!(
        (link.interface.as_str(), link.gateway_mac),
        ("veth1", [2, 0, 0, 0, 2, 9])
    );
    assert_eq!(link.ifindex, index(&edge, "veth1")?);

    // The bridge forgets for a moment.
    edge.sh("bridge fdb delete 02:00:00:00:02:09 dev veth1 master")?;
    assert_eq!(pods.locate(&POD)?, Some(Location::Here(link.clone())));

    // The same address on another port: that the old one is gone is told.
    edge.sh("ip link delete veth1")?;
    ensure!(pods.locate(&POD)?.is_none());
    plug(&other, "veth2", "10.244.2.9", 10)?;
    edge.sh("ip neigh flush dev cni0")?;
    let link = pods.await_link(&POD, |link| link.interface == "veth2")?;
    assert_eq!(link.gateway_mac, [2, 0, 0, 0, 2, 10]);
    Ok(())
}

#[test]
fn the_end_of_a_link_is_told() -> Result<()> {
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let pod = _lab.node("pod")?;
    let pods = Pods::begin(&edge)?;
    routed(&edge, &pod, "cali1", 1)?;
    pods.await_link(&POD, |_| true)?;
    let mut moved = pods.moved.clone();
    moved.mark_unchanged();
    edge.sh("ip link delete cali1")?;
    let told = async { tokio::time::timeout(HANG, moved.changed()).await };
    pods.followed
        .runtime
        .block_on(told)
        .context("it was not told")??;
    Ok(())
}

#[test]
fn what_is_behind_no_link_is_the_kernels() -> Result<()> {
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let mac = "02:00:00:00:03:09";
    edge.sh(&format!(
        "ip tuntap add tap0 mode tap; ip link set tap0 up; ip route add 10.244.3.9 dev tap0
         ip link add both0 type veth peer name both1; ip link set both0 up; ip link set both1 up
         ip route add 10.244.4.9 dev both0
         ip route add 10.244.5.0/24 via 192.0.2.2
         ip link add cni0 type bridge; ip link set cni0 up; ip route add 10.244.6.9 dev cni0
         ip tuntap add tap1 mode tap; ip link set tap1 up; ip link set tap1 master cni0
         bridge fdb add {mac} dev tap1 master static
         ip neigh add 10.244.6.9 lladdr {mac} dev cni0
         ip route add blackhole 10.244.7.0/24; ip route add default via 192.0.2.2"
    ))?;
    let pods = Pods::begin(&edge)?;
    let cases = [
        ("10.244.3.9", Some(Location::Kernel)),
        ("10.244.4.9", Some(Location::Kernel)),
        ("10.244.5.9", Some(Location::Kernel)),
        ("10.244.6.9", Some(Location::Kernel)),
        // The pod has the node's own network.
        ("192.0.2.1", Some(Location::Kernel)),
        // Not set up yet, as far as anyone can tell.
        ("10.244.7.9", None),
        ("10.244.8.9", None),
    ];
    for (pod, wanted) in &cases {
        assert_eq!(pods.locate(&[pod])?, *wanted, "{pod}");
    }
    let all: Vec<Addresses> = cases.iter().map(|(pod, _)| pair(&[pod])).collect();
    let located = pods.followed.runtime.block_on(pods.links.locate(&all))?;
    ensure!(located.iter().eq(cases.iter().map(|(_, wanted)| wanted)));
    Ok(())
}
