//! Conversion between resources and tenants.
//!
//! The keys Secret has a tenant's port, keys and generation; the spec has the rest.
//! The status is a view of both, except for observations: the phase of that
//! generation, since when, and why.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource as _, ResourceExt as _};
use uuid::Uuid;

use crate::cluster::port_service::PortService;
use crate::cluster::{KEYS, VpnTenant, label};
use crate::domain::subnet::{is_tunnel_subnet, tunnel_subnet};
use crate::domain::{Allocation, Keys, State, Tenant, Vpn};
use crate::wireguard::{ClientKey, KeyError, PrivateKey, PublicKey};

/// Type of the keys Secret, which is immutable.
pub const KEYS_TYPE: &str = "vpn-edge.dev/keys";

/// A key of the Secret that earlier versions did not write.
const SUBNET: &str = "subnet";

/// Generations start at the tenant's creation in milliseconds and grow by one per
/// change. One that is further ahead than this was not written by a controller.
const MAX_GENERATION_LEAD: u64 = 1 << 32;

/// The condition of a resource that is a tenant.
pub const ACCEPTED: &str = "Accepted";

/// A tenant's stored keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKeys {
    pub port: u16,
    /// The tunnel's subnet; none if an earlier version stored the keys.
    pub subnet: Option<Ipv4Net>,
    pub keys: Keys,
    pub created_at: Timestamp,
    pub generation: u64,
    /// The spec's keyGeneration for which the keys were made.
    pub key_generation: i64,
}

impl StoredKeys {
    /// The stored form of these keys.
    pub fn of(allocation: &Allocation, generation: u64, key_generation: i64) -> Self {
        let Allocation {
            port,
            subnet,
            keys,
            created_at,
        } = allocation.clone();
        Self {
            port,
            subnet: Some(subnet),
            keys,
            created_at,
            generation,
            key_generation,
        }
    }
}

/// The Secret that stores them.
#[derive(Clone, Debug)]
pub struct KeysSecret {
    pub uid: String,
    pub version: String,
    /// UID of the VpnTenant that owns it.
    pub owner: Option<String>,
    /// None if it is not ours or cannot be parsed.
    pub kept: Option<StoredKeys>,
}

/// All objects of a tenant.
#[derive(Clone, Debug)]
pub struct TenantObjects {
    pub namespace: String,
    pub resource: Arc<VpnTenant>,
    pub keys: Option<KeysSecret>,
    /// The gateway's Service.
    pub service: Option<PortService>,
}

/// The resource's version as a number; zero for resources that were never stored.
pub fn version(meta: &ObjectMeta) -> u64 {
    let version = meta.resource_version.as_deref();
    version.and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn keys_secret(secret: &Secret) -> KeysSecret {
    let mut owners = secret.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true));
    KeysSecret {
        uid: secret.uid().unwrap_or_default(),
        version: secret.resource_version().unwrap_or_default(),
        owner: owner.map(|owner| owner.uid.clone()),
        kept: kept(secret),
    }
}

fn kept(secret: &Secret) -> Option<StoredKeys> {
    if secret.type_.as_deref() != Some(KEYS_TYPE) {
        return None;
    }
    let data = secret.data.as_ref()?;
    let text = |name: &str| std::str::from_utf8(&data.get(name)?.0).ok();
    let key = |name: &str| PrivateKey::from_base64(text(name)?).ok();
    let client = match text("clientPublicKey") {
        Some(given) => ClientKey::Given(given.parse().ok()?),
        None => ClientKey::Made(key("clientPrivateKey")?),
    };
    let subnet = match data.get(SUBNET) {
        Some(_) => Some(subnet(text(SUBNET)?)?),
        None => None,
    };
    Some(StoredKeys {
        port: text("port")?.parse().ok().filter(|port| *port >= 1024)?,
        subnet,
        keys: Keys {
            server: key("serverPrivateKey")?,
            client,
        },
        created_at: text("createdAt")?.parse().ok()?,
        generation: text("generation")?.parse().ok()?,
        key_generation: text("keyGeneration")?.parse().ok().filter(|of| *of >= 0)?,
    })
}

