//! The kernel side: programs loaded, attached and pinned, and typed maps.
//!
//! The only module that knows aya. Everything lives in bpffs under
//! `<root>/v<schema>/`, so traffic goes on while no process runs, and a new
//! process takes over programs and maps as they are.

mod attach;
mod log;
mod mapped;
mod maps;
mod programs;
mod running;
pub mod survey;

pub use attach::{AttachPoint, Hook, remove};
pub use log::{LogLevel, Records, TARGET as LOG_TARGET};
pub use maps::{
    Change, ClientFlow, Events, MapError, Maps, Reader, SessionTimes, SlotState, ip, monotonic,
    tick_length,
};
pub use programs::{ProgramFacts, ProgramRuns, Programs};
pub use running::{Answer, Ran, Running};

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use vpn_edge_common::{Edge, OWN_ADDRESSES, Own, SCHEMA, UPLINKS, map, program};

/// Where bpffs is mounted, and the folder in it.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/vpn-edge";

/// Source of the frames that the edge redirects into a gateway's link. Frames
/// that the node's kernel routes have another, so the gateway can tell what
/// came past the guard.
pub const EDGE_MAC: [u8; 6] = [2, 2, 0, 0, 0, 0];

/// The eBPF object that this binary was built with.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("VPN_EDGE_EBPF"));

/// The one program of a gateway's own end.
static PASS_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PASS_EBPF"));

/// Why the datapath is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("{path} is no bpffs: mount one with `mount -t bpf bpf /sys/fs/bpf`")]
    NoBpffs { path: PathBuf },
    #[error("cannot prepare {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot load the eBPF programs: {0}")]
    Load(#[from] EbpfError),
    #[error("the kernel refused program `{name}`: {source}")]
    Refused {
        name: &'static str,
        source: Box<ProgramError>,
    },
    #[error("no interface `{0}`: name one of `ip link` with --uplink")]
    NoInterface(String),
    #[error(
        "interface `{0}` has another XDP program: detach it (`ip link set dev {0} xdp off`, \
         or stop the program that owns it), or name another uplink"
    )]
    Occupied(String),
    #[error(
        "the kernel attached `{name}` to `{interface}` without a link, which cannot be pinned: Linux 5.15 or newer is needed"
    )]
    NoLink {
        name: &'static str,
        interface: String,
    },
    #[error("cannot attach `{name}` to `{interface}`: {source}")]
    Attach {
        name: &'static str,
        interface: String,
        source: Box<ProgramError>,
    },
    #[error("cannot pin at {path}: {message}")]
    Pin { path: PathBuf, message: String },
    #[error("the kernel tells nothing of a pinned link: {0}")]
    Link(Box<LinkError>),
    #[error("cannot run program {id}: {source}")]
    Running { id: u32, source: Box<ProgramError> },
    #[error("the kernel does not tell about the eBPF programs: {0}")]
    Programs(ProgramError),
    #[error("cannot read the programs' log records: {0}")]
    Log(io::Error),
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Programs and maps of this binary, in the kernel and pinned.
pub struct Datapath {
    ebpf: Ebpf,
    /// Which of the XDP programs the kernel took.
    xdp: &'static str,
    folder: PathBuf,
    /// Where builds with another schema pinned.
    others: Vec<PathBuf>,
    upgrading: bool,
    /// Whether tc programs are clsact filters, as before Linux 6.6.
    clsact: bool,
    /// The uplinks for which filters on other interfaces were taken off.
    uplinks: Option<BTreeSet<AttachPoint>>,
    log: LogLevel,
    pub maps: Maps,
}

/// A node, as its programs are to see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeNode {
    /// Addresses that clients send to, each with the index of the interface
    /// that replies from it leave by. Replies leave from the first of their IP
    /// version, unless their flow is known to have come to another. Those
    /// beyond [`vpn_edge_common::OWN_ADDRESSES`] are left out.
    pub own: Vec<(IpAddr, u32)>,
    /// Interfaces that XDP may send out of; none to leave them as they are.
    pub xdp_uplinks: Option<Vec<u32>>,
    /// The first of [`vpn_edge_common::FLOWS`] ports that packets to other
    /// nodes leave from; zero if they are not sent on.
    pub hop_ports: u16,
}

/// Puts addresses in their places: the first of each IP version at the front,
/// the others where they were, as flows name them by place.
fn places(known: &[Own; OWN_ADDRESSES], wanted: &[(IpAddr, u32)]) -> [Own; OWN_ADDRESSES] {
    let mut places = [Own::default(); OWN_ADDRESSES];
    let mut others = Vec::new();
    for &(ip, uplink) in wanted {
        let own = Own {
            address: maps::to_address(ip),
            uplink,
            pad: 0,
        };
        let first = &mut places[usize::from(ip.is_ipv6())];
        if *first == Own::default() {
            *first = own;
        } else {
            others.push(own);
        }
    }
    let stays = |own: &Own| (2..OWN_ADDRESSES).find(|&at| known[at].address == own.address);
    others.retain(|own| match stays(own) {
        Some(at) => {
            places[at] = *own;
            false
        }
        None => true,
    });
    let free = (2..OWN_ADDRESSES).filter(|&at| places[at] == Own::default());
    let free: Vec<usize> = free.collect();
    for (at, own) in free.into_iter().zip(others) {
        places[at] = own;
    }
    places
}

/// The folder for this binary's schema under `root`.
#[must_use]
pub fn folder(root: &Path) -> PathBuf {
    root.join(format!("v{SCHEMA}"))
}

