//! What a look at a node asks of the kernel. Nothing of it stays.

use std::path::Path;

use aya::Ebpf;
use aya::programs::{loaded_links, loaded_programs};
use vpn_edge_common::program as names;

use super::attach::{self, Hook};
use super::{DatapathError, PASS_OBJECT, load_xdp, on_bpffs};

/// An XDP or tc program of whomever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    pub name: Option<String>,
    /// The `bpf_link` that holds it, if one does.
    pub link: Option<u32>,
}

/// Whether pins under `root` would be on a bpffs. The folder need not exist.
#[must_use]
pub fn has_bpffs(root: &Path) -> bool {
    root.ancestors()
        .find(|path| path.exists())
        .is_some_and(on_bpffs)
}

/// Whether the driver takes a program in native mode, found by attaching one
/// for a moment that passes all packets. Some cards reset their queues over
/// that: never ask while traffic is served.
///
/// # Errors
///
/// [`DatapathError::Attach`] when the driver refuses, [`DatapathError::Occupied`]
/// when another program is there, and others when the kernel refuses to load.
pub fn native_xdp(interface: &str) -> Result<(), DatapathError> {
    let mut ebpf = Ebpf::load(PASS_OBJECT)?;
    let name = load_xdp(&mut ebpf, names::PASS_FRAGS, names::PASS)?;
    attach::xdp(&mut ebpf, name, interface).map(drop)
}

/// The programs that hang on `hook` by links pinned under `root`, by whichever
/// build.
///
/// # Errors
///
/// When the kernel tells nothing of a pinned link.
pub fn pinned(root: &Path, hook: &Hook) -> Result<Vec<u32>, DatapathError> {
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

/// What the kernel tells of the program with this number.
#[must_use]
pub fn program(id: u32) -> Foreign {
    // Others come and go meanwhile: errors are about those.
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
