//! Counts in a gateway's namespace what comes to its port, without a loss.

use anyhow::{Context, Result};
use lab::node::Node;
use serde_json::Value;

/// Source port of all that tests forge; no client has it.
pub const FORGED: u16 = 9;

/// Rules of ours beside the gateway's.
pub struct Gate {
    edge: Node,
    namespace: String,
}

impl Gate {
    /// In the namespace of the port's gateway, as it is now.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn new(edge: &Node, port: u16) -> Result<Self> {
        let namespace = format!("vpn-edge-{port}");
        edge.sh(&format!(
            "ip netns exec {namespace} nft -f - <<'END'
             table inet lab {{
               counter came {{ }}
               counter arrived {{ }}
               chain came {{
                 type filter hook prerouting priority raw;
                 udp dport {port} udp sport {FORGED} counter name came
               }}
               chain arrived {{
                 type filter hook input priority filter + 10;
                 udp dport {port} udp sport {FORGED} counter name arrived
               }}
             }}\nEND"
        ))?;
        Ok(Self {
            edge: edge.clone(),
            namespace,
        })
    }

    /// Forged packets that came into the namespace.
    pub fn came(&self) -> Result<u64> {
        self.count("came")
    }

    /// Forged packets that WireGuard got.
    pub fn arrived(&self) -> Result<u64> {
        self.count("arrived")
    }

    /// A script for the edge that succeeds when a counter has come to `packets`.
    pub fn has(&self, counter: &str, packets: u64) -> String {
        format!(
            "ip netns exec {} nft list counter inet lab {counter} | grep -qw 'packets {packets}'",
            self.namespace
        )
    }

    fn count(&self, counter: &str) -> Result<u64> {
        let listed = self.edge.sh(&format!(
            "ip netns exec {} nft -j list counter inet lab {counter}",
            self.namespace
        ))?;
        let listed: Value = serde_json::from_str(&listed)?;
        let objects = listed["nftables"].as_array().context("no objects")?;
        objects
            .iter()
            .find_map(|object| object["counter"]["packets"].as_u64())
            .context("no such counter")
    }
}
