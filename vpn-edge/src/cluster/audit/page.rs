//! A tenant's records in a ConfigMap: one line of JSON each, newest last.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use uuid::Uuid;

use crate::audit::{Outcome, Record};
use crate::cluster::{MANAGER, label};

/// The label selector of all such ConfigMaps.
pub const SELECTOR: &str = "app.kubernetes.io/name=vpn-edge-audit";

/// Annotation: the id of the newest record.
pub const LAST: &str = "vpn-edge.dev/last-record";

const NAME: &str = "vpn-edge-audit";

/// Key of the records.
const RECORDS: &str = "records";

/// Maximum size of the records in a ConfigMap, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// The name of a tenant's ConfigMap.
pub fn name(tenant: Uuid) -> String {
    format!("{NAME}-{tenant}")
}

/// A change to a tenant's records.
#[derive(Debug)]
pub enum Edit {
    Begin(Record),
    End(Uuid, Outcome),
}

/// A tenant's records, by id.
#[derive(Debug, Default)]
pub struct Page {
    pub records: Vec<Record>,
}

impl Page {
    pub fn read(map: &ConfigMap) -> Page {
        let text = map.data.as_ref().and_then(|data| data.get(RECORDS));
        let lines = text.map(String::as_str).unwrap_or_default().lines();
        let record = |line| match serde_json::from_str(line) {
            Ok(record) => Some(record),
            Err(error) => {
                let name = map.name_any();
                tracing::warn!(name, "skipping an invalid line of the audit log: {error}");
                None
            }
        };
        let mut records: Vec<Record> = lines.filter_map(record).collect();
        records.sort_by_key(|record| record.id);
        Page { records }
    }

    pub fn take(&mut self, edit: &Edit) {
        let place = |id: &Uuid| self.records.binary_search_by_key(id, |record| record.id);
        match edit {
            Edit::Begin(record) => {
                if let Err(place) = place(&record.id) {
                    self.records.insert(place, record.clone());
                }
            }
            Edit::End(id, outcome) => {
                // It may have been dropped to make room for later ones.
                if let Ok(place) = place(id) {
                    self.records[place].outcome = Some(outcome.clone());
                }
            }
        }
    }

    /// The ConfigMap with the newest records, at most `limit`.
    pub fn write(&self, tenant: Uuid, limit: usize, version: Option<String>) -> ConfigMap {
        let mut lines = Vec::new();
        // Remaining records and bytes.
        let mut room = (limit, MAX_BYTES);
        let mut lesser = (limit.div_ceil(2), MAX_BYTES / 2);
        let take = |room: &mut (usize, usize), bytes: usize| {
            let left = room.0.checked_sub(1).zip(room.1.checked_sub(bytes));
            *room = left.unwrap_or((0, 0));
            left.is_some()
        };
        for record in self.records.iter().rev() {
            let line = serde_json::to_string(record).expect("a record is plain data") + "\n";
            if record.is_lesser() && !take(&mut lesser, line.len()) {
                continue;
            }
            if !take(&mut room, line.len()) {
                break;
            }
            lines.push(line);
        }
        lines.reverse();
        let labels = [
            (label::NAME, NAME.to_owned()),
            (label::MANAGED_BY, MANAGER.to_owned()),
            (label::TENANT, tenant.to_string()),
        ];
        let last = self.records.last().map(|record| record.id.to_string());
        let annotations = [(LAST, last.unwrap_or_default())];
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name(tenant)),
                resource_version: version,
                labels: Some(labels.map(owned).into()),
                annotations: Some(annotations.map(owned).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(RECORDS.to_owned(), lines.concat())])),
            ..ConfigMap::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::audit::Action;

    fn record(number: u128, error: &str) -> Record {
        Record {
            id: Uuid::from_u128(number),
            time: Timestamp::from_second(1_800_000_000).unwrap(),
            tenant: Uuid::from_u128(7),
            organisation: "acme".to_owned(),
            caller: "token:0a1b2c3d".to_owned(),
            admin: false,
            action: Action::Disable,
            outcome: Some(Outcome::new(409, Some(error.to_owned()))),
        }
    }

    fn numbers(page: &Page) -> Vec<u128> {
        page.records.iter().map(|r| r.id.as_u128()).collect()
    }

    /// What is there after it was written and read.
    fn stored(page: &Page, limit: usize) -> (usize, Page) {
        let map = page.write(Uuid::from_u128(7), limit, None);
        let bytes = map.data.as_ref().unwrap()[RECORDS].len();
        (bytes, Page::read(&map))
    }

    #[test]
    fn records_stay_in_order_and_the_oldest_go_first() {
        let mut page = Page::default();
        for number in [3, 1, 2, 5, 4, 4] {
            page.take(&Edit::Begin(record(number, "VPN is not enabled")));
        }
        assert_eq!(numbers(&page), [1, 2, 3, 4, 5]);
        let (_, kept) = stored(&page, 3);
        // Half of them, as they are refused tries.
        assert_eq!(kept.records, page.records[3..]);
    }

    #[test]
    fn tries_and_downloads_push_out_no_change() {
        let mut page = Page::default();
        let mut change = record(1, "");
        change.outcome = Some(Outcome::new(200, None));
        page.take(&Edit::Begin(change));
        for number in 2..20 {
            let mut download = record(number, "");
            if number % 2 == 0 {
                download.action = Action::Download;
                download.outcome = Some(Outcome::new(200, None));
            }
            page.take(&Edit::Begin(download));
        }
        let (_, kept) = stored(&page, 4);
        assert_eq!(numbers(&kept), [1, 18, 19]);
        // However long they are.
        let words = "\"\\".repeat(2000);
        for number in 20..200 {
            page.take(&Edit::Begin(record(number, &words)));
        }
        let (_, kept) = stored(&page, 500);
        assert_eq!((numbers(&kept)[0], kept.records.len() > 20), (1, true));
    }

    #[test]
    fn an_outcome_finds_its_record_or_nothing() {
        let mut page = Page::default();
        page.take(&Edit::Begin(record(1, "first")));
        let outcome = Outcome::new(200, None);
        page.take(&Edit::End(Uuid::from_u128(1), outcome.clone()));
        page.take(&Edit::End(Uuid::from_u128(2), Outcome::new(500, None)));
        assert_eq!(numbers(&page), [1]);
        assert_eq!(page.records[0].outcome, Some(outcome));
    }

    #[test]
    fn a_config_map_stays_small_whatever_is_in_it() {
        let mut page = Page::default();
        for number in 0..500 {
            // Each character of which takes two bytes in JSON.
            let words = "\"\\".repeat(2000);
            let mut change = record(number, "");
            change.outcome = Some(Outcome::new(200, Some(words)));
            page.take(&Edit::Begin(change));
        }
        let (bytes, kept) = stored(&page, 500);
        assert!(bytes <= MAX_BYTES, "{bytes}");
        assert!(
            bytes > MAX_BYTES - 2000,
            "no more goes than has to: {bytes}"
        );
        assert_eq!(kept.records.last(), page.records.last());
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let mut page = Page::default();
        page.take(&Edit::Begin(record(1, "first")));
        let mut map = page.write(Uuid::from_u128(7), 10, None);
        let text = map.data.as_mut().unwrap().get_mut(RECORDS).unwrap();
        text.insert_str(0, "somebody was here\n");
        assert_eq!(numbers(&Page::read(&map)), [1]);
    }
}
