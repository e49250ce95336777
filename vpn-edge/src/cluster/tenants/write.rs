//! Carries out a change of a tenant, step by step.
//!
//! Order: the spec says what is desired; a Service takes the port, which the API
//! server allocates to only one; the keys Secret is the commit; the status reports
//! the result. Each step applies only if the object is still as it was read. A
//! process that stops between two steps leaves the tenant in its previous state, with
//! a spec that says what is desired: the reconciler continues from there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{Patch, PatchParams, ValidationDirective};
use kube::core::Status;
use kube::{Api, Error, ResourceExt as _};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use zeroize::Zeroize as _;

use super::blocker::Blocker;
use super::convert::{StoredKeys, TenantObjects, secret};
use super::index::{Offer, Validity};
use super::reconcile::{self, Step};
use super::request::{WriteError, exactly, params, patching, storage, with_timeout};
use super::{Inner, port_reservation, status};
use crate::backoff::Backoff;
use crate::cluster::port_service::PortService;
use crate::cluster::{FINALIZER, GATEWAY, KEYS, TENANT, VpnTenant, VpnTenantSpec, VpnTenantStatus};
use crate::domain::{State, Tenant, VpnError};
use crate::registry::{Change, RegistryError, UpdateError};
use crate::wireguard::PublicKey;

/// How many refused ports a change tries before it gives up.
const REFUSALS: u32 = 256;

/// How often a change is retried after conflicts before it gives up.
const RUNS: u32 = 16;

/// First pause after a conflict; doubled up to the longest, and randomised.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Keys must be stored within this time after their port was reserved.
const PROMPT: Duration = Duration::from_secs(30);

const OLD_DEFINITION: &str = "the cluster's VpnTenant definition is older than this controller: \
                              apply the new manifests";

/// The patch of the spec for a change. Only API calls change the spec; the reconciler
/// does not.
fn patch(view: &TenantObjects, before: &Tenant, after: &Tenant, asked: bool) -> Option<Value> {
    let mut spec = Map::new();
    let mut set = |name: &str, value: Value| spec.insert(name.to_owned(), value);
    if asked {
        let fields = |tenant: &Tenant| match json!(VpnTenantSpec::of(tenant)) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let (old, new) = (fields(before), fields(after));
        for name in old.keys().chain(new.keys()) {
            // A field that is left out has its default.
            if old.get(name) != new.get(name) {
                set(name, new.get(name).cloned().unwrap_or_default());
            }
        }
        // Observations of a gateway also change the state, but not the spec.
        let holds = |tenant: &Tenant| tenant.vpn.allocation.is_some();
        let began =
            after.vpn.generation != before.vpn.generation && before.vpn.state != State::Enabled;
        let enabled = !matches!(after.vpn.state, State::Unavailable | State::Disabled);
        let requested = began || holds(after) != holds(before);
        let mut vpn = Map::new();
        if requested && enabled != view.resource.spec.vpn.enabled {
            vpn.insert("enabled".to_owned(), json!(enabled));
        }
        if let Some(allocation) = &after.vpn.allocation
            && after.vpn.generation != before.vpn.generation
        {
            let given = allocation.keys.client.given().map(|key| key.to_string());
            if given != view.resource.spec.vpn.client_public_key {
                vpn.insert("clientPublicKey".to_owned(), json!(given));
            }
        }
        if !vpn.is_empty() {
            set("vpn", Value::Object(vpn));
        }
    }
    let mut patch = json!({ "metadata": { "resourceVersion": view.resource.resource_version() } });
    let mut finalizers = view.resource.finalizers().to_vec();
    let guarded = finalizers.iter().any(|name| name == FINALIZER);
    let guard = after.vpn.allocation.is_some() && !guarded;
    if guard {
        finalizers.push(FINALIZER.to_owned());
        patch["metadata"]["finalizers"] = json!(finalizers);
    }
    let changes = guard || !spec.is_empty();
    if !spec.is_empty() {
        patch["spec"] = Value::Object(spec);
    }
    changes.then_some(patch)
}

/// Whether the API server reports an unknown field.
fn is_unknown_field(status: &Status) -> bool {
    matches!(status.code, 400 | 422) && status.message.contains("unknown field")
}

/// The client-provided key of a tenant with keys, if there is one.
fn given(tenant: &Tenant) -> Option<Option<PublicKey>> {
    let allocation = tenant.vpn.allocation.as_ref()?;
    Some(allocation.keys.client.given())
}

