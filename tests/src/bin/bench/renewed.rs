//! Programs over packets that are made anew for each run.
//!
//! What leaves for another node is no packet that came from a client: it could
//! not be had once more. Nor could other clients' packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRunOptions, Xdp};
use aya::{Pod, TestRun};
use vpn_edge::datapath::{Change, EdgeNode, SlotState};
use vpn_edge_common::bench::{FRAMES, Headers, gateway};
use vpn_edge_common::program;

use crate::messages::{CLIENT, FIRST_PORT, NODE, NODE6, data_between};
use crate::rig::{HOP_PORTS, RUNS, Rig, context, program_of};
use crate::world::{self, World};

/// What goes on, and over how many flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    act: Act,
    ipv6: bool,
    flows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Nothing but making packets anew.
    Empty,
    /// Data to gateways here.
    Data,
    /// The same where the node has several addresses.
    Several,
    /// Data to gateways on another node.
    Hairpin,
    /// Data from them.
    Reply,
}

pub const BASE: &str = "renewed";

pub const SCENES: [(&str, Scene); 9] = [
    (BASE, scene(Act::Empty, false, 256)),
    ("data/256-flows", scene(Act::Data, false, 256)),
    ("data/several-addresses", scene(Act::Several, false, 256)),
    ("data/ipv6", scene(Act::Data, true, 256)),
    ("hairpin/1-flow", scene(Act::Hairpin, false, 1)),
    ("hairpin/256-flows", scene(Act::Hairpin, false, 256)),
    ("hairpin/ipv6", scene(Act::Hairpin, true, 256)),
    ("hairpin-reply/256-flows", scene(Act::Reply, false, 256)),
    ("hairpin-reply/ipv6", scene(Act::Reply, true, 256)),
];

const fn scene(act: Act, ipv6: bool, flows: u32) -> Scene {
    Scene { act, ipv6, flows }
}

/// Tenants that flows spread over: 16 each, which all find their places.
const PORTS: u16 = 16;
const REDIRECT: u32 = 4;

impl Rig {
    pub fn renewed(&mut self, scene: Scene) -> Result<f64> {
        self.enter_dual()?;
        self.allocate(PORTS, |port| gateway(port).to_be_bytes())?;
        self.give_ipv6(scene.act == Act::Several)?;
        if matches!(scene.act, Act::Hairpin | Act::Reply) {
            self.move_elsewhere(PORTS)?;
        }
        let mut packets: Vec<Vec<u8>> = (0..FRAMES).map(|n| scene.packet(n)).collect();
        if scene.act != Act::Empty {
            for packet in &mut packets {
                let sent = self.steered(packet, "uplink")?;
                if scene.act == Act::Reply {
                    *packet = scene.reply(&sent)?;
                    self.steered(packet, "host")?;
                }
            }
        }
        let next = match scene.act {
            Act::Empty => "empty_next",
            _ => program::INGRESS,
        };
        let fd = program_of(&mut self.datapath, &mut self.ebpf, next)?
            .fd()?
            .try_clone()?;
        let map = self.ebpf.map_mut("NEXT").context("no map")?;
        ProgramArray::try_from(map)?.set(0, &fd, 0)?;
        for (number, packet) in (0..).zip(&packets) {
            let headers = packet.first_chunk().context("a long packet")?;
            self.set("RENEWED", number, Headers::of(headers))?;
        }
        let from = match scene.act {
            Act::Reply => "host",
            _ => "uplink",
        };
        let ingress = context(&packets[0], world::index(from)?);
        let renew = program_of(&mut self.datapath, &mut self.ebpf, "renew")?;
        self.clock.cost(RUNS, || {
            renew.test_run(TestRunOptions {
                data_in: Some(&packets[0]),
                ctx_in: Some(&ingress),
                repeat: RUNS,
                ..TestRunOptions::default()
            })?;
            Ok(())
        })
    }

