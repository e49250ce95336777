//! What the kernel does for a program that calls it.
//!
//! As in a test run: the whole packet is linear, and its checksum is not
//! offloaded (`CHECKSUM_NONE`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};

use super::{JIFFIES, Kind, MAPS, Machine, NOW};

/// The verdicts of a redirected packet.
const XDP_REDIRECT: u64 = 4;
const TC_REDIRECT: u64 = 7;

const OK: u64 = 0;
const NOT_SUPPORTED: i64 = -524;

/// Of `enum bpf_func_id`, with the names that the kernel has for them.
const NAMES: [(i32, &str); 17] = [
    (LOOKUP, "map_lookup_elem"),
    (9, "skb_store_bytes"),
    (10, "l3_csum_replace"),
    (11, "l4_csum_replace"),
    (19, "skb_vlan_pop"),
    (23, "redirect"),
    (39, "skb_pull_data"),
    (40, "csum_update"),
    (44, "xdp_adjust_head"),
    (69, "fib_lookup"),
    (118, "jiffies64"),
    (131, "ringbuf_reserve"),
    (132, "ringbuf_submit"),
    (152, "redirect_neigh"),
    (155, "redirect_peer"),
    (160, "ktime_get_coarse_ns"),
    (188, "xdp_get_buff_len"),
];
const LOOKUP: i32 = 1;

impl Machine {
    pub(super) fn call(&mut self, kind: Kind, helper: i32, with: [u64; 5]) -> Result<u64> {
        let name = NAMES.iter().find(|(number, _)| *number == helper);
        let (_, name) = name.with_context(|| {
            format!(
                "helper {helper} is not interpreted: add it to tests/src/interpreter/helpers.rs"
            )
        })?;
        if helper == LOOKUP {
            return self.lookup(with[0], with[1]);
        }
        self.cost.helpers.count(name);
        let (start, end) = self.packet;
        let length = end - start;
        let [_, second, third, fourth, fifth] = with;
        Ok(match *name {
            "jiffies64" => JIFFIES,
            "ktime_get_coarse_ns" => NOW,
            "redirect" if kind == Kind::Xdp => XDP_REDIRECT,
            "redirect" | "redirect_neigh" | "redirect_peer" => TC_REDIRECT,
            "xdp_get_buff_len" => length,
            "xdp_adjust_head" => {
                let start = start.wrapping_add_signed((second as i32).into());
                self.bound(kind, start, end)?;
                OK
            }
            "skb_pull_data" => {
                ensure!(second <= length, "pulls in more than there is");
                OK
            }
            "skb_vlan_pop" => {
                // The addresses move over the tag.
                let addresses = self.memory.load(start, 8)?;
                let rest = self.memory.load(start + 8, 4)?;
                self.memory.store(start + 4, 8, addresses)?;
                self.memory.store(start + 12, 4, rest)?;
                self.bound(kind, start + 4, end)?;
                OK
            }
            "skb_store_bytes" => {
                let (at, bytes) = (start + second, fourth as usize);
                ensure!(at + fourth <= end, "stores beyond the packet");
                let stored = self.memory.bytes(third, bytes)?.to_vec();
                self.memory.bytes_mut(at, bytes)?.copy_from_slice(&stored);
                OK
            }
            "l3_csum_replace" => self.replace(second, third, fourth, fifth)?,
            "l4_csum_replace" => {
                const MARK_MANGLED_0: u64 = 1 << 5;
                let marked = fifth & MARK_MANGLED_0 != 0;
                if marked && self.memory.load(start + second, 2)? == 0 {
                    return Ok(OK);
                }
                self.replace(second, third, fourth, fifth)?;
                if marked && self.memory.load(start + second, 2)? == 0 {
                    self.memory.store(start + second, 2, 0xffff)?;
                }
                OK
            }
            "csum_update" => NOT_SUPPORTED as u64,
            "fib_lookup" => self.route(second)?,
            "ringbuf_reserve" => self.memory.add(vec![0; second as usize]),
            "ringbuf_submit" => OK,
            other => bail!("{other} is not interpreted"),
        })
    }

    fn lookup(&mut self, map: u64, key: u64) -> Result<u64> {
        let key = self.memory.load(key, 4)? as u32;
        let number = map.wrapping_sub(MAPS) as usize;
        let name = &self.maps.get(number).context("looks up in no map")?.name;
        self.cost.lookups.count(&name.clone());
        Ok(self.value(number, key).unwrap_or(0))
    }

    /// Replaces a part of what a checksum in the packet is over.
    fn replace(&mut self, at: u64, from: u64, to: u64, flags: u64) -> Result<u64> {
        let at = self.packet.0 + at;
        let sum = self.memory.load(at, 2)? as u32;
        let without = match flags & 0xf {
            // `to` is the difference.
            0 => !sum,
            2 | 4 => add(!sum, !(from as u32)),
            size => bail!("a checksum over {size} bytes"),
        };
        self.memory
            .store(at, 2, fold(add(without, to as u32)).into())?;
        Ok(OK)
    }

    /// Answers a `struct bpf_fib_lookup`.
    fn route(&mut self, at: u64) -> Result<u64> {
        const IPV4: u8 = 2;
        const LENGTH: u64 = 6;
        const INTERFACE: u64 = 8;
        const DESTINATION: u64 = 32;
        const MACS: u64 = 52;
        const NOT_FORWARDED: u64 = 4;
        const FRAGMENT_NEEDED: u64 = 8;
        let [family] = *self.memory.bytes(at, 1)? else {
            unreachable!("one byte")
        };
        let to: [u8; 16] = self.memory.bytes(at + DESTINATION, 16)?.try_into()?;
        let to: IpAddr = match (family, to) {
            (IPV4, [a, b, c, d, ..]) => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(to).into(),
        };
        let Some(&route) = self.routes.get(&to) else {
            return Ok(NOT_FORWARDED);
        };
        let mtu = u64::from(route.mtu);
        if self.memory.load(at + LENGTH, 2)? > mtu {
            return Ok(FRAGMENT_NEEDED);
        }
        self.memory.store(at + LENGTH, 2, mtu)?;
        self.memory
            .store(at + INTERFACE, 4, route.interface.into())?;
        let macs = self.memory.bytes_mut(at + MACS, 12)?;
        macs[..6].copy_from_slice(&route.source);
        macs[6..].copy_from_slice(&route.destination);
        Ok(OK)
    }
}

/// Ones' complement arithmetic, as the kernel's `csum_add` and `csum_fold`.
fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u32::from(carry)
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
