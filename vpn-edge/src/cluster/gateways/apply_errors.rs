//! Gateways that run with an outdated spec because the API server refuses the desired
//! one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Error, ResourceExt as _};
use uuid::Uuid;

use super::KubeGateways;
use super::objects::{self, annotation};

/// By namespace, the tenant and the API server's message.
pub type ApplyErrors = BTreeMap<String, (Uuid, String)>;

/// The kind of an object that could not be applied, and why.
pub type NotApplied = (Cow<'static, str>, Error);

/// As an error, with the API server's message if it refused.
pub fn describe((kind, error): NotApplied) -> anyhow::Error {
    match error {
        Error::Api(status) if !status.message.is_empty() => {
            anyhow!("the cluster refuses its {kind}: {}", status.message)
        }
        error => anyhow::Error::from(error).context(format!("cannot apply its {kind}")),
    }
}

impl KubeGateways {
    /// Records the outcome of updating a gateway.
    pub(super) fn note(&self, namespace: &str, tenant: Uuid, outcome: &Result<()>) {
        let mut errors = self.errors.lock().expect("no panic under this lock");
        let changed = match outcome {
            Ok(()) => errors.remove(namespace).is_some(),
            Err(error) => {
                let words = format!("cannot update the gateway: {error:#}");
                let noted = (tenant, words);
                errors.insert(namespace.to_owned(), noted.clone()) != Some(noted)
            }
        };
        drop(errors);
        if changed {
            self.changed();
        }
    }

    /// The gateways that are not up to date, and why.
    pub(super) fn apply_errors(&self) -> BTreeMap<Uuid, String> {
        let mut errors = self.errors.lock().expect("no panic under this lock");
        if errors.is_empty() {
            return BTreeMap::new();
        }
        errors.retain(|namespace, _| {
            let placed = self.placed_in(namespace);
            placed.is_some_and(|(place, shape, deployment)| {
                let wanted = objects::deployment(&place, &shape, &self.settings);
                let applied = |of: &Deployment| of.annotations().get(annotation::APPLIED).cloned();
                applied(&wanted) != applied(&deployment)
            })
        });
        errors.values().cloned().collect()
    }
}