/// Whether the API server reports that a port is already allocated.
fn is_port_taken(status: &Status) -> bool {
    status.is_invalid() && status.message.contains("port is already allocated")
}

impl Inner {
    /// Runs a change until it succeeds or is refused. A change that carries out a
    /// step of the spec runs only as long as that is still the tenant's next step.
    pub async fn update(
        &self,
        id: Uuid,
        mut change: Change,
        step: Option<Step>,
    ) -> Result<Tenant, UpdateError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let (mut runs, mut refusals) = (0, 0);
        let mut requested = None;
        loop {
            match self.run(id, &mut change, step, &mut requested).await {
                Ok(tenant) => return Ok(tenant),
                Err(WriteError::Failed(error)) => return Err(error),
                Err(WriteError::Taken(port)) => {
                    refusals += 1;
                    if refusals == REFUSALS {
                        return Err(VpnError::NoPortsAvailable.into());
                    }
                    self.with(|index| index.refuse(port, Timestamp::now()));
                }
                Err(WriteError::Conflict) => {
                    runs += 1;
                    if runs == RUNS {
                        let why = "too many concurrent changes of the tenant; try again";
                        return Err(RegistryError::Storage(why.into()).into());
                    }
                    sleep(backoff.varied()).await;
                    let place = self.with(|index| index.find(id).map(|(view, _)| view.namespace));
                    if let Some(namespace) = place {
                        self.refresh(&namespace).await.map_err(storage)?;
                    }
                }
            }
        }
    }

    /// Runs a change once. `requested` is the result that the spec now asks for: the
    /// leader may have carried it out first, which is not a refusal.
    async fn run(
        &self,
        id: Uuid,
        change: &mut Change,
        step: Option<Step>,
        requested: &mut Option<Tenant>,
    ) -> Result<Tenant, WriteError> {
        let asked = step.is_none();
        let found = self.with(|index| {
            let (view, before) = index.find(id)?;
            let reservation = index.reservation(&view, &self.settings.pools);
            Some((view, before, reservation))
        });
        let (mut view, before, reservation) = found.ok_or(UpdateError::NotFound)?;
        if let Some(step) = step {
            // The step may have been carried out or revoked since it was read.
            let validity = Validity::Tenant(Arc::clone(&before));
            if reconcile::next(&view, &validity, reservation, Timestamp::now()) != Some(step) {
                return Ok(Arc::unwrap_or_clone(before));
            }
        }
        let before = Arc::unwrap_or_clone(before);
        let mut after = before.clone();
        let mut offer = Offer::new(|| {
            let now = Timestamp::now();
            self.with(|index| index.pool(&self.settings.pools, &view, &before, now))
        });
        match change(&mut after, &mut offer) {
            Err(VpnError::BeingEnabled | VpnError::AlreadyEnabled | VpnError::NotEnabled)
                if requested.as_ref().map(given) == Some(given(&before)) =>
            {
                return Ok(before);
            }
            outcome => outcome.map_err(UpdateError::from)?,
        }
        if after == before {
            return Ok(before);
        }
        // The leader was first, and its gateway may answer already.
        let was_first = |requested: &Tenant| {
            given(requested) == given(&before) && before.vpn.generation >= requested.vpn.generation
        };
        if after.vpn.generation != before.vpn.generation
            && requested.as_ref().is_some_and(was_first)
        {
            return Ok(before);
        }
        if let Some(key) = given(&after)
            && after.vpn.generation != before.vpn.generation
            && view.given() != Ok(key)
        {
            if !asked {
                // The spec asks for another key meanwhile: that is the next step.
                return Ok(before);
            }
            // Another call has asked for that key and is carried out first.
            let pending = match given(&before) {
                Some(kept) => view.given() != Ok(kept),
                None => before.vpn.state == State::Disabled,
            };
            if pending && view.resource.spec.vpn.enabled {
                return Err(UpdateError::from(VpnError::BeingEnabled).into());
            }
        }
        let mut committed = false;
        if let Some(patch) = patch(&view, &before, &after, asked) {
            view.resource = self.patch_tenant(&view.namespace, &patch).await?.into();
            committed = true;
            if asked && patch.get("spec").is_some() {
                *requested = Some(after.clone());
            }
        }
        match &after.vpn.allocation {
            Some(allocation) => {
                let made = before.vpn.allocation.as_ref() != Some(allocation)
                    || before.vpn.generation != after.vpn.generation;
                if made {
                    let key_generation = view.resource.spec.vpn.key_generation;
                    let kept = StoredKeys::of(allocation, after.vpn.generation, key_generation);
                    self.store(&view, &before, &kept).await?;
                    committed = true;
                }
            }
            None if before.vpn.allocation.is_some() => {
                self.revoke(&mut view).await?;
                committed = true;
            }
            None => {}
        }
        self.publish(&view.namespace, &after, committed).await?;
        Ok(after)
    }

    /// Stores keys, once their port is reserved for the tenant.
    async fn store(
        &self,
        view: &TenantObjects,
        before: &Tenant,
        kept: &StoredKeys,
    ) -> Result<(), WriteError> {
        let start = Instant::now();
        let port = kept.port;
        if before.vpn.allocation.as_ref().map(|a| a.port) != Some(port) {
            self.reserve(view, kept).await?;
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &view.namespace);
        let mut version = None;
        if let Some(keys) = &view.keys {
            if keys.kept.is_some() {
                version = Some(keys.version.clone());
            } else {
                // The type of a Secret is immutable, so it is deleted first.
                self.delete_keys(view).await?;
            }
        }
        if start.elapsed() > PROMPT {
            return Err(WriteError::Conflict);
        }
        let mut secret = secret(&view.resource, kept, version.clone());
        let params = params();
        let stored = match version {
            Some(_) => with_timeout(secrets.replace(KEYS, &params, &secret)).await,
            None => with_timeout(secrets.create(&params, &secret)).await,
        };
        for value in secret.data.iter_mut().flat_map(|data| data.values_mut()) {
            value.0.zeroize();
        }
        self.put(stored?);
        Ok(())
    }

    async fn reserve(&self, view: &TenantObjects, kept: &StoredKeys) -> Result<(), WriteError> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &view.namespace);
        let version = view
            .service
            .as_ref()
            .map(|service| service.version.as_str());
        if view
            .service
            .as_ref()
            .is_some_and(|service| service.deleting)
        {
            return Err(WriteError::Conflict);
        }
        let reservation = port_reservation::service(view, kept, version, Timestamp::now());
        let answer = if version.is_some() {
            let patch = Patch::Merge(&reservation);
            with_timeout(services.patch(GATEWAY, &patching(), &patch)).await
        } else {
            let reservation = serde_json::from_value(reservation).expect("a Service by its form");
            with_timeout(services.create(&params(), &reservation)).await
        };
        match answer {
            Ok(service) => {
                self.put(service);
                Ok(())
            }
            Err(Error::Api(status)) if is_port_taken(&status) => {
                let port = kept.port;
                tracing::info!(
                    port,
                    "port not available; trying another: {}",
                    status.message
                );
                Err(WriteError::Taken(port))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the tenant's keys. The status gets their generation first, so that
    /// later keys always have a higher one.
    async fn revoke(&self, view: &mut TenantObjects) -> Result<(), WriteError> {
        let generation = view.kept().map_or(0, |kept| kept.generation.cast_signed());
        let known = view
            .resource
            .status
            .as_ref()
            .map(|status| status.generation);
        if known < Some(generation) {
            let patch = json!({
                "metadata": { "resourceVersion": view.resource.resource_version() },
                "status": { "generation": generation },
            });
            view.resource = self.patch_status(&view.namespace, &patch).await?.into();
        }
        self.delete_keys(view).await
    }

    /// Deletes the Secret in the version that was read, and no later one.
    pub async fn delete_keys(&self, view: &TenantObjects) -> Result<(), WriteError> {
        let Some(keys) = &view.keys else {
            return Ok(());
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &view.namespace);
        let params = exactly(&keys.uid, &keys.version);
        with_timeout(secrets.delete(KEYS, &params)).await?;
        let version = keys.version.parse().unwrap_or(0);
        self.remove_if(|index| index.absent_keys(&view.namespace, version));
        Ok(())
    }

    /// Deletes the gateway's Service in the version that was read, and no later one.
    pub async fn delete_service(
        &self,
        namespace: &str,
        service: &PortService,
    ) -> Result<(), WriteError> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let params = exactly(&service.uid, &service.version);
        with_timeout(services.delete(GATEWAY, &params)).await?;
        let version = service.version.parse().unwrap_or(0);
        self.remove_if(|index| index.absent_service(namespace, version));
        Ok(())
    }

    /// Writes the status of a tenant after a change. If the change is already
    /// committed, a failure is not an error: the reconciler writes the status later.
    async fn publish(
        &self,
        namespace: &str,
        tenant: &Tenant,
        committed: bool,
    ) -> Result<(), WriteError> {
        let known = self.with(|index| {
            let view = index.view(namespace)?;
            let reservation = index.reservation(&view, &self.settings.pools);
            Some((view, reservation))
        });
        let Some((view, reservation)) = known else {
            return Ok(());
        };
        let (blocker, now) = (Blocker::Unknown, Timestamp::now());
        let status = status::of(&view, tenant, reservation, &blocker, &self.settings, now);
        match self.write_status(&view, &status).await {
            outcome if !committed => return outcome,
            Ok(()) => return Ok(()),
            Err(_) => {}
        }
        if let Err(WriteError::Failed(error)) = self.show(namespace, &blocker).await {
            tracing::warn!(
                namespace,
                "cannot write VpnTenant status; retrying: {error}"
            );
        }
        Ok(())
    }

    /// Writes the tenant's current status.
    pub async fn show(&self, namespace: &str, blocker: &Blocker) -> Result<(), WriteError> {
        for _ in 0..RUNS {
            let now = Timestamp::now();
            let known = self.with(|index| {
                let view = index.view(namespace)?;
                let validity = index.validity(&view);
                let reservation = index.reservation(&view, &self.settings.pools);
                Some((view, validity, reservation))
            });
            let Some((view, validity, reservation)) = known else {
                return Ok(());
            };
            let status = match (&validity, validity.refusal()) {
                (_, Some((reason, message))) => status::refused(&view, reason, &message, now),
                (Validity::Tenant(tenant), _) => {
                    status::of(&view, tenant, reservation, blocker, &self.settings, now)
                }
                _ => return Ok(()),
            };
            match self.write_status(&view, &status).await {
                Err(WriteError::Conflict) => self.refresh(namespace).await?,
                outcome => return outcome,
            }
        }
        Err(WriteError::Conflict)
    }

    /// Writes a status that differs from the view's.
    pub async fn write_status(
        &self,
        view: &TenantObjects,
        status: &VpnTenantStatus,
    ) -> Result<(), WriteError> {
        if view.resource.status.as_ref() == Some(status) {
            return Ok(());
        }
        let mut resource = (*view.resource).clone();
        resource.metadata.managed_fields = None;
        resource.status = Some(status.clone());
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), &view.namespace);
        let written = with_timeout(tenants.replace_status(TENANT, &params(), &resource)).await?;
        self.put(written);
        Ok(())
    }

    pub async fn patch_tenant(
        &self,
        namespace: &str,
        patch: &Value,
    ) -> Result<VpnTenant, WriteError> {
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(patch);
        // With an older definition, the API server would silently drop an unknown
        // field, and a client that provided a key would get a generated one.
        let params = PatchParams {
            field_validation: Some(ValidationDirective::Strict),
            ..patching()
        };
        let patched = with_timeout(tenants.patch(TENANT, &params, &patch)).await;
        let patched = patched.map_err(|error| match &error {
            Error::Api(status) if is_unknown_field(status) => {
                WriteError::Failed(RegistryError::Refused(OLD_DEFINITION.to_owned()).into())
            }
            _ => error.into(),
        })?;
        self.put(patched.clone());
        Ok(patched)
    }

    async fn patch_status(&self, namespace: &str, patch: &Value) -> Result<VpnTenant, WriteError> {
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(patch);
        let patched = with_timeout(tenants.patch_status(TENANT, &patching(), &patch)).await?;
        self.put(patched.clone());
        Ok(patched)
    }

    /// Reads the current objects of a tenant.
    pub async fn refresh(&self, namespace: &str) -> Result<(), Error> {
        let tenants: Api<VpnTenant> = Api::namespaced(self.client.clone(), namespace);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        // Objects that arrive meanwhile are newer than the answer that there is none.
        let [tenant, keys, service] = self.with(|index| index.versions(namespace));
        match with_timeout(tenants.get_opt(TENANT)).await? {
            Some(found) => self.put(found),
            None => self.remove_if(|index| index.absent_tenant(namespace, tenant)),
        }
        match with_timeout(secrets.get_opt(KEYS)).await? {
            Some(found) => self.put(found),
            None => self.remove_if(|index| index.absent_keys(namespace, keys)),
        }
        match with_timeout(services.get_opt(GATEWAY)).await? {
            Some(found) => self.put(found),
            None => self.remove_if(|index| index.absent_service(namespace, service)),
        }
        Ok(())
    }
}
