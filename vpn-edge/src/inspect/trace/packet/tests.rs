use vpn_edge_ebpf::mac1;
use vpn_edge_ebpf::parse::Datagram;

use super::*;

const HEADERS: usize = 14 + 20 + 8;

fn fields(kind: Kind) -> Fields {
    Fields {
        source: "203.0.113.9:51820".parse().unwrap(),
        destination: "198.51.100.2:31001".parse().unwrap(),
        kind,
        index: 0x0102_0304,
        length: None,
        public_key: None,
    }
}

fn with_datagram<T>(frame: &mut [u8], look: impl FnOnce(&Datagram<'_>) -> T) -> T {
    let frame = Frame::of(frame);
    look(&locate(&frame).ok().unwrap().datagram(&frame).unwrap())
}

#[test]
fn fields_make_a_message_of_their_type_with_index_and_length() {
    for (kind, first, length) in [
        (Kind::Initiation, 1, 148),
        (Kind::Response, 2, 92),
        (Kind::Cookie, 3, 64),
        (Kind::Data, 4, 32),
    ] {
        let mut frame = fields(kind).frame().unwrap();
        assert_eq!(frame[HEADERS..HEADERS + 4], [first, 0, 0, 0]);
        with_datagram(&mut frame, |datagram| {
            assert_eq!(datagram.message_length, length);
            let index = match kind {
                Kind::Response => datagram.response_receiver(),
                _ => datagram.index(),
            };
            assert_eq!(index, 0x0102_0304);
        });
        let summary = PacketSummary::of(&mut frame);
        assert_eq!(summary.index, Some(0x0102_0304));
        assert_eq!(summary.source, Some(fields(kind).source));
        assert_eq!(summary.destination, Some(fields(kind).destination));
    }
}

#[test]
fn both_ends_of_a_packet_are_of_one_ip_version() {
    let v6 = Fields {
        source: "[2001:db8:9::9]:51820".parse().unwrap(),
        destination: "[2001:db8::2]:31001".parse().unwrap(),
        ..fields(Kind::Data)
    };
    let mut frame = v6.frame().unwrap();
    assert_eq!(frame.len(), HEADERS + 20 + 32);
    let summary = PacketSummary::of(&mut frame);
    assert_eq!(summary.source, Some(v6.source));
    assert_eq!(summary.destination, Some(v6.destination));
    assert_eq!(summary.index, Some(0x0102_0304));
    let mixed = Fields {
        source: v6.source,
        ..fields(Kind::Data)
    };
    let said = mixed.frame().unwrap_err().to_string();
    assert!(said.contains("different IP versions"), "{said}");
}

#[test]
fn a_length_is_kept_to_even_if_it_is_wrong() {
    for length in [0, 31, 147, 1440] {
        let fields = Fields {
            length: Some(length),
            ..fields(Kind::Initiation)
        };
        assert_eq!(fields.frame().unwrap().len(), HEADERS + usize::from(length));
    }
    let too_long = Fields {
        length: Some(u16::MAX),
        ..fields(Kind::Data)
    };
    let said = too_long.frame().unwrap_err().to_string();
    assert_eq!(said, "no UDP packet carries 65535 bytes");
}

#[test]
fn a_public_key_gives_handshake_messages_a_mac1_that_the_programs_take() {
    let public_key = PublicKey::from_bytes([7; 32]);
    let key = mac1::key(public_key.as_bytes());
    let mut scratch = mac1::Scratch::default();
    for kind in [Kind::Initiation, Kind::Response] {
        for (given, good) in [(Some(public_key), true), (None, false)] {
            let fields = Fields {
                public_key: given,
                ..fields(kind)
            };
            let mut bytes = fields.frame().unwrap();
            let frame = Frame::of(&mut bytes);
            let judged = match kind {
                Kind::Initiation => {
                    mac1::initiation(&frame.view(HEADERS).unwrap(), &key, &mut scratch)
                }
                _ => mac1::response(&frame.view(HEADERS).unwrap(), &key, &mut scratch),
            };
            assert_eq!(judged, good, "{kind:?}");
        }
    }
    for kind in [Kind::Cookie, Kind::Data] {
        let fields = Fields {
            public_key: Some(public_key),
            ..fields(kind)
        };
        let said = fields.frame().unwrap_err().to_string();
        assert!(
            said.contains("only handshake messages carry mac1"),
            "{said}"
        );
    }
}

#[test]
fn hex_may_be_grouped_and_in_either_case() {
    let expected: Vec<u8> = (0xa0..0xaf).collect();
    for text in [
        "a0a1a2a3a4a5a6a7a8a9aaabacadae",
        "A0A1A2A3A4A5A6A7A8A9AAABACADAE\n",
        "a0 a1 a2 a3 a4 a5 a6 a7\na8 a9 aa ab ac ad ae",
        "a0:a1:a2:a3:a4:a5:a6:a7:a8:a9:aa:ab:ac:ad:ae",
    ] {
        assert_eq!(from_hex(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn hex_that_is_no_frame_is_refused_with_what_is_wrong() {
    let said = |text: &str| from_hex(text).unwrap_err().to_string();
    assert!(said("a0 0x12").starts_with("character 5 of the hex is 'x'"));
    assert!(said("a0 a").starts_with("the hex has 3 digits"));
    assert!(said(&"00".repeat(13)).ends_with("and the hex is 13 bytes"));
    assert!(said("").ends_with("and the hex is 0 bytes"));
    assert!(from_hex(&"00".repeat(14)).is_ok());
}

#[test]
fn what_is_no_udp_is_told_by_its_length_alone() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(
        PacketSummary::of(&mut arp).to_string(),
        "no UDP over IP, frame of 60 bytes"
    );
    let mut data = fields(Kind::Data).frame().unwrap();
    assert_eq!(
        PacketSummary::of(&mut data).to_string(),
        "203.0.113.9:51820 to 198.51.100.2:31001, data, session 0x01020304, \
         message of 32 bytes, frame of 74 bytes"
    );
    data.pop();
    assert_eq!(
        PacketSummary::of(&mut data).to_string(),
        "203.0.113.9:51820 to 198.51.100.2:31001, frame of 73 bytes"
    );
}

/// A number in the byte order of a capture.
type Order = fn(u32) -> [u8; 4];

/// Captures without a time. They are written here and read by the crate.
fn pcap(order: Order, magic: u32, link: u32, packets: &[(&[u8], u32)]) -> Vec<u8> {
    let mut file = order(magic).to_vec();
    let version = order(0x0002_0004);
    // Two halves, each in the order of the file.
    let version = match order(1)[0] {
        1 => [version[2], version[3], version[0], version[1]],
        _ => version,
    };
    file.extend(version);
    file.extend([0; 8]);
    file.extend(order(65_535));
    file.extend(order(link));
    for (bytes, length) in packets {
        file.extend([0; 8]);
        file.extend(order(bytes.len() as u32));
        file.extend(order(*length));
        file.extend(*bytes);
    }
    file
}

fn pcapng(link: u32, packets: &[(&[u8], u32)]) -> Vec<u8> {
    let word = u32::to_le_bytes;
    let block = |kind: u32, body: &[u8]| {
        let length = word(12 + body.len() as u32);
        [&word(kind)[..], &length, body, &length].concat()
    };
    let section = [&word(0x1a2b_3c4d)[..], &word(1), &[0xff; 8]].concat();
    let interface = [word(link), word(0)].concat();
    let mut file = block(0x0a0d_0d0a, &section);
    file.extend(block(1, &interface));
    for (bytes, length) in packets {
        let mut body = [0; 12].to_vec();
        body.extend(word(bytes.len() as u32));
        body.extend(word(*length));
        body.extend(*bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        file.extend(block(6, &body));
    }
    file
}

const MICRO: u32 = 0xa1b2_c3d4;
const NANO: u32 = 0xa1b2_3c4d;
const ETHERNET_LINK: u32 = 1;
const LINUX_COOKED: u32 = 113;

#[test]
fn every_kind_of_capture_gives_its_packets() {
    let (first, second) = (
        fields(Kind::Data).frame().unwrap(),
        fields(Kind::Response).frame().unwrap(),
    );
    // One whose length is no multiple of four.
    let odd = [first.as_slice(), &[9]].concat();
    let packets: Vec<(&[u8], u32)> = [&first, &odd, &second]
        .iter()
        .map(|frame| (frame.as_slice(), frame.len() as u32))
        .collect();
    let expected = vec![first.clone(), odd.clone(), second.clone()];
    for (what, file) in [
        (
            "pcap",
            pcap(u32::to_le_bytes, MICRO, ETHERNET_LINK, &packets),
        ),
        (
            "pcap of the other byte order",
            pcap(u32::to_be_bytes, MICRO, ETHERNET_LINK, &packets),
        ),
        (
            "pcap with nanoseconds",
            pcap(u32::to_le_bytes, NANO, ETHERNET_LINK, &packets),
        ),
        ("pcapng", pcapng(ETHERNET_LINK, &packets)),
    ] {
        assert_eq!(frames(&file).unwrap(), expected, "{what}");
    }
}

#[test]
fn a_capture_of_no_use_is_refused_with_what_to_do() {
    let data = fields(Kind::Data).frame().unwrap();
    let all = data.len() as u32;
    let said = |file: &[u8]| frames(file).unwrap_err().to_string();
    let good = pcap(u32::to_le_bytes, MICRO, ETHERNET_LINK, &[(&data, all)]);

    assert!(said(b"").starts_with("neither pcap nor pcapng"));
    assert!(said(b"#!/bin/sh\necho this is a script, not a capture\n").starts_with("neither"));
    assert!(
        said(&good[..24]).contains("no packets"),
        "{}",
        said(&good[..24])
    );
    let cut_off = said(&good[..good.len() - 1]);
    assert_eq!(cut_off, "damaged or cut off after 0 packets");

    let cooked = pcap(u32::to_le_bytes, MICRO, LINUX_COOKED, &[(&data, all)]);
    assert!(said(&cooked).contains("is not from an Ethernet link"));
    let cooked = pcapng(LINUX_COOKED, &[(&data, all)]);
    assert!(said(&cooked).contains("is not from an Ethernet link"));
    let snapped = pcap(
        u32::to_le_bytes,
        MICRO,
        ETHERNET_LINK,
        &[(&data[..60], all)],
    );
    let snapped = said(&snapped);
    assert!(
        snapped.starts_with("packet 1 has only 60 of 74 bytes") && snapped.contains("tcpdump -s 0"),
        "{snapped}"
    );
    let tiny = pcap(u32::to_le_bytes, MICRO, ETHERNET_LINK, &[(&data[..9], 9)]);
    assert!(said(&tiny).contains("too few for an Ethernet header"));

    let missing = from_pcap(Path::new("/nonesuch.pcap")).unwrap_err();
    let missing = format!("{missing:#}");
    assert!(
        missing.starts_with("cannot read capture /nonesuch.pcap: No such file"),
        "{missing}"
    );
}
