//! The Service that reserves a port.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::convert::{StoredKeys, TenantObjects, labels, owner};
use crate::cluster::port_service::{CLAIMED, spec};
use crate::cluster::{GATEWAY, GATEWAY_PORT, label};

/// An unused reservation is dropped after this long: longer than its creator may
/// still take to store keys.
pub const RESERVATION_TIMEOUT: SignedDuration = SignedDuration::from_mins(5);

/// The Service that holds a port for a tenant until there is a gateway.
///
/// A reservation that is repeated soon is unchanged and causes no event, so that the
/// reconciler does not react to its own attempts.
pub fn service(
    view: &TenantObjects,
    kept: &StoredKeys,
    version: Option<&str>,
    now: Timestamp,
) -> Value {
    let tenant = &view.resource;
    let claimed = claimed(view, kept, now).unwrap_or(now);
    let port = kept.port;
    let mut labels = json!(labels(tenant, kept.generation));
    let mut annotations = json!({ CLAIMED: claimed.to_string() });
    if version.is_some() {
        // It belongs to no gateway any more: removing the old gateway leaves it
        // alone.
        labels[label::NAME] = Value::Null;
        annotations[GATEWAY_PORT] = Value::Null;
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": GATEWAY,
            "namespace": tenant.namespace(),
            "resourceVersion": version,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": owner(tenant),
        },
        "spec": spec(&tenant.spec.id, kept.generation, port),
    })
}

/// When the same reservation was made before, if that is recent.
fn claimed(view: &TenantObjects, kept: &StoredKeys, now: Timestamp) -> Option<Timestamp> {
    let service = view.service.as_ref()?;
    let same = !service.gateway && service.ports == [kept.port];
    let claimed = service.claimed.filter(|_| same)?;
    (now.duration_since(claimed).abs() < RESERVATION_TIMEOUT / 2).then_some(claimed)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MADE, at, kept, view};
    use super::*;

    #[test]
    fn a_claim_that_is_made_over_soon_is_no_news() {
        let mut view = view(30_000, 1);
        let kept = kept(30_000, 1);
        let time = |view: &TenantObjects, at| {
            let service = service(view, &kept, Some("7"), at);
            service["metadata"]["annotations"][CLAIMED].clone()
        };
        assert_eq!(
            time(&view, at(MADE)),
            at(MADE).to_string(),
            "a hand-made one"
        );
        let first = service(&view, &kept, Some("7"), at(MADE));
        let held = view.service.as_mut().unwrap();
        held.claimed = Some(at(MADE));
        assert_eq!(service(&view, &kept, Some("7"), at(MADE + 149)), first);
        // It counts from now on, before it would be taken for nobody's.
        let late = at(MADE + 150);
        assert_eq!(time(&view, late), late.to_string());
        let held = view.service.as_mut().unwrap();
        held.ports = vec![30_001];
        assert_eq!(
            time(&view, at(MADE + 1)),
            at(MADE + 1).to_string(),
            "another port"
        );
        let held = view.service.as_mut().unwrap();
        (held.ports, held.gateway) = (vec![30_000], true);
        assert_eq!(
            time(&view, at(MADE + 1)),
            at(MADE + 1).to_string(),
            "a gateway's"
        );
    }
}
