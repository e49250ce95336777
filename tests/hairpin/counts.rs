//! Packets that a node's kernel takes in, counted by what they are.

use anyhow::{Context, Result};
use lab::node::Node;

/// A rule of its own, before all others of the node.
pub struct Count {
    node: Node,
    name: &'static str,
}

impl Count {
    /// Counts what is `matching`, an nftables expression.
    pub fn new(node: &Node, name: &'static str, matching: &str) -> Result<Self> {
        node.sh(&format!(
            "nft 'add table inet {name}
                  add counter inet {name} seen
                  add chain inet {name} first {{ type filter hook prerouting priority -400; }}
                  add rule inet {name} first {matching} counter name seen'"
        ))?;
        Ok(Self {
            node: node.clone(),
            name,
        })
    }

    /// How many there were so far.
    pub fn packets(&self) -> Result<u64> {
        let shown = self
            .node
            .sh(&format!("nft list counter inet {} seen", self.name))?;
        let mut words = shown.split_whitespace();
        words.find(|word| *word == "packets");
        let count = words.next().context("no count")?;
        count.parse().with_context(|| shown.clone())
    }
}
