//! Objects of one kind as watched and as written, whichever is newer.
//!
//! A watch reports a write some time after the write returned. So a written object is
//! put here immediately, and later events of the watch count only if they are newer:
//! resource versions are numbers of one sequence. A list is authoritative, except for
//! objects written or deleted since it began, and replaces the previous state when it
//! is complete: a relist is never taken for a deletion of everything.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Namespace and name; the namespace is empty where objects have none.
pub type Name = (String, String);

/// How many deletions are remembered, to ignore late events of deleted objects.
const REMEMBERED: usize = 4096;

/// The cached values of one kind, by name.
#[derive(Debug)]
pub struct Cache<V> {
    kept: BTreeMap<Name, (u64, V)>,
    /// By deleted object, the version up to which events are outdated.
    gone: BTreeMap<Name, u64>,
    listing: Option<Listing<V>>,
    is_complete: bool,
}

/// A list in progress.
#[derive(Debug)]
struct Listing<V> {
    found: Vec<(Name, u64, V)>,
    /// Written since the list began.
    written: BTreeSet<Name>,
}

/// A changed or deleted object.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<V> {
    pub name: Name,
    pub before: Option<V>,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self {
            kept: BTreeMap::new(),
            gone: BTreeMap::new(),
            listing: None,
            is_complete: false,
        }
    }
}

impl<V> Cache<V> {
    /// Applies an event of a watch and returns the changes. `keep` returns the part
    /// of an object to cache; objects for which it returns none count as absent.
    pub fn take<K: ResourceExt>(
        &mut self,
        event: &Event<K>,
        keep: impl Fn(&K) -> Option<V>,
    ) -> Vec<Change<V>> {
        let change = match event {
            Event::Init => {
                self.begin();
                None
            }
            Event::InitApply(object) => {
                if let Some(value) = keep(object) {
                    self.found(name(object), version(object), value);
                }
                None
            }
            Event::InitDone => return self.reset(),
            Event::Apply(object) => match keep(object) {
                Some(value) => self.apply(name(object), version(object), value),
                None => self.delete(&name(object), version(object)),
            },
            Event::Delete(object) => self.delete(&name(object), version(object)),
        };
        change.into_iter().collect()
    }

    /// Applies an object if it is newer.
    pub fn apply(&mut self, name: Name, version: u64, value: V) -> Option<Change<V>> {
        let known = self.kept.get(&name).map(|(known, _)| *known);
        if known.max(self.gone.get(&name).copied()) >= Some(version) {
            return None;
        }
        if let Some(listing) = &mut self.listing {
            listing.written.insert(name.clone());
        }
        self.gone.remove(&name);
        let before = self.kept.insert(name.clone(), (version, value));
        let before = before.map(|(_, value)| value);
        Some(Change { name, before })
    }

    /// Records that the object of this name was deleted at this version.
    pub fn delete(&mut self, name: &Name, version: u64) -> Option<Change<V>> {
        if self.version(name) > version {
            return None;
        }
        if self.gone.len() >= REMEMBERED
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, version)| **version)
        {
            let oldest = oldest.0.clone();
            self.gone.remove(&oldest);
        }
        let gone = self.gone.entry(name.clone()).or_default();
        *gone = version.max(*gone);
        let (_, before) = self.kept.remove(name)?;
        Some(Change {
            name: name.clone(),
            before: Some(before),
        })
    }

    /// Begins a list.
    fn begin(&mut self) {
        // Everything that arrives from here on is at least as new as the list.
        self.gone.clear();
        self.listing = Some(Listing {
            found: Vec::new(),
            written: BTreeSet::new(),
        });
    }

    /// Adds an object of the list in progress.
    fn found(&mut self, name: Name, version: u64, value: V) {
        if let Some(listing) = &mut self.listing {
            listing.found.push((name, version, value));
        }
    }

    /// Completes the list.
    fn reset(&mut self) -> Vec<Change<V>> {
        let Some(Listing { found, written }) = self.listing.take() else {
            return Vec::new();
        };
        self.is_complete = true;
        let newest = found.iter().map(|(_, version, _)| *version).max();
        let listed: BTreeSet<&Name> = found.iter().map(|(name, ..)| name).collect();
        let missing = self.kept.iter().filter(|(name, (version, _))| {
            // What was written after the list was taken cannot be in it.
            let is_later = written.contains(*name) && Some(*version) > newest;
            !listed.contains(*name) && !is_later
        });
        let missing = missing.map(|(name, (version, _))| (name.clone(), *version));
        let missing: Vec<(Name, u64)> = missing.collect();
        let missing = missing
            .iter()
            .filter_map(|(name, version)| self.delete(name, *version));
        let mut changes: Vec<Change<V>> = missing.collect();
        for (name, version, value) in found {
            let known = self.kept.get(&name).map(|(known, _)| *known);
            let is_written = written.contains(&name) && known > Some(version);
            let is_deleted = self.gone.get(&name) >= Some(&version);
            if known == Some(version) || is_written || is_deleted {
                continue;
            }
            let before = self.kept.insert(name.clone(), (version, value));
            let before = before.map(|(_, value)| value);
            changes.push(Change { name, before });
        }
        changes
    }

    /// Whether there has been a complete list. Before, nothing may be concluded from
    /// missing objects.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub fn get(&self, name: &Name) -> Option<&V> {
        self.kept.get(name).map(|(_, value)| value)
    }

    /// The version of the cached object, zero if there is none.
    pub fn version(&self, name: &Name) -> u64 {
        self.kept.get(name).map_or(0, |(version, _)| *version)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.kept.iter().map(|(name, (_, value))| (name, value))
    }

    /// The objects in a namespace.
    pub fn within<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a V> {
        let from = (namespace.to_owned(), String::new());
        let from = self.kept.range(from..);
        let within = from.take_while(move |((of, _), _)| of == namespace);
        within.map(|(_, (_, value))| value)
    }
}

