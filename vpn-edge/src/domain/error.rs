//! Why a VPN action is refused.

/// A refused VPN action. The wording is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VpnError {
    #[error("vpn_not_available")]
    NotAvailable,
    #[error("tenant not found")]
    TenantNotFound,
    #[error("tenant is not ready")]
    TenantNotReady,
    #[error("VPN is already enabled")]
    AlreadyEnabled,
    #[error("VPN is not enabled")]
    NotEnabled,
    #[error("VPN is currently being enabled")]
    BeingEnabled,
    #[error("no VPN ports available")]
    NoPortsAvailable,
}
