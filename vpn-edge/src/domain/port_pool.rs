//! Which tenant holds which port.
//!
//! Guarantees: a port is held by at most one tenant; tenants only get ports of the
//! configured range; a released port is reused as late as possible, so that a client
//! with an old configuration does not soon reach another tenant's gateway.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use uuid::Uuid;

/// An inclusive range of UDP ports within 1024–65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    #[error("{0:?} is not a port range; write it as FIRST-LAST, for example 30000-32767")]
    Syntax(String),
    #[error("the port range {0} starts below 1024; ports 1 to 1023 belong to system services")]
    Privileged(String),
    #[error("the port range {0} ends before it starts")]
    Reversed(String),
}

impl PortRange {
    pub fn new(first: u16, last: u16) -> Result<PortRange, PortRangeError> {
        let text = || format!("{first}-{last}");
        if first < 1024 {
            return Err(PortRangeError::Privileged(text()));
        }
        if last < first {
            return Err(PortRangeError::Reversed(text()));
        }
        Ok(PortRange { first, last })
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    pub fn contains(self, port: u16) -> bool {
        self.ports().contains(&port)
    }

    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<PortRange, PortRangeError> {
        let syntax = || PortRangeError::Syntax(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(syntax)?;
        let first = first.trim().parse().map_err(|_| syntax())?;
        let last = last.trim().parse().map_err(|_| syntax())?;
        PortRange::new(first, last)
    }
}

/// A source of free ports. An implementation may look up which ports are free on the
/// first call.
pub trait Ports {
    /// Allocates a port to `holder`. `None` if all ports are in use.
    fn allocate(&mut self, holder: Uuid) -> Option<u16>;

    /// Releases the port. Returns whether it was held.
    fn release(&mut self, port: u16) -> bool;

    /// Whether `holder` may keep this port: it holds it, and the port is still in a
    /// pool.
    fn keeps(&mut self, port: u16, holder: Uuid) -> bool;
}

/// The ports of some ranges and their holders.
///
/// Ports outside the ranges, held or released under an earlier configuration, are
/// remembered but never allocated.
/// once) are remembered but never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPool {
    ranges: Vec<PortRange>,
    held: BTreeMap<u16, Uuid>,
    never_used: BTreeSet<u16>,
    /// Longest released first.
    released: VecDeque<u16>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port} is held by the tenants {first} and {second}")]
pub struct HeldTwice {
    pub port: u16,
    pub first: Uuid,
    pub second: Uuid,
}

impl PortPool {
    /// `held` are the ports that tenants hold; `released` are ports that were held
    /// before, longest released first.
    pub fn new(
        range: PortRange,
        held: impl IntoIterator<Item = (u16, Uuid)>,
        released: impl IntoIterator<Item = u16>,
    ) -> Result<PortPool, HeldTwice> {
        PortPool::over(vec![range], held, released)
    }

    /// Like [`PortPool::new`], over several ranges.
    ///
    /// # Errors
    ///
    /// Like [`PortPool::new`].
    pub fn over(
        ranges: Vec<PortRange>,
        held: impl IntoIterator<Item = (u16, Uuid)>,
        released: impl IntoIterator<Item = u16>,
    ) -> Result<PortPool, HeldTwice> {
        let mut never_used: BTreeSet<u16> = ranges.iter().flat_map(|range| range.ports()).collect();
        let mut by_port = BTreeMap::new();
        for (port, holder) in held {
            if let Some(first) = by_port.insert(port, holder) {
                return Err(HeldTwice {
                    port,
                    first,
                    second: holder,
                });
            }
            never_used.remove(&port);
        }
        let mut queue = VecDeque::new();
        let mut queued = BTreeSet::new();
        for port in released {
            if !by_port.contains_key(&port) && queued.insert(port) {
                never_used.remove(&port);
                queue.push_back(port);
            }
        }
        Ok(PortPool {
            ranges,
            held: by_port,
            never_used,
            released: queue,
        })
    }

    fn has(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| range.contains(port))
    }

    pub fn holder(&self, port: u16) -> Option<Uuid> {
        self.held.get(&port).copied()
    }

    /// How many ports [`Ports::allocate`] can still allocate.
    pub fn available(&self) -> usize {
        let released = self.released.iter().filter(|p| self.has(**p));
        self.never_used.len() + released.count()
    }

    /// Longest released first.
    pub fn released(&self) -> impl Iterator<Item = u16> + '_ {
        self.released.iter().copied()
    }
}

impl Ports for PortPool {
    /// The lowest port that was never used, otherwise the one that was released
    /// longest ago.
    fn allocate(&mut self, holder: Uuid) -> Option<u16> {
        let port = self.never_used.pop_first().or_else(|| {
            let at = self.released.iter().position(|p| self.has(*p))?;
            self.released.remove(at)
        })?;
        self.held.insert(port, holder);
        Some(port)
    }

    fn release(&mut self, port: u16) -> bool {
        let was_held = self.held.remove(&port).is_some();
        if was_held {
            self.released.push_back(port);
        }
        was_held
    }

