//! Hooks: attached once, pinned, and from then on replaced in place.
//!
//! From Linux 6.6 every hook is a `bpf_link`. Before, tc programs are clsact
//! filters under a priority and handle of ours, which stay on their device
//! without a pin and are replaced under the same handle.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use vpn_edge_common::program;

use super::{Datapath, DatapathError};

/// Our place among clsact filters.
const CLSACT_PRIORITY: u16 = 77;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 77);

/// How packets from the uplink reach gateways of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Native XDP, with tc behind it.
    Xdp,
    /// tc alone: the driver has no native XDP.
    Tc,
}

/// A place where one of our programs is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachPoint {
    UplinkXdp(String),
    UplinkTc(String),
    /// On a gateway's host-side veth.
    Gateway(String),
}

impl AttachPoint {
    pub(super) fn pin(&self) -> String {
        match self {
            Self::UplinkXdp(interface) => format!("xdp-{interface}"),
            Self::UplinkTc(interface) => format!("ingress-{interface}"),
            Self::Gateway(interface) => format!("egress-{interface}"),
        }
    }
}

impl Datapath {
    /// Attaches the ingress programs to `interface`, or replaces those that an
    /// earlier process left there; no packet is lost over that.
    ///
    /// # Errors
    ///
    /// No such interface, another XDP program on it, or refused by the kernel.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<Hook, DatapathError> {
        index_of(interface)?;
        self.attach_tc(
            AttachPoint::UplinkTc(interface.into()),
            program::INGRESS_TC,
            interface,
        )?;
        match self.attach_xdp(AttachPoint::UplinkXdp(interface.into()), interface) {
            Ok(()) => Ok(Hook::Xdp),
            // Drivers refuse for reasons of their own: no native XDP, an MTU too
            // large for it, too few queues. tc works with all of them.
            Err(error @ DatapathError::Attach { .. }) => {
                tracing::debug!("{error}");
                Ok(Hook::Tc)
            }
            Err(error) => Err(error),
        }
    }

    /// Attaches the egress program to a gateway's host-side veth, or replaces
    /// the one that an earlier process left there.
    ///
    /// # Errors
    ///
    /// No such interface, or refused by the kernel.
    pub fn attach_gateway(&mut self, interface: &str) -> Result<(), DatapathError> {
        index_of(interface)?;
        self.attach_tc(
            AttachPoint::Gateway(interface.into()),
            program::EGRESS,
            interface,
        )
    }

    /// Detaches whatever is pinned and not in `wanted`, links of vanished
    /// interfaces among it, and removes what other schemas' builds left.
    ///
    /// # Errors
    ///
    /// When the pin folder cannot be read or a pin not removed.
    pub fn prune(&mut self, wanted: &BTreeSet<AttachPoint>) -> Result<(), DatapathError> {
        let folder = self.folder.join("links");
        let keep: BTreeSet<String> = wanted.iter().map(AttachPoint::pin).collect();
        let failed = |path: &Path, error: io::Error| DatapathError::Pin {
            path: path.into(),
            message: error.to_string(),
        };
        for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, error))? {
            let entry = entry.map_err(|error| failed(&folder, error))?;
            if !keep.contains(entry.file_name().to_string_lossy().as_ref()) {
                fs::remove_file(entry.path()).map_err(|error| failed(&entry.path(), error))?;
            }
        }
        let is_uplink = |hook: &&AttachPoint| matches!(hook, AttachPoint::UplinkTc(_));
        let uplinks: BTreeSet<AttachPoint> = wanted.iter().filter(is_uplink).cloned().collect();
        if self.clsact && self.uplinks.as_ref() != Some(&uplinks) {
            detach_others(&uplinks)?;
            self.uplinks = Some(uplinks);
        }
        self.upgrading = false;
        for other in self.others.drain(..) {
            fs::remove_dir_all(&other).map_err(|error| failed(&other, error))?;
        }
        Ok(())
    }

    /// Where the hook's link is pinned, or is to be. One that another schema's
    /// build pinned is moved here: a link is replaced, never attached anew.
    fn link(&self, hook: &AttachPoint) -> Result<PathBuf, DatapathError> {
        let pin = self.folder.join("links").join(hook.pin());
        if pin.exists() {
            return Ok(pin);
        }
        for other in &self.others {
            match fs::rename(other.join("links").join(hook.pin()), &pin) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DatapathError::Pin {
                        path: pin,
                        message: error.to_string(),
                    });
                }
                _ => {}
            }
        }
        Ok(pin)
    }

    fn attach_xdp(&mut self, hook: AttachPoint, interface: &str) -> Result<(), DatapathError> {
        let pin = self.link(&hook)?;
        let name = self.xdp;
        if let Some(link) = pinned(&pin)? {
            let link = XdpLink::try_from(link).map_err(|error| unpinnable(&pin, &error))?;
            let program = program_mut::<Xdp>(&mut self.ebpf, name);
            match program.attach_to_link(link) {
                // The pin keeps the link; the program is not to keep it open.
                Ok(id) => return close(program.take_link(id), name, interface),
                Err(error) if is(&error, libc::ENOLINK) => unpin(&pin)?,
                Err(source) => return Err(refused(name, interface, source)),
            }
        }
        let id = xdp(&mut self.ebpf, name, interface)?;
        let link = program_mut::<Xdp>(&mut self.ebpf, name)
            .take_link(id)
            .map_err(|source| refused(name, interface, source))?;
        pin_link(link, name, interface, &pin)
    }

    fn attach_tc(
        &mut self,
        hook: AttachPoint,
        name: &'static str,
        interface: &str,
    ) -> Result<(), DatapathError> {
        let pin = self.link(&hook)?;
        let program = program_mut::<SchedClassifier>(&mut self.ebpf, name);
        if let Some(link) = pinned(&pin)? {
            let link =
                SchedClassifierLink::try_from(link).map_err(|error| unpinnable(&pin, &error))?;
            match program.attach_to_link(link) {
                Ok(id) => return close(program.take_link(id), name, interface),
                Err(error) if is(&error, libc::ENOLINK) => unpin(&pin)?,
                Err(source) => return Err(refused(name, interface, source)),
            }
        }
        let ingress = TcAttachType::Ingress;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = match program.attach_with_options(interface, ingress, first) {
            Ok(id) => id,
            Err(error) if is(&error, libc::EINVAL) => {
                clsact(program, name, interface)?;
                self.clsact = true;
                return Ok(());
            }
            Err(source) => return Err(refused(name, interface, source)),
        };
        let link = program
            .take_link(id)
            .map_err(|source| refused(name, interface, source))?;
        pin_link(link, name, interface, &pin)
    }
}

