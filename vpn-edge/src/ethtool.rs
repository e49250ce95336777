//! Driver settings of links, by ethtool.

use std::io;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/ethtool.h
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);

/// Whether the interface, in the namespace of the calling thread, has GRO enabled.
/// With it, a veth's end receives frames that XDP redirects to it, as if it had an
/// XDP program.
///
/// # Errors
///
/// If there is no such interface.
pub fn merges(interface: &str) -> io::Result<bool> {
    ask(interface, GET_GRO, 0).map(|value| value != 0)
}

/// Enables GRO on the interface.
///
/// # Errors
///
/// If there is no such interface, or the caller lacks the privileges.
pub fn merge(interface: &str) -> io::Result<()> {
    ask(interface, SET_GRO, 1).map(|_| ())
}

fn ask(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: the request and the value that it points to outlive the call.
    unsafe { ethtool(std::os::fd::AsRawFd::as_raw_fd(&socket), &raw mut request) }?;
    Ok(value.data)
}
