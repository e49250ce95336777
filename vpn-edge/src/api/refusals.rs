//! Status and JSON body of refused VPN actions.

use axum::http::StatusCode;

use crate::domain::VpnError;

/// The HTTP status code.
pub fn status(error: VpnError) -> StatusCode {
    match error {
        VpnError::NotAvailable => StatusCode::FORBIDDEN,
        VpnError::TenantNotFound => StatusCode::NOT_FOUND,
        VpnError::TenantNotReady
        | VpnError::AlreadyEnabled
        | VpnError::NotEnabled
        | VpnError::BeingEnabled => StatusCode::CONFLICT,
        VpnError::NoPortsAvailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The HTTP body, JSON.
pub fn body(error: VpnError) -> String {
    match error {
        VpnError::NotAvailable => format!(r#"{{"error":"{error}","upgrade_required":true}}"#),
        _ => format!(r#"{{"error":"{error}"}}"#),
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
            assert_eq!(super::status(error), status, "{error}");
            assert_eq!(super::body(error), body);
        }
    }
}
