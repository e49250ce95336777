//! Listening for HTTP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Length of the queue of connections to accept.
const BACKLOG: u32 = 1024;

/// Listens. `[::]` means all addresses of the node, of both IP versions whatever
/// `net.ipv6.bindv6only` is, and IPv4 only if the kernel has no IPv6.
///
/// # Errors
///
/// If the address is not the node's, or the port is in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !(address.is_ipv6() && address.ip().is_unspecified()) {
        return bound(new(address)?, address);
    }
    match new(address) {
        Ok(socket) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            bound(socket, address)
        }
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            bound(new(address)?, address)
        }
        Err(error) => Err(error),
    }
}

fn new(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()
    } else {
        TcpSocket::new_v4()
    };
    let socket = socket?;
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

fn bound(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
