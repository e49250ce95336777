//! All that can be measured.

use vpn_edge_common::FLOWS as FLOWS_A_TENANT;

use crate::messages::{self, Flood, Traffic};
use crate::renewed::{self, Scene};

/// One thing to measure, and what it is compared with.
pub struct Subject {
    pub name: String,
    /// The baseline's name; its own for a baseline.
    pub baseline: String,
    pub kind: Kind,
}

type Packet = fn() -> Vec<u8>;

#[derive(Clone, Copy)]
pub enum Kind {
    /// A program of the product or of the benchmarks, over one packet.
    Program(&'static str, Packet),
    /// The product's program over packets that are made anew for each run, or
    /// the empty program.
    Renewed(Scene),
    /// Frames all the way from the client's end to the gateway's.
    Path(Way, Cell),
}

/// Who brings the frames from the uplink to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The least that a program can do: new MAC addresses, and a redirect.
    Redirect,
    /// vpn-edge.
    Steered,
    /// vpn-edge, to gateways on another node. What the kernel's ways do is the
    /// same for them, so they are not measured twice.
    Hairpin,
    /// The kernel, which forwards to the gateways' own addresses, without rules.
    Routing,
    /// The kernel, with kube-proxy's rules for nftables.
    Nftables,
    /// The kernel, with kube-proxy's rules for iptables.
    Iptables,
}

impl Way {
    /// To a gateway: the first is what the others are compared with.
    pub const ALL: [Self; 5] = [
        Self::Redirect,
        Self::Steered,
        Self::Routing,
        Self::Nftables,
        Self::Iptables,
    ];

    /// To a gateway on another node: the kernel's ways do so anyway, as they
    /// masquerade.
    pub const ELSEWHERE: [Self; 5] = [
        Self::Redirect,
        Self::Hairpin,
        Self::Routing,
        Self::Nftables,
        Self::Iptables,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Steered => "steered",
            Self::Hairpin => "hairpin",
            Self::Routing => "routing",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// Whether frames go through the kernel's stack.
    pub fn is_kernel(self) -> bool {
        !matches!(self, Self::Redirect | Self::Steered | Self::Hairpin)
    }

    /// Whether the kernel remembers flows.
    pub fn tracks(self) -> bool {
        matches!(self, Self::Nftables | Self::Iptables)
    }
}

/// The traffic of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Number of tenants' ports that are set up, and that traffic spreads over.
    pub ports: u16,
    pub traffic: Traffic,
}

pub const PORTS: [u16; 4] = [1, 100, 1_000, 2_700];
pub const MOST_PORTS: u16 = 2_700;
/// Flows of the figures at every number of ports, and at the largest only:
/// kube-proxy's masquerading has but 64,512 source ports for one gateway.
pub const FLOWS: [u32; 2] = [1, 256];
pub const MOST_FLOWS: u32 = 65_536;

impl Cell {
    /// In the order of the table.
    pub fn all() -> Vec<Self> {
        let known = PORTS.map(|ports| FLOWS.map(|flows| (ports, Traffic::Flows(flows))));
        let first = PORTS.map(|ports| (ports, Traffic::FirstPackets));
        known
            .into_iter()
            .flatten()
            .chain([(MOST_PORTS, Traffic::Flows(MOST_FLOWS))])
            .chain(first)
            .chain(Flood::ALL.map(|flood| (MOST_PORTS, Traffic::Flood(flood))))
            .map(|(ports, traffic)| Self { ports, traffic })
            .collect()
    }

    /// Those of gateways on another node. A tenant has [`FLOWS_A_TENANT`] flows
    /// on a node: of 256 to one port, most have to be made anew for every
    /// packet; spread over more ports, as 65,536 are, each has its own.
    fn elsewhere() -> [Self; 5] {
        [
            (1, 1),
            (1, 256),
            (100, 256),
            (MOST_PORTS, 256),
            (MOST_PORTS, MOST_FLOWS),
        ]
        .map(|(ports, flows)| Self {
            ports,
            traffic: Traffic::Flows(flows),
        })
    }

    /// Whether every flow can be known to the node at once.
    pub fn fits(self) -> bool {
        match self.traffic {
            // Half of them, as they are not spread evenly.
            Traffic::Flows(flows) => flows / u32::from(self.ports) <= FLOWS_A_TENANT as u32 / 2,
            _ => false,
        }
    }

    pub fn name(self) -> String {
        let ports = match self.ports {
            1 => "1-port".to_owned(),
            ports => format!("{ports}-ports"),
        };
        match self.traffic {
            Traffic::Flows(1) => format!("{ports}/1-flow"),
            Traffic::Flows(flows) => format!("{ports}/{flows}-flows"),
            Traffic::FirstPackets => format!("{ports}/first-packets"),
            Traffic::Flood(flood) => format!("{ports}/flood-of-{}", flood.name()),
        }
    }
}

pub fn path_name(way: Way, cell: Cell) -> String {
    format!("path/{}/{}", way.name(), cell.name())
}

const EMPTY: &str = "empty";
/// Names, programs and packets.
const PROGRAMS: [(&str, &str, Packet); 9] = [
    (EMPTY, "empty", messages::data),
    ("redirect", "redirect", messages::data),
    ("data", "ingress", messages::data),
    ("data-of-no-session", "ingress", messages::unknown_session),
    ("initiation", "ingress", messages::initiation),
    ("forged-initiation", "ingress", messages::forged_initiation),
    ("malformed", "ingress", messages::malformed),
    ("unknown-port", "ingress", messages::unknown_port),
    ("tcp", "ingress", messages::tcp),
];

/// Every subject; a baseline stands before what is compared with it.
pub fn all() -> Vec<Subject> {
    let programs = PROGRAMS.map(|(name, program, packet)| Subject {
        name: format!("program/{name}"),
        baseline: format!("program/{EMPTY}"),
        kind: Kind::Program(program, packet),
    });
    let paths = Cell::all().into_iter().flat_map(|cell| {
        // The kernel's ways tell no flood from another.
        let one_is_enough = move |way: &Way| {
            !way.is_kernel()
                || matches!(cell.traffic, Traffic::Flows(_) | Traffic::FirstPackets)
                || cell.traffic == Traffic::Flood(Flood::Malformed)
        };
        Way::ALL
            .into_iter()
            .filter(one_is_enough)
            .map(move |way| Subject {
                name: path_name(way, cell),
                baseline: path_name(Way::Redirect, cell),
                kind: Kind::Path(way, cell),
            })
    });
    let elsewhere = Cell::elsewhere().map(|cell| Subject {
        name: path_name(Way::Hairpin, cell),
        baseline: path_name(Way::Redirect, cell),
        kind: Kind::Path(Way::Hairpin, cell),
    });
    let renewed = renewed::SCENES.map(|(name, scene)| Subject {
        name: format!("program/{name}"),
        baseline: format!("program/{}", renewed::BASE),
        kind: Kind::Renewed(scene),
    });
    programs
        .into_iter()
        .chain(renewed)
        .chain(paths)
        .chain(elsewhere)
        .collect()
}