/// Before tcx filters have no pins: takes ours off what is no uplink any more.
fn detach_others(uplinks: &BTreeSet<AttachPoint>) -> Result<(), DatapathError> {
    for name in interfaces()? {
        if !uplinks.contains(&AttachPoint::UplinkTc(name.clone())) {
            // Most have no such filter to find.
            let _ = qdisc_detach_program(&name, TcAttachType::Ingress, program::INGRESS_TC);
        }
    }
    Ok(())
}

fn interfaces() -> Result<Vec<String>, DatapathError> {
    let interfaces = nix::net::if_::if_nameindex().map_err(|source| DatapathError::Folder {
        path: "/sys/class/net".into(),
        source: source.into(),
    })?;
    let names = interfaces.iter().map(|interface| interface.name());
    Ok(names.map(|name| name.to_string_lossy().into()).collect())
}

/// Takes everything off this node that is pinned under `root`, and our clsact
/// filters: hooks, programs and maps.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn remove(root: &Path) -> Result<(), DatapathError> {
    for interface in interfaces()? {
        for name in [program::INGRESS_TC, program::EGRESS] {
            // Where tcx is in use there is no such filter to find.
            let _ = qdisc_detach_program(&interface, TcAttachType::Ingress, name);
        }
    }
    for folder in others(root).into_iter().chain([super::folder(root)]) {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DatapathError::Pin {
                    path: folder,
                    message: error.to_string(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The folders of other schemas under `root`.
pub(super) fn others(root: &Path) -> Vec<PathBuf> {
    let own = super::folder(root);
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let is_schema = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix('v').map(str::parse::<u32>);
        matches!(number, Some(Ok(_))) && *path != own
    };
    entries
        .map(|entry| entry.path())
        .filter(is_schema)
        .collect()
}

/// Attaches an XDP program in driver mode and leaves the link with it.
pub(super) fn xdp(
    ebpf: &mut Ebpf,
    name: &'static str,
    interface: &str,
) -> Result<XdpLinkId, DatapathError> {
    program_mut::<Xdp>(ebpf, name)
        .attach(interface, XdpMode::Driver)
        .map_err(|source| {
            if is(&source, libc::EBUSY) || is(&source, libc::EEXIST) {
                DatapathError::Occupied(interface.into())
            } else {
                refused(name, interface, source)
            }
        })
}

/// tc before tcx: a clsact filter, replaced where an earlier process left one.
fn clsact(
    program: &mut SchedClassifier,
    name: &'static str,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = |source| refused(name, interface, source);
    let ingress = TcAttachType::Ingress;
    let (priority, handle) = (CLSACT_PRIORITY, CLSACT_HANDLE);
    let ours = SchedClassifierLink::attached(interface, ingress, priority, handle, None)
        .map_err(|_| DatapathError::NoInterface(interface.into()))?;
    let id = match program.attach_to_link(ours) {
        Ok(id) => id,
        Err(_) => {
            // It may be there already; if adding failed for another reason,
            // so does attaching, which says why.
            let _ = qdisc_add_clsact(interface);
            let options = TcAttachOptions::Netlink(NlOptions {
                priority,
                handle,
                classid: None,
            });
            program
                .attach_with_options(interface, ingress, options)
                .map_err(failed)?
        }
    };
    let link = program.take_link(id).map_err(failed)?;
    // The filter is to outlive this process; dropping the link takes it off.
    mem::forget(link);
    Ok(())
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .expect("the object has its programs, each of its type")
}

fn index_of(interface: &str) -> Result<u32, DatapathError> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|_| DatapathError::NoInterface(interface.into()))
}

