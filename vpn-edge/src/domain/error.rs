//! Why a VPN action is refused: wording, HTTP status and JSON body in one list.

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

impl VpnError {
    /// The HTTP status code.
    pub fn status(self) -> u16 {
        match self {
            VpnError::NotAvailable => 403,
            VpnError::TenantNotFound => 404,
            VpnError::TenantNotReady
            | VpnError::AlreadyEnabled
            | VpnError::NotEnabled
            | VpnError::BeingEnabled => 409,
            VpnError::NoPortsAvailable => 503,
        }
    }

    /// The HTTP body, JSON.
    pub fn body(self) -> String {
        match self {
            VpnError::NotAvailable => format!(r#"{{"error":"{self}","upgrade_required":true}}"#),
            _ => format!(r#"{{"error":"{self}"}}"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_what_the_api_promises() {
        let table = [
            (
                VpnError::NotAvailable,
                403,
                r#"{"error":"vpn_not_available","upgrade_required":true}"#,
            ),
            (
                VpnError::TenantNotFound,
                404,
                r#"{"error":"tenant not found"}"#,
            ),
            (
                VpnError::TenantNotReady,
                409,
                r#"{"error":"tenant is not ready"}"#,
            ),
            (
                VpnError::AlreadyEnabled,
                409,
                r#"{"error":"VPN is already enabled"}"#,
            ),
            (
                VpnError::NotEnabled,
                409,
                r#"{"error":"VPN is not enabled"}"#,
            ),
            (
                VpnError::BeingEnabled,
                409,
                r#"{"error":"VPN is currently being enabled"}"#,
            ),
            (
                VpnError::NoPortsAvailable,
                503,
                r#"{"error":"no VPN ports available"}"#,
            ),
        ];
        for (error, status, body) in table {
            assert_eq!(error.status(), status, "{error}");
            assert_eq!(error.body(), body);
        }
    }
}