    fn keeps(&mut self, port: u16, holder: Uuid) -> bool {
        self.has(port) && self.holder(port) == Some(holder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn pool(range: &str) -> PortPool {
        PortPool::new(range.parse().unwrap(), [], []).unwrap()
    }

    #[test]
    fn a_range_is_parsed_and_printed() {
        let range: PortRange = "30000-32767".parse().unwrap();
        assert_eq!((range.first(), range.last()), (30000, 32767));
        assert_eq!(range.to_string(), "30000-32767");
    }

    #[test]
    fn a_bad_range_is_refused_with_what_to_do() {
        let table = [
            (
                "",
                "\"\" is not a port range; write it as FIRST-LAST, for example 30000-32767",
            ),
            (
                "30000",
                "\"30000\" is not a port range; write it as FIRST-LAST, for example 30000-32767",
            ),
            (
                "30000-99999",
                "\"30000-99999\" is not a port range; write it as FIRST-LAST, for example 30000-32767",
            ),
            (
                "80-90",
                "the port range 80-90 starts below 1024; ports 1 to 1023 belong to system services",
            ),
            (
                "31000-30000",
                "the port range 31000-30000 ends before it starts",
            ),
        ];
        for (text, message) in table {
            assert_eq!(text.parse::<PortRange>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn ports_are_given_out_in_ascending_order_until_none_is_left() {
        let mut pool = pool("30000-30002");
        let ports: Vec<_> = (0..4).map(|n| pool.allocate(tenant(n))).collect();
        assert_eq!(ports, [Some(30000), Some(30001), Some(30002), None]);
        assert_eq!(pool.holder(30001), Some(tenant(1)));
    }

    #[test]
    fn a_released_port_is_reused_after_all_never_used_ones_and_oldest_first() {
        let mut pool = pool("30000-30003");
        for n in 0..3 {
            pool.allocate(tenant(n));
        }
        assert!(pool.release(30001));
        assert!(pool.release(30000));
        let ports: Vec<_> = (5..9).map(|n| pool.allocate(tenant(n))).collect();
        assert_eq!(ports, [Some(30003), Some(30001), Some(30000), None]);
    }

    #[test]
    fn releasing_a_port_nobody_holds_changes_nothing() {
        let mut pool = pool("30000-30003");
        let before = pool.clone();
        assert!(!pool.release(30001));
        assert!(!pool.release(9));
        assert_eq!(pool, before);
    }

    #[test]
    fn two_holders_of_one_port_are_refused() {
        let held = [(30000, tenant(1)), (30000, tenant(2))];
        let error = PortPool::new("30000-30001".parse().unwrap(), held, []).unwrap_err();
        assert_eq!(
            (error.port, error.first, error.second),
            (30000, tenant(1), tenant(2))
        );
    }

    #[test]
    fn ports_outside_a_changed_range_stay_held_but_are_not_given_out_again() {
        let held = [(30000, tenant(1)), (31000, tenant(2))];
        let mut pool = PortPool::new("31000-31001".parse().unwrap(), held, [30001]).unwrap();
        assert_eq!(pool.available(), 1);
        assert!(pool.release(30000));
        assert_eq!(pool.allocate(tenant(3)), Some(31001));
        assert_eq!(pool.allocate(tenant(4)), None);
        assert_eq!(pool.released().collect::<Vec<_>>(), [30001, 30000]);
    }

    proptest! {
        #[test]
        fn a_port_has_one_holder_and_the_freed_ones_come_back_in_order(
            steps in prop::collection::vec((any::<bool>(), 0u16..12), 0..200)
        ) {
            let mut pool = pool("30000-30007");
            let mut held: BTreeMap<u16, Uuid> = BTreeMap::new();
            let mut used: BTreeSet<u16> = BTreeSet::new();
            let mut freed: Vec<u16> = Vec::new();
            for (n, (allocate, port)) in steps.into_iter().enumerate() {
                let port = 30000 + port;
                if allocate {
                    let expected = (30000..=30007)
                        .find(|p| !used.contains(p))
                        .or_else(|| freed.first().copied());
                    let holder = tenant(n as u128);
                    let got = pool.allocate(holder);
                    prop_assert_eq!(got, expected);
                    if let Some(port) = got {
                        prop_assert!(held.insert(port, holder).is_none(), "given out twice");
                        used.insert(port);
                        freed.retain(|p| *p != port);
                    }
                } else {
                    prop_assert_eq!(pool.release(port), held.remove(&port).is_some());
                    if used.contains(&port) && !freed.contains(&port) {
                        freed.push(port);
                    }
                }
                for port in 30000..=30011 {
                    prop_assert_eq!(pool.holder(port), held.get(&port).copied());
                }
                prop_assert_eq!(pool.available(), 8 - held.len());
            }
            let rebuilt = PortPool::over(pool.ranges.clone(), held, pool.released()).unwrap();
            prop_assert_eq!(rebuilt, pool);
        }
    }
}
