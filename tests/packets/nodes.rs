//! The set of other edge nodes' addresses, as the agent keeps it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Change, Datapath, Reader, SlotState, folder};
use vpn_edge_common::{Address, NODES, map, mapped};

use crate::node::{GATEWAY, KEY, LO, PORT, SLOT, edge, open};

const ONE: [u8; 4] = [198, 51, 100, 11];
const OTHER: [u8; 4] = [198, 51, 100, 12];

fn set(addresses: &[[u8; 4]]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|&one| IpAddr::from(one)).collect()
}

fn pin(root: &Path) -> PathBuf {
    folder(root).join("maps").join(map::NODES)
}

/// The map as somebody else opens it.
fn foreign(root: &Path) -> HashMap<MapData, Address, u8> {
    let map = MapData::from_pin(pin(root)).unwrap();
    HashMap::try_from(Map::HashMap(map)).unwrap()
}

#[test]
fn maps_of_a_build_without_the_set_get_one_and_stay_as_they_are() {
    let sandbox = Sandbox::enter().unwrap();
    let root = sandbox.bpffs();
    let mut before = Datapath::open(&root).unwrap();
    before.set_edge(&edge(LO, &[])).unwrap();
    let change = Change {
        port: PORT,
        allocation: open(&GATEWAY, &KEY, SLOT),
        memory: SlotState::Keep,
        grace: false,
    };
    before.maps.publish(std::slice::from_ref(&change)).unwrap();
    let seed = before.maps.edge().unwrap().seed;
    drop(before);
    fs::remove_file(pin(&root)).unwrap();

    // Meanwhile the maps can be read.
    let reader = Reader::open(&root).unwrap();
    assert_eq!(reader.nodes().unwrap(), set(&[]));
    assert_eq!(reader.allocation(PORT), Some(change.allocation));

    let mut after = Datapath::open(&root).unwrap();
    assert!(pin(&root).exists());
    assert!(!after.upgrading(), "it is of the same schema");
    assert_eq!(after.maps.allocation(PORT), Some(change.allocation));
    assert_eq!(after.maps.edge().unwrap().seed, seed);
    after.maps.set_nodes(&set(&[ONE])).unwrap();
    drop(after);
    let again = Datapath::open(&root).unwrap();
    assert_eq!(again.maps.nodes().unwrap(), set(&[ONE]), "after a restart");
}

#[test]
fn what_others_change_of_the_set_is_put_back() {
    let sandbox = Sandbox::enter().unwrap();
    let root = sandbox.bpffs();
    let mut datapath = Datapath::open(&root).unwrap();
    datapath.maps.set_nodes(&set(&[ONE, OTHER])).unwrap();
    let mut foreign = foreign(&root);
    foreign.remove(&mapped(ONE)).unwrap();
    foreign.insert(mapped([203, 0, 113, 9]), 1, 0).unwrap();
    // It is found by its address alone.
    foreign.insert(mapped(OTHER), 7, 0).unwrap();
    datapath.maps.set_nodes(&set(&[ONE, OTHER])).unwrap();
    assert_eq!(datapath.maps.nodes().unwrap(), set(&[ONE, OTHER]));
    let kept = foreign.get(&mapped(OTHER), 0).unwrap();
    assert_eq!(kept, 7, "what is wanted and there is not written");
    datapath.maps.set_nodes(&set(&[])).unwrap();
    assert_eq!(datapath.maps.nodes().unwrap(), set(&[]));
}

#[test]
fn the_set_takes_as_many_as_it_holds_and_leaves_the_rest_out() {
    let sandbox = Sandbox::enter().unwrap();
    let mut datapath = Datapath::open(&sandbox.bpffs()).unwrap();
    let some = |first: u32| -> BTreeSet<IpAddr> {
        let numbers = first..first + NODES + 10;
        numbers.map(|one| Ipv4Addr::from_bits(one).into()).collect()
    };
    // The second time it is full already, of others.
    for wanted in [some(1 << 24), some(2 << 24)] {
        datapath.maps.set_nodes(&wanted).unwrap();
        let expected: BTreeSet<IpAddr> = wanted.into_iter().take(NODES as usize).collect();
        let held = datapath.maps.nodes().unwrap();
        assert!(held == expected, "{} of {}", held.len(), expected.len());
    }
}
