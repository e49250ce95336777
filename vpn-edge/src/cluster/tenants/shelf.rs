//! Objects of one kind as watched and as written, whichever is newer.
//!
//! A watch tells of a write some time after the write returned. So what was
//! written is put here at once, and what a watch or a list says later counts
//! only if it is newer: resource versions are numbers of one sequence.

use std::collections::{BTreeMap, BTreeSet};

/// Namespace and name.
pub type Name = (String, String);

/// As many deletions are remembered against late news of the deleted.
const REMEMBERED: usize = 4096;

/// Where `V`s of one kind are.
#[derive(Debug)]
pub struct Shelf<V> {
    kept: BTreeMap<Name, (u64, V)>,
    /// Versions up to which a deleted object's news are old.
    gone: BTreeMap<Name, u64>,
    listing: Option<Listing<V>>,
}

#[derive(Debug)]
struct Listing<V> {
    found: Vec<(Name, u64, V)>,
    /// Written while the list was under way.
    written: BTreeSet<Name>,
}

impl<V> Default for Shelf<V> {
    fn default() -> Self {
        Self {
            kept: BTreeMap::new(),
            gone: BTreeMap::new(),
            listing: None,
        }
    }
}

impl<V> Shelf<V> {
    pub fn get(&self, name: &Name) -> Option<&V> {
        self.kept.get(name).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &V)> {
        self.kept.iter().map(|(name, (_, value))| (name, value))
    }

    /// Takes in an object, if that is news. Says whether it was.
    pub fn put(&mut self, name: Name, version: u64, value: V) -> bool {
        let known = self.kept.get(&name).map(|(known, _)| *known);
        if known.max(self.gone.get(&name).copied()) >= Some(version) {
            return false;
        }
        if let Some(listing) = &mut self.listing {
            listing.written.insert(name.clone());
        }
        self.gone.remove(&name);
        self.kept.insert(name, (version, value));
        true
    }

    /// Takes note that an object of this version was the last of its name, for
    /// now. Says whether that was news.
    pub fn remove(&mut self, name: &Name, version: u64) -> bool {
        if self
            .kept
            .get(name)
            .is_some_and(|(known, _)| *known > version)
        {
            return false;
        }
        if self.gone.len() >= REMEMBERED
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, version)| **version)
        {
            let oldest = oldest.0.clone();
            self.gone.remove(&oldest);
        }
        let gone = self.gone.entry(name.clone()).or_default();
        *gone = version.max(*gone);
        self.kept.remove(name).is_some()
    }

    /// The version of what is kept.
    pub fn version(&self, name: &Name) -> u64 {
        self.kept.get(name).map_or(0, |(version, _)| *version)
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.listing = Some(Listing {
            found: Vec::new(),
            written: BTreeSet::new(),
        });
    }

    /// An object of the list that began.
    pub fn found(&mut self, name: Name, version: u64, value: V) {
        if let Some(listing) = &mut self.listing {
            listing.found.push((name, version, value));
        }
    }

    /// The list is whole. Returns the names of all that changed.
    pub fn finish(&mut self) -> Vec<Name> {
        let Some(Listing { found, written }) = self.listing.take() else {
            return Vec::new();
        };
        let newest = found.iter().map(|(_, version, _)| *version).max();
        let listed: BTreeSet<Name> = found.iter().map(|(name, ..)| name.clone()).collect();
        let missing: Vec<(Name, u64)> = self
            .kept
            .iter()
            .filter(|(name, (version, _))| {
                // What was written after the list was taken cannot be on it.
                let later = written.contains(*name) && Some(*version) > newest;
                !listed.contains(*name) && !later
            })
            .map(|(name, (version, _))| (name.clone(), *version))
            .collect();
        let mut changed = Vec::new();
        for (name, version) in missing {
            self.remove(&name, version);
            changed.push(name);
        }
        for (name, version, value) in found {
            if self.put(name.clone(), version, value) {
                changed.push(name);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        (text.to_owned(), "vpn".to_owned())
    }

    fn kept(shelf: &Shelf<u64>) -> Vec<(&str, u64)> {
        shelf
            .iter()
            .map(|(name, v)| (name.0.as_str(), *v))
            .collect()
    }

    #[test]
    fn only_what_is_newer_counts() {
        let mut shelf = Shelf::default();
        assert!(shelf.put(name("a"), 9, 9));
        assert!(!shelf.put(name("a"), 9, 0));
        assert!(
            !shelf.put(name("a"), 8, 8),
            "compared as text it were newer"
        );
        assert!(shelf.put(name("a"), 10, 10));
        assert_eq!(kept(&shelf), [("a", 10)]);
    }

    #[test]
    fn late_news_of_the_deleted_do_not_bring_it_back() {
        let mut shelf = Shelf::default();
        shelf.put(name("a"), 5, 5);
        assert!(shelf.remove(&name("a"), 5));
        assert!(!shelf.put(name("a"), 5, 5));
        assert!(!shelf.put(name("a"), 4, 4));
        assert!(shelf.put(name("a"), 7, 7), "made anew");
        assert!(!shelf.remove(&name("a"), 6), "its deletion is old news");
        assert_eq!(kept(&shelf), [("a", 7)]);
    }

    #[test]
    fn a_list_takes_away_what_it_lacks_but_not_what_was_written_meanwhile() {
        let mut shelf = Shelf::default();
        shelf.put(name("gone"), 90, 90);
        shelf.put(name("old"), 2, 2);
        shelf.begin();
        shelf.put(name("new"), 91, 91);
        shelf.put(name("written-and-deleted"), 3, 3);
        shelf.found(name("old"), 4, 4);
        shelf.found(name("other"), 5, 5);
        let mut changed = shelf.finish();
        changed.sort();
        let names = ["gone", "old", "other", "written-and-deleted"];
        assert_eq!(changed, names.map(name));
        assert_eq!(kept(&shelf), [("new", 91), ("old", 4), ("other", 5)]);
    }

    proptest! {
        /// However late and often news arrive, in the end the shelf is as the
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
            let mut shelf = Shelf::default();
            for ((name, version, put), _) in shuffled {
                if put {
                    shelf.put(name, version, version);
                } else {
                    shelf.remove(&name, version);
                }
            }
            let kept: BTreeMap<Name, u64> =
                shelf.iter().map(|(name, v)| (name.clone(), *v)).collect();
            prop_assert_eq!(kept, stored);
        }
    }
}
