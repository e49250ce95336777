//! Sampled drops.

use lab::message::{self, unsigned};
use lab::packet::{CLIENT, CLIENT_PORT, Packet};
use lab::programs::Hook;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use vpn_edge::datapath::Events;
use vpn_edge_common::{DropReason, Event, Rates, mapped};

use crate::node::{GATEWAY, Node, OTHER_PORT, PORT, SLOT, TENANT, Verdict, data, now};

/// Reasons are sampled on each CPU by itself.
fn stay_on_this_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap());
    let mut one = CpuSet::new();
    one.set(first.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

fn taken(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.take()).collect()
}

#[test]
fn a_drop_is_told_once_a_tick_for_each_reason_and_counted_every_time() {
    stay_on_this_cpu();
    let packet = Packet::to(PORT, unsigned(9, 128, &[]));
    let cut = data().cut(100);
    for hook in [Hook::Xdp, Hook::Tc] {
        // Again if a tick ended between the first two; not twice in a row.
        for attempt in 0.. {
            let mut node = Node::new();
            let mut events = Events::open(&node.root()).unwrap();
            let mut told = [Vec::new(), Vec::new(), Vec::new()];
            let before = now();
            for (packet, told) in [packet.bytes(), packet.bytes(), cut.clone()]
                .iter()
                .zip(&mut told)
            {
                let (verdict, _) = node.ingress(hook, packet);
                assert!(matches!(verdict, Verdict::Drop(_)));
                *told = taken(&mut events);
            }
            let [first, second, other] = told;
            if !second.is_empty() && attempt < 3 {
                continue;
            }
            assert_eq!(first.len(), 1, "{hook:?}");
            let event = first[0];
            assert!(event.time >= before && event.time <= now());
            let expected = Event {
                time: event.time,
                count: event.count,
                tenant: TENANT,
                source: mapped(CLIENT.octets()),
                source_port: CLIENT_PORT,
                destination_port: PORT,
                length: 14 + 20 + 8 + 128,
                reason: DropReason::MessageType as u8,
                message: 9,
            };
            assert_eq!(event, expected, "{hook:?}");
            let counted = node.counters(SLOT).drops;
            assert_eq!(event.count + 1, counted[DropReason::MessageType as usize]);
            assert_eq!(second, [], "{hook:?}: the same reason in the same tick");
            assert_eq!(other.len(), 1, "{hook:?}: another reason");
            assert_eq!(other[0].reason, DropReason::Truncated as u8);
            assert_eq!(other[0].length, 100);
            break;
        }
    }
}

/// The event of a reply to `client_port` that is beyond the plan.
fn refused_reply(client_port: u16) -> Event {
    let mut node = Node::new();
    node.limit(Rates { packet: 1, byte: 0 });
    let limits = &node.memory.limits[usize::from(SLOT)];
    limits.packets[1].store(u64::MAX / 2);
    let mut events = Events::open(&node.root()).unwrap();
    let reply = Packet::from(&GATEWAY, PORT, message::data(1, 128));
    let reply = reply.with(|packet| packet.ports.1 = client_port);
    let (verdict, _) = node.egress(&reply.bytes());
    assert_eq!(verdict, Verdict::Drop(DropReason::PacketRate));
    let told = taken(&mut events);
    assert_eq!(told.len(), 1);
    told[0]
}

#[test]
fn a_refused_reply_is_told_with_the_tenant_that_it_came_from() {
    let event = refused_reply(CLIENT_PORT);
    let expected = Event {
        time: event.time,
        count: 1,
        tenant: TENANT,
        source: mapped(GATEWAY.address.octets()),
        source_port: PORT,
        destination_port: CLIENT_PORT,
        length: 14 + 20 + 8 + 128,
        reason: DropReason::PacketRate as u8,
        message: 4,
    };
    assert_eq!(event, expected);
}

#[test]
fn a_refused_reply_to_a_client_on_another_tenants_port_is_told_with_its_own_tenant() {
    assert_eq!(refused_reply(OTHER_PORT).tenant, TENANT);
}

#[test]
fn what_passes_or_is_steered_is_not_told() {
    let mut node = Node::new();
    let mut events = Events::open(&node.root()).unwrap();
    assert_eq!(node.verdict(Hook::Xdp, &data()), Verdict::Steer);
    let passing = Packet::to(crate::node::UNKNOWN_PORT, vec![9; 128]);
    assert_eq!(node.verdict(Hook::Xdp, &passing), Verdict::Pass);
    assert_eq!(taken(&mut events), []);
}