impl Datapath {
    /// Loads the programs. Maps that are pinned under `root` already are taken
    /// over with what they hold, others are made and pinned.
    ///
    /// # Errors
    ///
    /// When `root` is not on a bpffs, or the kernel refuses a program.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        Self::open_logging(root, LogLevel::Off)
    }

    /// [`Datapath::open`], with programs that log at the level.
    ///
    /// # Errors
    ///
    /// As [`Datapath::open`].
    pub fn open_logging(root: &Path, log: LogLevel) -> Result<Self, DatapathError> {
        let folder = folder(root);
        let others = attach::others(root);
        let upgrading = !others.is_empty() && !folder.join("maps").join(map::ALLOCATIONS).exists();
        for path in [folder.join("maps"), folder.join("links")] {
            fs::create_dir_all(&path).map_err(|source| match source.kind() {
                // sysfs has no room for folders of ours.
                io::ErrorKind::PermissionDenied => DatapathError::NoBpffs { path: root.into() },
                _ => DatapathError::Folder {
                    path: path.clone(),
                    source,
                },
            })?;
            if !on_bpffs(&path) {
                return Err(DatapathError::NoBpffs { path: root.into() });
            }
        }
        let level = log.number();
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(folder.join("maps"));
        LogLevel::set(&level, &mut loader);
        let mut ebpf = loader.load(OBJECT)?;
        let xdp = load_xdp(&mut ebpf, program::INGRESS_FRAGS, program::INGRESS)?;
        load::<aya::programs::SchedClassifier>(&mut ebpf, program::INGRESS_TC)?;
        load::<aya::programs::SchedClassifier>(&mut ebpf, program::EGRESS)?;
        let maps = Maps::open(&folder.join("maps"))?;
        Ok(Self {
            ebpf,
            xdp,
            folder,
            others,
            upgrading,
            clsact: false,
            uplinks: None,
            log,
            maps,
        })
    }

    /// Whether programs of another schema serve, with maps of their own, until
    /// these are attached in their place: the maps are to be filled first.
    #[must_use]
    pub fn upgrading(&self) -> bool {
        self.upgrading
    }

    /// Says which node this is.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the map update.
    pub fn set_edge(&mut self, node: &EdgeNode) -> Result<(), DatapathError> {
        let known = self.maps.edge()?;
        let seed = if known.seed == 0 {
            getrandom::u64().map_err(DatapathError::Random)? | 1
        } else {
            known.seed
        };
        let own = places(&known.own, &node.own);
        let mut uplinks = known.uplinks;
        if let Some(wanted) = &node.xdp_uplinks {
            uplinks = [0; UPLINKS];
            for (place, &index) in uplinks.iter_mut().zip(wanted) {
                *place = index;
            }
        }
        let edge = Edge {
            own,
            uplinks,
            seed,
            session_life: maps::session_life(),
            hop_ports: node.hop_ports,
            several: u8::from(own[2..].iter().any(|own| own.uplink != 0)),
            pad: 0,
        };
        if known != edge {
            self.maps.set_edge(edge)?;
        }
        Ok(())
    }

    /// What the programs log, to be asked for once; nothing if they do not.
    ///
    /// # Errors
    ///
    /// When it was asked for before, or the kernel refuses.
    pub fn records(&mut self) -> Result<Option<Records>, DatapathError> {
        if self.log == LogLevel::Off {
            return Ok(None);
        }
        Records::take(&mut self.ebpf)
            .map(Some)
            .map_err(DatapathError::Log)
    }

    /// Name of the XDP program.
    #[must_use]
    pub fn xdp(&self) -> &'static str {
        self.xdp
    }

    /// The eBPF object's programs, for test runs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Loads the XDP program for frames of several `fragments`, if the kernel has
/// them, or else the `plain` one; says which.
fn load_xdp(
    ebpf: &mut Ebpf,
    fragments: &'static str,
    plain: &'static str,
) -> Result<&'static str, DatapathError> {
    match load::<aya::programs::Xdp>(ebpf, fragments) {
        Ok(()) => Ok(fragments),
        Err(error) => {
            tracing::debug!("{error}");
            load::<aya::programs::Xdp>(ebpf, plain)?;
            Ok(plain)
        }
    }
}

/// Program types that load without further words.
trait Loadable: 'static {
    fn load(&mut self) -> Result<(), ProgramError>;
}

impl Loadable for aya::programs::Xdp {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Loadable for aya::programs::SchedClassifier {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

fn load<P: Loadable>(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError>
where
    for<'a> &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let refused = |source| DatapathError::Refused {
        name,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(name).expect("the object has its programs");
    let program: &mut P = program.try_into().map_err(refused)?;
    program.load().map_err(refused)
}

/// Attaches the program that makes a gateway's own end of the veth take in
/// redirected frames, in the namespace of the calling thread.
///
/// The program stays attached for as long as the returned link lives.
///
/// # Errors
///
/// When the kernel refuses it, or another XDP program is there.
pub fn ready_gateway_end(interface: &str) -> Result<Ready, DatapathError> {
    let mut ebpf = Ebpf::load(PASS_OBJECT)?;
    let name = load_xdp(&mut ebpf, program::PASS_FRAGS, program::PASS)?;
    attach::xdp(&mut ebpf, name, interface)?;
    Ok(Ready { _ebpf: ebpf })
}

/// Holds the pass program on a gateway's end.
pub struct Ready {
    _ebpf: Ebpf,
}

fn on_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}
