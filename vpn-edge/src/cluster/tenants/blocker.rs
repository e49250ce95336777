//! What blocks a spec from being carried out, as shown by the tenant's conditions.
//!
//! Only the process that tries knows it, and that process may have ended: a condition
//! stays until somebody has tried again, or the tenant has changed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::READY;
use crate::cluster::VpnTenantStatus;
use crate::domain::{Tenant, VpnError};

/// Reasons of conditions.
const NO_PORTS: &str = "NoPortsAvailable";
const NOT_READY: &str = "TenantNotReady";
const APPLY_FAILED: &str = "ApplyFailed";
const GATEWAY_DEGRADED: &str = "GatewayDegraded";

/// Names of these two in v0.0.1, whose conditions are still read.
const APPLY_FAILED_BEFORE: &str = "Refused";
const GATEWAY_DEGRADED_BEFORE: &str = "Hindered";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Blocker {
    /// Not tried yet: the conditions stay as they are.
    #[default]
    Unknown,
    None,
    NoPorts,
    NotReady,
    /// The API server refuses a step, with this message.
    Refused(String),
    /// The gateway does not match the spec, or cannot be created, for this reason.
    Gateway(String),
}

impl Blocker {
    /// The blocker that a refusal by the tenant's rules means.
    pub fn of(error: VpnError) -> Self {
        match error {
            VpnError::NoPortsAvailable => Self::NoPorts,
            VpnError::TenantNotReady => Self::NotReady,
            // Somebody else was faster.
            _ => Self::None,
        }
    }

    /// The blocker that a status reports.
    pub fn read(conditions: &[Condition]) -> Self {
        let told = conditions.iter().find(|told| told.type_ == READY);
        let Some(told) = told else {
            return Self::None;
        };
        let message = || told.message.clone();
        match told.reason.as_str() {
            NO_PORTS => Self::NoPorts,
            NOT_READY => Self::NotReady,
            APPLY_FAILED | APPLY_FAILED_BEFORE => Self::Refused(message()),
            GATEWAY_DEGRADED | GATEWAY_DEGRADED_BEFORE => Self::Gateway(message()),
            _ => Self::None,
        }
    }

    /// This blocker; if unknown, the one in `status`, as long as it applies to the
    /// tenant's current state.
    pub fn or_published(&self, status: &VpnTenantStatus, tenant: &Tenant) -> Self {
        if *self != Self::Unknown {
            return self.clone();
        }
        let vpn = &tenant.vpn;
        let same = u64::try_from(status.generation) == Ok(vpn.generation)
            && status.phase == Some(vpn.state)
            && status.port == vpn.allocation.as_ref().map(|a| a.port);
        if same {
            Self::read(&status.conditions)
        } else {
            Self::None
        }
    }

    /// Reason and message of the conditions that it makes false.
    pub fn says(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Unknown | Self::None => None,
            Self::NoPorts => Some((
                NO_PORTS,
                "all ports in all pools are in use; retried when a port is released",
            )),
            Self::NotReady => Some((
                NOT_READY,
                "spec.ready is false: set it once the tenant is provisioned",
            )),
            Self::Refused(words) => Some((APPLY_FAILED, words)),
            Self::Gateway(words) => Some((GATEWAY_DEGRADED, words)),
        }
    }
}

#[cfg(test)]
mod tests;
