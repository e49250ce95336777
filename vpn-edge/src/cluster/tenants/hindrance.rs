//! What keeps a tenant from what it asks for, as its conditions say it.
//!
//! Only who tries knows, and may have gone: a condition says it until somebody
//! has tried again, or until the tenant has moved on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::READY;
use crate::cluster::VpnTenantStatus;
use crate::domain::{Tenant, VpnError};

/// Reasons of conditions.
const NO_PORTS: &str = "NoPortsAvailable";
const NOT_READY: &str = "TenantNotReady";
const APPLY_FAILED: &str = "ApplyFailed";
const GATEWAY_DEGRADED: &str = "GatewayDegraded";

/// What these two were called in v0.0.1, whose conditions are still read.
const APPLY_FAILED_BEFORE: &str = "Refused";
const GATEWAY_DEGRADED_BEFORE: &str = "Hindered";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hindrance {
    /// Whoever asks has not tried: what was told last holds.
    #[default]
    Unknown,
    Nothing,
    NoPorts,
    NotReady,
    /// The API server refuses a step, in these words.
    Refused(String),
    /// Its gateway is not, or cannot be made, as it is asked for.
    Gateway(String),
}

impl Hindrance {
    /// What a refusal by the rules of a tenant comes down to.
    pub fn of(error: VpnError) -> Self {
        match error {
            VpnError::NoPortsAvailable => Self::NoPorts,
            VpnError::TenantNotReady => Self::NotReady,
            // Somebody was faster.
            _ => Self::Nothing,
        }
    }

    /// What the conditions of a status say.
    pub fn told(conditions: &[Condition]) -> Self {
        let told = conditions.iter().find(|told| told.type_ == READY);
        let Some(told) = told else {
            return Self::Nothing;
        };
        let message = || told.message.clone();
        match told.reason.as_str() {
            NO_PORTS => Self::NoPorts,
            NOT_READY => Self::NotReady,
            APPLY_FAILED | APPLY_FAILED_BEFORE => Self::Refused(message()),
            GATEWAY_DEGRADED | GATEWAY_DEGRADED_BEFORE => Self::Gateway(message()),
            _ => Self::Nothing,
        }
    }

    /// This, or where it is not known what `status` told, as long as that is
    /// about the tenant as it now is.
    pub fn or_told(&self, status: &VpnTenantStatus, tenant: &Tenant) -> Self {
        if *self != Self::Unknown {
            return self.clone();
        }
        let vpn = &tenant.vpn;
        let same = u64::try_from(status.generation) == Ok(vpn.generation)
            && status.phase == Some(vpn.state)
            && status.port == vpn.allocation.as_ref().map(|a| a.port);
        if same {
            Self::told(&status.conditions)
        } else {
            Self::Nothing
        }
    }

    /// Reason and message of the conditions that it makes false.
    pub fn says(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Unknown | Self::Nothing => None,
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