pub(super) fn pinned(pin: &Path) -> Result<Option<FdLink>, DatapathError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(unpinnable(pin, &error)),
    }
}

/// Closes what the process holds of a pinned link.
fn close<L>(
    link: Result<L, ProgramError>,
    name: &'static str,
    interface: &str,
) -> Result<(), DatapathError> {
    link.map(drop)
        .map_err(|source| refused(name, interface, source))
}

fn pin_link(
    link: impl TryInto<FdLink>,
    name: &'static str,
    interface: &str,
    pin: &Path,
) -> Result<(), DatapathError> {
    let link: FdLink = link.try_into().map_err(|_| DatapathError::NoLink {
        name,
        interface: interface.into(),
    })?;
    link.pin(pin).map(drop).map_err(|error| DatapathError::Pin {
        path: pin.into(),
        message: error.to_string(),
    })
}

fn unpinnable(pin: &Path, error: &LinkError) -> DatapathError {
    DatapathError::Pin {
        path: pin.into(),
        message: error.to_string(),
    }
}

fn unpin(pin: &Path) -> Result<(), DatapathError> {
    fs::remove_file(pin).map_err(|error| DatapathError::Pin {
        path: pin.into(),
        message: error.to_string(),
    })
}

fn refused(name: &'static str, interface: &str, source: ProgramError) -> DatapathError {
    DatapathError::Attach {
        name,
        interface: interface.into(),
        source: Box::new(source),
    }
}

fn is(error: &ProgramError, errno: i32) -> bool {
    let io = match error {
        ProgramError::SyscallError(error) => &error.io_error,
        ProgramError::TcError(TcError::IoError(error)) => error,
        ProgramError::IOError(error) => error,
        _ => return false,
    };
    io.raw_os_error() == Some(errno)
}
