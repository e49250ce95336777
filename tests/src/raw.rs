//! Packets sent and seen past the sockets of a node.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrIn, recvmsg, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal};

use crate::node::Node;

/// Sends UDP packets from any address. In the namespace of the thread that
/// makes it.
pub struct Raw(OwnedFd);

impl Raw {
    /// # Errors
    ///
    /// When this process may not.
    pub fn open() -> Result<Self> {
        // This protocol takes packets with their IP header.
        let fd = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Raw,
        )?;
        Ok(Self(fd))
    }

    /// Sends one packet, with whole checksums.
    ///
    /// # Errors
    ///
    /// When there is no way to the destination.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<()> {
        let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            .udp(from.port(), to.port());
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload)?;
        let to = SockaddrIn::from(to);
        sendto(self.0.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Tells `from` that a packet of its to `to` was larger than `mtu`, as a
    /// router on the way would.
    ///
    /// # Errors
    ///
    /// When there is no way to `from`.
    pub fn too_big(&self, from: SocketAddrV4, to: SocketAddrV4, mtu: u16) -> Result<()> {
        let sent = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            .udp(from.port(), to.port());
        let payload = [0; 1472];
        let mut quoted = Vec::with_capacity(sent.size(payload.len()));
        sent.write(&mut quoted, &payload)?;
        // The IP header, and as much as says which packet it was.
        quoted.truncate(28);
        let problem = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let builder = PacketBuilder::ipv4(to.ip().octets(), from.ip().octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(problem));
        let mut packet = Vec::with_capacity(builder.size(quoted.len()));
        builder.write(&mut packet, &quoted)?;
        let to = SockaddrIn::from(from);
        sendto(self.0.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

/// A UDP packet that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the kernel took it in.
    pub time: SystemTime,
    pub from: SocketAddrV4,
    pub payload: Vec<u8>,
}

impl Seen {
    /// The second word of a WireGuard message: of transport data, the index of
    /// its session.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        let word = self.payload.get(4..8)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    }

    /// The WireGuard message's type.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }
}

/// Sees all UDP packets that come in for one port, until it is dropped.
pub struct Tap {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Tap {
    /// Listens on every interface of the node, or of the namespace that is
    /// mounted in it at `namespace`.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or no such socket be had.
    pub fn new(node: &Node, namespace: Option<&Path>, port: u16) -> Result<Self> {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let namespace = namespace.map(Path::to_owned);
        let (listening, ready) = std::sync::mpsc::channel();
        let thread = node.inside({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                if let Some(path) = namespace {
                    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
                }
                let fd = open()?;
                listening.send(())?;
                while !stop.load(Relaxed) {
                    let packet = receive(&fd, port)?;
                    seen.lock().expect("no panic under it").extend(packet);
                }
                Ok(())
            }
        });
        let tap = Self {
            seen,
            stop,
            thread: Some(thread),
        };
        match ready.recv() {
            Ok(()) => Ok(tap),
            Err(_) => {
                let mut tap = tap;
                let thread = tap.thread.take().expect("it was started");
                thread.join().expect("the thread does not panic")?;
                anyhow::bail!("the tap ended")
            }
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().expect("no panic under it")
    }

    /// Waits for a packet that `is` one looked for.
    ///
    /// # Errors
    ///
    /// When none comes for a while.
    pub fn wait_for(&self, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        for _ in 0..1000 {
            if let Some(seen) = self.seen().iter().rev().find(|seen| is(seen)) {
                return Ok(seen.clone());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        anyhow::bail!("no such packet among {} came", self.seen().len())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket that gets every packet from its network header on.
fn open() -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::empty(),
        SockProtocol::EthAll,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20))?;
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    Ok(fd)
}

fn receive(fd: &OwnedFd, port: u16) -> Result<Option<Seen>> {
    const OUTGOING: u8 = 4;
    let mut buffer = [0; 2048];
    let mut control = cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let none = MsgFlags::empty();
    let message = match recvmsg::<LinkAddr>(fd.as_raw_fd(), &mut parts, Some(&mut control), none) {
        Ok(message) => message,
        // Links come and go under it.
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if message
        .address
        .is_some_and(|link| link.pkttype() == OUTGOING)
    {
        return Ok(None);
    }
    let time = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(time),
        _ => None,
    });
    let (time, length) = (Duration::from(time.context("no time")?), message.bytes);
    Ok(udp(&buffer[..length], port).map(|(from, payload)| Seen {
        time: SystemTime::UNIX_EPOCH + time,
        from,
        payload,
    }))
}

fn udp(packet: &[u8], port: u16) -> Option<(SocketAddrV4, Vec<u8>)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport)
    else {
        return None;
    };
    (udp.destination_port() == port).then(|| {
        let from = SocketAddrV4::new(ip.header().source_addr(), udp.source_port());
        (from, udp.payload().to_vec())
    })
}
