//! The uplinks of a node that was told of none.

use anyhow::{Result, ensure};
use lab::node::Node;
use tokio::runtime::Builder;
use vpn_edge::network::default_uplinks;

use super::Pair;

fn uplinks(node: &Node) -> Result<Vec<String>> {
    let asked = node.inside(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(default_uplinks())
    });
    asked.join().expect("the thread does not panic")
}

#[test]
fn the_uplinks_are_those_of_the_best_default_routes() -> Result<()> {
    let Pair { edge, far: _, _lab } = Pair::new()?;
    let other = _lab.node("other")?;
    let refused = format!(
        "{:#}",
        uplinks(&edge).expect_err("there is no default route")
    );
    ensure!(refused.contains("name it with --uplink"), "{refused}");
    edge.sh("ip route add unreachable default metric 4000; ip route add 203.0.113.0/24 dev up0")?;
    ensure!(uplinks(&edge).is_err(), "one that leads nowhere is none");

    edge.link("up1", &other, "far1")?;
    edge.sh("ip address add 198.51.100.1/24 dev up1
         ip address add 2001:db8:1::1/64 dev up1 nodad
         ip route add default via 192.0.2.2 metric 100
         ip route add default via 198.51.100.2 metric 200")?;
    assert_eq!(uplinks(&edge)?, ["up0"]);
    // For packets of some rule alone, and by its metric the best.
    edge.sh("ip route add default via 198.51.100.2 table 2")?;
    assert_eq!(uplinks(&edge)?, ["up0"]);
    // IPv6 goes another way.
    edge.sh("ip route add default via 2001:db8:1::2")?;
    assert_eq!(uplinks(&edge)?, ["up0", "up1"]);
    edge.sh(
        "ip -6 route delete default; ip route add default metric 50 \
         nexthop via 198.51.100.2 nexthop via 192.0.2.2",
    )?;
    assert_eq!(uplinks(&edge)?, ["up1", "up0"]);
    edge.sh("ip route delete default metric 50; ip route delete default metric 100")?;
    assert_eq!(uplinks(&edge)?, ["up1"]);
    Ok(())
}