/// Namespace and name of an object.
pub fn name(object: &impl ResourceExt) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// The object's version as a number; zero for objects that were never stored.
pub fn version(object: &impl ResourceExt) -> u64 {
    let version = object.resource_version();
    version.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        (text.to_owned(), "vpn".to_owned())
    }

    fn kept(cache: &Cache<u64>) -> Vec<(&str, u64)> {
        cache
            .iter()
            .map(|(name, v)| (name.0.as_str(), *v))
            .collect()
    }

    #[test]
    fn only_what_is_newer_counts() {
        let mut cache = Cache::default();
        assert!(cache.apply(name("a"), 9, 9).is_some());
        assert!(cache.apply(name("a"), 9, 0).is_none());
        assert!(
            cache.apply(name("a"), 8, 8).is_none(),
            "compared as text it were newer"
        );
        assert!(cache.apply(name("a"), 10, 10).is_some());
        assert_eq!(kept(&cache), [("a", 10)]);
    }

    #[test]
    fn late_news_of_the_deleted_do_not_bring_it_back() {
        let mut cache = Cache::default();
        cache.apply(name("a"), 5, 5);
        assert!(cache.delete(&name("a"), 5).is_some());
        assert!(cache.apply(name("a"), 5, 5).is_none());
        assert!(cache.apply(name("a"), 4, 4).is_none());
        assert!(cache.apply(name("a"), 7, 7).is_some(), "made anew");
        assert!(
            cache.delete(&name("a"), 6).is_none(),
            "its deletion is old news"
        );
        assert_eq!(kept(&cache), [("a", 7)]);
    }

    #[test]
    fn a_list_takes_away_what_it_lacks_but_not_what_was_written_meanwhile() {
        let mut cache = Cache::default();
        cache.apply(name("gone"), 90, 90);
        cache.apply(name("old"), 2, 2);
        cache.begin();
        cache.apply(name("new"), 91, 91);
        cache.apply(name("written-and-deleted"), 3, 3);
        cache.found(name("old"), 4, 4);
        cache.found(name("other"), 5, 5);
        let changed = cache.reset().into_iter().map(|change| change.name);
        let mut changed: Vec<Name> = changed.collect();
        changed.sort();
        let names = ["gone", "old", "other", "written-and-deleted"];
        assert_eq!(changed, names.map(name));
        assert_eq!(kept(&cache), [("new", 91), ("old", 4), ("other", 5)]);
    }

    #[test]
    fn a_list_is_the_truth_even_where_versions_went_back() {
        let mut cache = Cache::default();
        assert!(!cache.is_complete());
        cache.apply(name("a"), 90, 90);
        cache.apply(name("b"), 91, 91);
        cache.delete(&name("b"), 92);
        cache.begin();
        cache.apply(name("c"), 6, 6);
        cache.delete(&name("c"), 6);
        cache.found(name("a"), 3, 3);
        cache.found(name("b"), 4, 4);
        cache.found(name("c"), 5, 5);
        assert!(!cache.is_complete());
        let before: Vec<_> = cache.reset().into_iter().map(|of| of.before).collect();
        assert!(cache.is_complete());
        assert_eq!(before, [Some(90), None]);
        // The last was deleted after it was listed.
        assert_eq!(kept(&cache), [("a", 3), ("b", 4)]);
    }

    proptest! {
        /// However late and often news arrive, in the end the cache is as the
        /// store was.
        #[test]
        fn news_in_any_order_lead_to_what_is_stored(
            steps in prop::collection::vec((any::<bool>(), 0..4u8), 1..40),
            order in prop::collection::vec(any::<u16>(), 80),
        ) {
            let mut stored: BTreeMap<Name, u64> = BTreeMap::new();
            let mut news = Vec::new();
            for (version, (put, which)) in (1u64..).zip(&steps) {
                let name = name(&which.to_string());
                if *put {
                    stored.insert(name.clone(), version);
                    news.push((name, version, true));
                } else if stored.remove(&name).is_some() {
                    news.push((name, version, false));
                }
            }
            let twice: Vec<_> = news.iter().chain(&news).cloned().collect();
            let mut shuffled: Vec<_> = twice.into_iter().zip(order).collect();
            shuffled.sort_by_key(|(_, at)| *at);
            let mut cache = Cache::default();
            for ((name, version, put), _) in shuffled {
                if put {
                    cache.apply(name, version, version);
                } else {
                    cache.delete(&name, version);
                }
            }
            let kept: BTreeMap<Name, u64> =
                cache.iter().map(|(name, v)| (name.clone(), *v)).collect();
            prop_assert_eq!(kept, stored);
        }
    }
}
