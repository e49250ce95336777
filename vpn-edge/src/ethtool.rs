//! What a link's driver is told by `ethtool`.

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

/// Whether the interface, in the namespace of the calling thread, merges what
/// it receives. The end of a veth that does so takes in frames that XDP
/// redirects to it, as one with an XDP program of its own.
///
/// # Errors
///
/// When there is no such interface.
pub fn merges(interface: &str) -> io::Result<bool> {
    ask(interface, GET_GRO, 0).map(|value| value != 0)
}

/// Has the interface merge what it receives.
///
/// # Errors
///
/// When there is no such interface, or it takes more than the caller may.
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
