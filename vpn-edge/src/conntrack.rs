//! Removal of conntrack entries of ports that the edge takes over.
//!
//! An entry that was created while the port was still the kernel's, for example by a
//! NodePort Service, would continue to translate its packets. Only the needed part of
//! ctnetlink is implemented: entries are matched, and the attributes that identify
//! one are sent back unchanged.

use std::collections::BTreeSet;
use std::{fs, io};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use rtnetlink::proto;
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_CTNETLINK`, in the upper half of a message's type.
const CTNETLINK: u16 = 1 << 8;
const NEW: u16 = CTNETLINK;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;

/// `struct nfgenmsg`: family, version, resource.
const FAMILY_HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// Within a tuple.
const CTA_TUPLE_PROTO: u16 = 2;
/// Within that.
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Flag of attributes that contain others.
const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// The number of entries in the network namespace of the calling thread. A kernel
/// without connection tracking does not have this file; a ctnetlink request instead
/// could load the module.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Deletes the UDP entries, IPv4 and IPv6, to or from one of `ports`, in the network
/// namespace of the calling thread. Returns how many there were.
///
/// # Errors
///
/// If the kernel refuses. A kernel without connection tracking is no error.
pub async fn flush(ports: &BTreeSet<u16>) -> Result<usize> {
    if ports.is_empty() || !tracks().context("cannot read whether connections are tracked")? {
        return Ok(0);
    }
    let (connection, handle, _) = proto::new_connection::<Message>(NETLINK_NETFILTER)
        .context("cannot ask for tracked connections")?;
    tokio::spawn(connection);
    let kernel = SocketAddr::new(0, 0);

    // No family: both.
    let mut dump = NetlinkMessage::from(Message {
        kind: GET,
        payload: vec![0; FAMILY_HEADER],
    });
    dump.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut entries = handle.request(dump, kernel)?;
    let mut names = Vec::new();
    while let Some(message) = entries.next().await {
        match message.payload {
            NetlinkPayload::InnerMessage(entry) if entry.kind == NEW => {
                names.extend(name(&entry.payload, ports));
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(error.to_io()).context("cannot list tracked connections");
            }
            _ => {}
        }
    }

    let mut deleted = 0;
    for payload in names {
        let mut delete = NetlinkMessage::from(Message {
            kind: DELETE,
            payload,
        });
        delete.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut answers = handle.request(delete, kernel)?;
        let mut gone = true;
        while let Some(message) = answers.next().await {
            let NetlinkPayload::Error(error) = message.payload else {
                continue;
            };
            match error.raw_code() {
                0 => {}
                // It expired meanwhile.
                code if code == -libc::ENOENT => gone = false,
                _ => return Err(error.to_io()).context("cannot delete a tracked connection"),
            }
        }
        deleted += usize::from(gone);
    }
    Ok(deleted)
}

/// Whether there are entries at all. Not through tokio: on another thread the file
/// could be of another namespace.
fn tracks() -> io::Result<bool> {
    match fs::read_to_string(COUNT) {
        Ok(count) => Ok(count.trim() != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The attributes that identify the entry to the kernel, if it is UDP to or from one
/// of `ports`.
fn name(entry: &[u8], ports: &BTreeSet<u16>) -> Option<Vec<u8>> {
    let (header, attributes) = entry.split_at_checked(FAMILY_HEADER)?;
    let [original, reply] = [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].map(|kind| find(attributes, kind));
    let concerned = |tuple, end| udp_port(tuple, end).is_some_and(|port| ports.contains(&port));
    let original = original?;
    if !concerned(original, CTA_PROTO_DST_PORT) && !concerned(reply?, CTA_PROTO_SRC_PORT) {
        return None;
    }
    let mut name = vec![header[0], 0, 0, 0];
    for kind in [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID] {
        let Some(value) = find(attributes, kind) else {
            continue;
        };
        let nested = if kind == CTA_TUPLE_ORIG { NESTED } else { 0 };
        let attribute = DefaultNla::new(kind | nested, value.to_vec());
        let start = name.len();
        name.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut name[start..]);
    }
    Some(name)
}

/// The port at one end of a tuple, if the tuple is UDP.
fn udp_port(tuple: &[u8], end: u16) -> Option<u16> {
    let protocol = find(tuple, CTA_TUPLE_PROTO)?;
    let number = *find(protocol, CTA_PROTO_NUM)?.first()?;
    let port = find(protocol, end)?.first_chunk()?;
    (i32::from(number) == libc::IPPROTO_UDP).then(|| u16::from_be_bytes(*port))
}

/// The value of the first attribute of a kind.
fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let found = all.find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(4..length)
}

/// A message: its type, and its payload after the netlink header.
#[derive(Debug)]
struct Message {
    kind: u16,
    payload: Vec<u8>,
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: header.message_type,
            payload: payload.to_vec(),
        })
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    fn tuple(kind: u16, protocol: u8, source: u16, destination: u16) -> Vec<u8> {
        let ends = [
            attribute(CTA_PROTO_NUM, &[protocol]),
            attribute(CTA_PROTO_SRC_PORT, &source.to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &destination.to_be_bytes()),
        ];
        let protocol = attribute(CTA_TUPLE_PROTO | NESTED, &ends.concat());
        let addresses = attribute(1 | NESTED, &attribute(1, &[192, 0, 2, 1]));
        attribute(kind | NESTED, &[addresses, protocol].concat())
    }

    fn entry(protocol: u8, destination: u16, answered_from: u16) -> Vec<u8> {
        [
            vec![2, 0, 0, 0],
            tuple(CTA_TUPLE_ORIG, protocol, 50_000, destination),
            tuple(CTA_TUPLE_REPLY, protocol, answered_from, 50_000),
            attribute(3, &[0; 4]),
            attribute(CTA_ID, &[1, 2, 3, 4]),
            attribute(CTA_ZONE, &[0, 7]),
        ]
        .concat()
    }

    #[test]
    fn an_entry_is_named_by_what_it_was_listed_with() {
        let ports = BTreeSet::from([31_000]);
        let named = name(&entry(17, 31_000, 51_820), &ports).unwrap();
        let expected = [
            vec![2, 0, 0, 0],
            tuple(CTA_TUPLE_ORIG, 17, 50_000, 31_000),
            attribute(CTA_ZONE, &[0, 7]),
            attribute(CTA_ID, &[1, 2, 3, 4]),
        ];
        assert_eq!(named, expected.concat());
        assert!(name(&entry(17, 53, 31_000), &ports).is_some());
    }

    #[test]
    fn entries_of_other_ports_and_protocols_are_not_named() {
        let ports = BTreeSet::from([31_000]);
        assert_eq!(name(&entry(17, 31_001, 51_820), &ports), None);
        assert_eq!(name(&entry(6, 31_000, 31_000), &ports), None);
        // The client's own port.
        assert_eq!(name(&entry(17, 53, 53), &BTreeSet::from([50_000])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_read_that_are_not_there(
            cut in 0usize..200,
            changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
        ) {
            let mut bytes = entry(17, 31_000, 31_000);
            for (at, byte) in changes {
                if let Some(changed) = bytes.get_mut(at) {
                    *changed = byte;
                }
            }
            bytes.truncate(cut);
            let _ = name(&bytes, &BTreeSet::from([31_000]));
        }
    }
}