    /// What the product's program sends on for `packet`, which comes in by `from`.
    fn steered(&mut self, packet: &[u8], from: &str) -> Result<Vec<u8>> {
        let ingress = context(packet, world::index(from)?);
        let mut out = vec![0; packet.len()];
        let steer: &Xdp = program_of(&mut self.datapath, &mut self.ebpf, program::INGRESS)?;
        let answer = steer.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&ingress),
            ..TestRunOptions::default()
        })?;
        ensure!(
            answer.return_value == REDIRECT,
            "verdict {} instead of a redirect: {:?}",
            answer.return_value,
            self.datapath.maps.counters(0)?
        );
        Ok(out)
    }

    fn enter_dual(&mut self) -> Result<()> {
        if let Some(world) = &self.dual {
            return world.enter();
        }
        let world = World::dual()?;
        // Without a program, a veth has no queue to seem to come in by.
        for end in ["source", "uplink", "pod", "host"] {
            let program = program_of(&mut self.datapath, &mut self.ebpf, "empty")?;
            program.attach(end, XdpMode::Driver)?;
        }
        self.dual = Some(world);
        Ok(())
    }

    /// Adds IPv6 addresses to those of node and gateways, and `several` of
    /// IPv4.
    fn give_ipv6(&mut self, several: bool) -> Result<()> {
        let uplink = world::index("uplink")?;
        let mut own: Vec<(IpAddr, u32)> = vec![(NODE.into(), uplink), (NODE6.into(), uplink)];
        if several {
            own.push((Ipv4Addr::new(198, 51, 100, 3).into(), uplink));
        }
        self.datapath.set_edge(&EdgeNode {
            own,
            xdp_uplinks: Some(vec![uplink, world::index("host")?]),
            hop_ports: HOP_PORTS,
        })?;
        let changes: Vec<Change> = (FIRST_PORT..FIRST_PORT + PORTS)
            .filter_map(|port| Some((port, self.datapath.maps.allocation(port)?)))
            .map(|(port, mut allocation)| {
                allocation.gateway6 = gateway6(port).octets();
                Change {
                    port,
                    allocation,
                    memory: SlotState::Keep,
                    grace: false,
                }
            })
            .collect();
        Ok(self.datapath.maps.publish(&changes)?)
    }

    fn set(&mut self, map: &str, key: u32, value: impl Pod) -> Result<()> {
        let map = self.ebpf.map_mut(map).context("no map")?;
        Ok(Array::try_from(map)?.set(key, value, 0)?)
    }
}

impl Scene {
    /// A client's packet of the `number`th frame.
    fn packet(self, number: u32) -> Vec<u8> {
        let flow = number % self.flows;
        let port = FIRST_PORT + (flow % u32::from(PORTS)) as u16;
        let (client, node): (IpAddr, IpAddr) = if self.ipv6 {
            let client = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, flow as u16);
            (client.into(), NODE6.into())
        } else {
            let client = Ipv4Addr::from(u32::from_be_bytes(CLIENT) + flow);
            (client.into(), NODE.into())
        };
        data_between((client, 40_000), (node, port))
    }

    /// The gateway's answer to a packet that was `sent` to it.
    fn reply(self, sent: &[u8]) -> Result<Vec<u8>> {
        let udp = if self.ipv6 { 54 } else { 34 };
        let ports = sent.get(udp..udp + 4).context("cut off")?;
        let from = u16::from_be_bytes([ports[0], ports[1]]);
        let port = u16::from_be_bytes([ports[2], ports[3]]);
        let (gateway, node): (IpAddr, IpAddr) = if self.ipv6 {
            (gateway6(port).into(), NODE6.into())
        } else {
            (Ipv4Addr::from(gateway(port)).into(), NODE.into())
        };
        Ok(data_between((gateway, port), (node, from)))
    }
}

/// The IPv6 address of the gateway behind `port`.
fn gateway6(port: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, port)
}