/// The subnet, if it can be a tunnel's.
fn subnet(text: &str) -> Option<Ipv4Net> {
    let subnet: Ipv4Net = text.parse().ok()?;
    is_tunnel_subnet(subnet).then_some(subnet)
}

/// The Secret for these keys; with a version, to replace an existing one.
pub fn secret(tenant: &VpnTenant, kept: &StoredKeys, version: Option<String>) -> Secret {
    let StoredKeys {
        port,
        subnet,
        keys,
        created_at,
        generation,
        key_generation,
    } = kept;
    let client = match &keys.client {
        ClientKey::Made(key) => ("clientPrivateKey", key.to_base64().to_string()),
        ClientKey::Given(key) => ("clientPublicKey", key.to_string()),
    };
    let data = [
        ("port", port.to_string()),
        ("generation", generation.to_string()),
        ("keyGeneration", key_generation.to_string()),
        ("createdAt", created_at.to_string()),
        ("serverPrivateKey", keys.server.to_base64().to_string()),
        client,
    ];
    let subnet = subnet.map(|subnet| (SUBNET, subnet.to_string()));
    let bytes = |(name, value): (&str, String)| (name.to_owned(), ByteString(value.into_bytes()));
    Secret {
        metadata: ObjectMeta {
            name: Some(KEYS.to_owned()),
            namespace: tenant.namespace(),
            resource_version: version,
            labels: Some(labels(tenant, *generation)),
            owner_references: owner(tenant),
            ..ObjectMeta::default()
        },
        type_: Some(KEYS_TYPE.to_owned()),
        data: Some(data.into_iter().chain(subnet).map(bytes).collect()),
        ..Secret::default()
    }
}

