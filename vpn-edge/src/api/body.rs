//! The API's JSON bodies, for the server and its client. No body has a secret.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::schema;
use crate::audit::{Action, Outcome, Record};
use crate::domain::tenant::{InvalidTenant, check_networks, check_versions};
use crate::domain::{Plan, Ports, State, Tenant};
use crate::wireguard::PublicKey;

/// `POST /v1/tenants`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Random when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::id_or_null)]
    pub id: Option<Uuid>,
    #[schema(schema_with = schema::organisation)]
    pub organisation: String,
    pub plan: Plan,
    #[serde(default)]
    pub ready: bool,
    /// Derived from the ID when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::namespace_or_null)]
    pub namespace: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schema::networks)]
    pub networks: Vec<IpNet>,
}

/// `PATCH /v1/tenants/{id}`: fields that are left out stay unchanged.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchTenant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::networks_or_null)]
    pub networks: Option<Vec<IpNet>>,
}

/// `POST /v1/tenants/{id}/vpn/enable` and `…/regenerate`, where it may be left
/// out.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeys {
    /// The client's public key; its private key stays with the client. When left
    /// out, keys are generated for both ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::key_or_null)]
    pub public_key: Option<String>,
}

/// A tenant.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantBody {
    pub id: Uuid,
    #[schema(schema_with = schema::organisation)]
    pub organisation: String,
    pub plan: Plan,
    pub ready: bool,
    #[schema(schema_with = schema::namespace)]
    pub namespace: String,
    #[schema(schema_with = schema::networks)]
    pub networks: Vec<IpNet>,
    pub vpn: TenantVpn,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantVpn {
    pub state: State,
}

/// `GET /v1/tenants`.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    pub tenants: Vec<TenantBody>,
}

/// A tenant's VPN. All fields are present in every state, and null without a value;
/// only the IPv6 fields of the tunnel are left out.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VpnStatus {
    pub state: State,
    /// `host:port`.
    pub endpoint: Option<String>,
    pub port: Option<u16>,
    #[schema(schema_with = schema::ipv4_network_or_null)]
    pub subnet: Option<Ipv4Net>,
    #[schema(schema_with = schema::ipv4_or_null)]
    pub client_address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::ipv6_network_or_null)]
    pub subnet6: Option<Ipv6Net>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::ipv6_or_null)]
    pub client_address6: Option<Ipv6Addr>,
    #[schema(schema_with = schema::key_or_null)]
    pub server_public_key: Option<PublicKey>,
    #[schema(schema_with = schema::key_or_null)]
    pub client_public_key: Option<PublicKey>,
    /// Whether the client provided its public key; otherwise its keys were
    /// generated here.
    pub client_key_given: Option<bool>,
    /// When the keys were generated or provided, to the second.
    pub created_at: Option<Timestamp>,
    pub generation: u64,
    /// When the state was entered, to the second.
    pub since: Timestamp,
    /// Why the VPN failed.
    pub failure: Option<String>,
}

/// `GET /v1/audit`: what callers did, newest first.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditList {
    pub records: Vec<AuditRecord>,
    /// The value of `before` for older records; null when there are none.
    pub next: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    pub id: Uuid,
    /// When the action began, to the millisecond.
    pub time: Timestamp,
    pub tenant: Uuid,
    /// The tenant's organisation.
    pub organisation: String,
    /// `oidc:SUB`, with the e-mail address if the issuer verified it, or
    /// `token:HASH`.
    pub caller: String,
    /// Whether the caller is an admin; otherwise a member of the organisation.
    pub admin: bool,
    pub action: Action,
    /// Null while the action is under way, or if its outcome could not be recorded.
    pub outcome: Option<AuditOutcome>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditOutcome {
    /// The HTTP status.
    pub status: u16,
    /// The error of a refused action; null on success.
    pub error: Option<String>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade_required: bool,
}

impl CreateTenant {
    /// The requested tenant. Without `ipv6`, its networks must be IPv4.
    ///
    /// # Errors
    ///
    /// The first field that is not valid for a tenant.
    pub fn tenant(self, ipv6: bool, now: Timestamp) -> Result<Tenant, InvalidTenant> {
        let CreateTenant {
            id,
            organisation,
            plan,
            ready,
            namespace,
            networks,
        } = self;
        let id = id.unwrap_or_else(Uuid::new_v4);
        let mut tenant = Tenant::new(id, organisation, plan, now)?;
        if let Some(namespace) = namespace {
            tenant.set_namespace(namespace)?;
        }
        check_versions(&networks, ipv6)?;
        tenant.set_networks(networks)?;
        tenant.set_ready(ready);
        Ok(tenant)
    }
}

impl PatchTenant {
    /// # Errors
    ///
    /// The first field that is not valid for a tenant.
    pub fn check(&self, ipv6: bool) -> Result<(), InvalidTenant> {
        let PatchTenant {
            plan: _,
            ready: _,
            networks,
        } = self;
        if let Some(networks) = networks {
            check_versions(networks, ipv6)?;
            check_networks(networks)?;
        }
        Ok(())
    }

    /// Changes the tenant. To be called after [`check`](Self::check).
    pub fn apply(&self, tenant: &mut Tenant, pool: &mut dyn Ports, now: Timestamp) {
        let PatchTenant {
            plan,
            ready,
            networks,
        } = self;
        if let Some(plan) = plan {
            tenant.set_plan(*plan, pool, now);
        }
        if let Some(ready) = ready {
            tenant.set_ready(*ready);
        }
        if let Some(networks) = networks {
            tenant.networks.clone_from(networks);
        }
    }
}

impl From<&Tenant> for TenantBody {
    fn from(tenant: &Tenant) -> TenantBody {
        TenantBody {
            id: tenant.id,
            organisation: tenant.organisation.clone(),
            plan: tenant.plan,
            ready: tenant.ready,
            namespace: tenant.namespace.clone(),
            networks: tenant.networks.clone(),
            vpn: TenantVpn {
                state: tenant.vpn.state,
            },
        }
    }
}

impl From<Record> for AuditRecord {
    fn from(record: Record) -> AuditRecord {
        let outcome = |Outcome { status, error }| AuditOutcome { status, error };
        AuditRecord {
            id: record.id,
            time: record.time,
            tenant: record.tenant,
            organisation: record.organisation,
            caller: record.caller,
            admin: record.admin,
            action: record.action,
            outcome: record.outcome.map(outcome),
        }
    }
}
