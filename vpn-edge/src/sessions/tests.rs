use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn traffic(packets: u64) -> Traffic {
    Traffic {
        packets,
        bytes: packets * 100,
    }
}

fn client(octet: u8, ago: u64) -> Option<(SocketAddr, Duration)> {
    let address = SocketAddr::from(([192, 0, 2, octet], 51_820));
    Some((address, Duration::from_secs(ago)))
}

/// As an edge that sends on to a gateway on another node.
fn edge(octet: u8, ago: u64, packets: u64) -> EdgeSession {
    EdgeSession {
        connected: ago < 180,
        handshake: Some(Duration::from_secs(ago)),
        client: client(octet, ago),
        received: traffic(packets),
        sent: traffic(packets * 2),
        has_gateway: false,
    }
}

#[test]
fn of_several_edges_the_newest_counts_and_traffic_adds_up() {
    let seen = [edge(1, 300, 10), edge(2, 20, 5), edge(3, 100, 1)];
    let session = Session::of(&seen, NOW, true);
    let wanted = Session {
        connected: true,
        last_handshake: Some(Timestamp::from_second(-20).unwrap()),
        client: Some("192.0.2.2:51820".parse().unwrap()),
        received: traffic(16),
        sent: traffic(32),
        complete: true,
    };
    assert_eq!(session, wanted);
    let later_packet = EdgeSession {
        handshake: None,
        ..edge(4, 1, 0)
    };
    let seen = [edge(2, 20, 5), later_packet];
    let session = Session::of(&seen, NOW, false);
    assert_eq!(session.client, Some("192.0.2.4:51820".parse().unwrap()));
    assert_eq!(session.last_handshake, wanted.last_handshake);
    assert!(!session.complete);
}

#[test]
fn what_the_gateways_node_counts_is_not_counted_at_edges_again() {
    let gateway = EdgeSession {
        client: None,
        has_gateway: true,
        ..edge(0, 20, 17)
    };
    let session = Session::of(&[edge(1, 20, 10), gateway, edge(2, 20, 5)], NOW, true);
    assert_eq!(session.received, traffic(17));
    assert_eq!(session.sent, traffic(34));
    assert!(session.client.is_some(), "an edge knows the client");
}

#[test]
fn nobody_is_connected_where_nothing_was_seen() {
    assert_eq!(Session::of(&[], NOW, true), Session::none());
    let long_ago = Session::of(&[edge(1, 181, 1)], NOW, true);
    assert!(!long_ago.connected);
    assert!(long_ago.last_handshake.is_some());
}

#[test]
fn an_edge_takes_a_client_for_connected_while_a_session_can_be_alive() {
    let counters = Counters {
        ingress_packets: 1,
        ingress_bytes: 100,
        egress_packets: 2,
        egress_bytes: 200,
        ..Counters::default()
    };
    let seen = |mode, handshake: Option<u64>, heard: Option<u64>| {
        let times = SessionTimes {
            handshake: handshake.map(Duration::from_secs),
            client: None,
            heard: heard.map(Duration::from_secs),
        };
        EdgeSession::new(mode, times, &counters)
    };
    assert!(seen(mode::XDP, Some(179), None).connected);
    assert!(!seen(mode::XDP, Some(180), None).connected);
    assert!(seen(mode::HOP, Some(300), Some(10)).connected);
    assert!(!seen(mode::HOP, Some(300), Some(180)).connected);
    assert!(!seen(mode::TC, None, None).connected);
    assert!(!seen(mode::CLOSED, Some(1), Some(1)).connected);
    let one = seen(mode::TC, None, None);
    assert_eq!((one.received, one.sent), (traffic(1), traffic(2)));
    let has_gateway = [mode::CLOSED, mode::XDP, mode::TC, mode::HOP]
        .map(|mode| seen(mode, None, None).has_gateway);
    assert_eq!(has_gateway, [false, true, true, false]);
}