/// Labels of a tenant's objects, without the name by which gateways are found.
pub fn labels(tenant: &VpnTenant, generation: u64) -> BTreeMap<String, String> {
    [
        (label::MANAGED_BY, "vpn-edge".to_owned()),
        (label::TENANT, tenant.spec.id.clone()),
        (label::GENERATION, generation.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The owner reference of objects that are deleted with their VpnTenant.
pub fn owner(tenant: &VpnTenant) -> Option<Vec<OwnerReference>> {
    Some(vec![tenant.controller_owner_ref(&())?])
}

/// When a resource was created.
pub fn created(tenant: &VpnTenant) -> Timestamp {
    let time = tenant.metadata.creation_timestamp.as_ref();
    time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

impl TenantObjects {
    /// The keys, if they belong to this VpnTenant and not to a deleted one, and have
    /// a possible generation.
    pub fn kept(&self) -> Option<&StoredKeys> {
        let keys = self.keys.as_ref()?;
        let ours = keys.owner.is_some() && keys.owner == self.resource.metadata.uid;
        let newest = self.last_generation().saturating_add(MAX_GENERATION_LEAD);
        let kept = keys.kept.as_ref().filter(|_| ours)?;
        (kept.generation <= newest).then_some(kept)
    }

    /// Whether the gateway's Service holds this port.
    pub fn reserves(&self, port: u16) -> bool {
        let service = self.service.as_ref();
        service.is_some_and(|service| service.ports.contains(&port))
    }

    /// Whether the status names this port for keys of this generation.
    pub fn publishes(&self, port: u16, generation: u64) -> bool {
        self.resource.status.as_ref().is_some_and(|status| {
            status.port == Some(port) && u64::try_from(status.generation) == Ok(generation)
        })
    }

    pub fn deleting(&self) -> bool {
        self.resource.metadata.deletion_timestamp.is_some()
    }

    /// The port of the gateway's Service.
    pub fn reserved_port(&self) -> Option<u16> {
        self.service.as_ref()?.ports.first().copied()
    }

    /// The client-provided public key of the spec.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for its author.
    pub fn given(&self) -> Result<Option<PublicKey>, String> {
        let text = self.resource.spec.vpn.client_public_key.as_deref();
        let key = text.map(str::parse).transpose();
        key.map_err(|error: KeyError| format!("spec.vpn.clientPublicKey: {error}"))
    }

    /// # Errors
    ///
    /// Why the spec is not a tenant's, for its author.
    pub fn tenant(&self, cluster_ranges: &[IpNet]) -> Result<Tenant, String> {
        let made = created(&self.resource);
        let mut tenant = self.resource.spec.tenant(&self.namespace, made)?;
        self.given()?;
        tenant.vpn = self.vpn(tenant.id, cluster_ranges)?;
        let keys = self.keys.as_ref().map_or("", |keys| &keys.version);
        tenant.version = version(&self.resource.metadata).max(keys.parse().unwrap_or(0));
        Ok(tenant)
    }

    /// The subnet of the tunnel with these keys. For keys that were stored without
    /// one, it is the subnet in the status, or the one that the earlier version would
    /// have computed.
    fn subnet(
        &self,
        kept: &StoredKeys,
        id: Uuid,
        cluster_ranges: &[IpNet],
    ) -> Result<Ipv4Net, String> {
        let status = self.resource.status.as_ref();
        let told = || subnet(status?.subnet.as_ref()?);
        match kept.subnet.or_else(told) {
            Some(subnet) => Ok(subnet),
            None => tunnel_subnet(id, cluster_ranges).map_err(|error| error.to_string()),
        }
    }

    fn vpn(&self, id: Uuid, cluster_ranges: &[IpNet]) -> Result<Vpn, String> {
        let status = self.resource.status.as_ref();
        let phase = status.and_then(|status| status.phase);
        let since = status.and_then(|status| status.since.as_ref());
        let since = since.map_or_else(|| created(&self.resource), |since| since.0);
        let reason = status.and_then(|status| status.reason.clone());
        let last = self.last_generation();
        let Some(kept) = self.kept() else {
            // The phase of a resource that was refused says nothing about a VPN, and
            // without the Secret there is no port.
            let attempted = status.is_some_and(|s| s.port.is_none() && !refused(s));
            let state = match phase {
                _ if !self.resource.spec.plan.has_vpn() => State::Unavailable,
                Some(State::Failed) if attempted && reason.is_some() => State::Failed,
                _ => State::Disabled,
            };
            return Ok(Vpn {
                state,
                generation: last,
                since,
                failure: reason.filter(|_| state == State::Failed),
                allocation: None,
            });
        };
        let port = kept.port;
        // Anybody who may write the Secret may write any port into it.
        let reserved = self.reserves(port) || self.publishes(port, kept.generation);
        let current = reserved
            && status.is_some_and(|status| {
                u64::try_from(status.generation) == Ok(kept.generation) && !refused(status)
            });
        let (state, since) = match phase {
            Some(phase @ (State::Enabling | State::Enabled | State::Failed)) if current => {
                (phase, since)
            }
            _ => (State::Enabling, kept.created_at),
        };
        let reason = reason.unwrap_or_else(|| "the reason was lost".to_owned());
        Ok(Vpn {
            state,
            generation: kept.generation,
            since,
            failure: (state == State::Failed).then_some(reason),
            allocation: Some(Allocation {
                port,
                subnet: self.subnet(kept, id, cluster_ranges)?,
                keys: kept.keys.clone(),
                created_at: kept.created_at,
            }),
        })
    }

    /// The highest generation that the tenant is known to have had. It starts at the
    /// tenant's creation in milliseconds, which changes cannot outrun, so that a
    /// tenant that was deleted and created again continues above its last generation.
    fn last_generation(&self) -> u64 {
        let status = self.resource.status.as_ref();
        let stored = status.map_or(0, |status| status.generation);
        let created = created(&self.resource).as_millisecond();
        u64::try_from(stored.max(created)).unwrap_or(0)
    }
}

fn refused(status: &crate::cluster::VpnTenantStatus) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|condition| condition.type_ == ACCEPTED && condition.status == "False")
}
