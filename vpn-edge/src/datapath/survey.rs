//! Queries of a node's kernel that leave nothing behind.

use std::path::Path;

use aya::Ebpf;
use aya::programs::{loaded_links, loaded_programs};
use vpn_edge_common::program as names;

use super::attach::{self, AttachPoint};
use super::{DatapathError, PASS_OBJECT, load_xdp, on_bpffs};

/// An XDP or tc program of any owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    pub name: Option<String>,
    /// The ID of the `bpf_link` that attaches it, if there is one.
    pub link: Option<u32>,
}

/// Whether pins under `root` would be on a bpffs. The folder need not exist.
#[must_use]
pub fn has_bpffs(root: &Path) -> bool {
    root.ancestors()
        .find(|path| path.exists())
        .is_some_and(on_bpffs)
}

/// Tests whether the driver supports native XDP, by attaching a program for a moment
/// that passes all packets. Some cards reset their queues for this: never call it
/// while traffic is served.
///
/// # Errors
///
/// [`DatapathError::Attach`] if the driver refuses, [`DatapathError::Occupied`] if
/// another program is attached, and others if the kernel refuses to load.
pub fn native_xdp(interface: &str) -> Result<(), DatapathError> {
    let mut ebpf = Ebpf::load(PASS_OBJECT)?;
    let name = load_xdp(&mut ebpf, names::PASS_FRAGS, names::PASS)?;
    attach::xdp(&mut ebpf, name, interface).map(drop)
}

/// The IDs of programs attached to `hook` by links pinned under `root`, of any
/// version.
///
/// # Errors
///
/// If the kernel does not report a pinned link.
pub fn pinned(root: &Path, hook: &AttachPoint) -> Result<Vec<u32>, DatapathError> {
    let folders = attach::others(root)
        .into_iter()
        .chain([super::folder(root)]);
    let mut programs = Vec::new();
    for folder in folders {
        if let Some(link) = attach::pinned(&folder.join("links").join(hook.pin()))? {
            let info = link
                .info()
                .map_err(|error| DatapathError::Link(Box::new(error)))?;
            programs.push(info.program_id());
        }
    }
    Ok(programs)
}

/// The kernel's information on the program with this ID.
#[must_use]
pub fn program(id: u32) -> Foreign {
    // Programs may be unloaded meanwhile: errors are about those.
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let link = loaded_links()
        .flatten()
        .find(|link| link.program_id() == id);
    Foreign {
        name: info
            .and_then(|info| info.name_as_str().map(str::to_owned))
            .filter(|name| !name.is_empty()),
        link: link.map(|link| link.id()),
    }
}
