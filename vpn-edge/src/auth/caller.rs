//! Who calls, and what they may see.

use super::refused::Refused;
use crate::domain::{Tenant, VpnError};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Of the platform: may do everything.
    Admin,
    /// Of one organisation: sees its tenants and works their VPN.
    Member { organisation: String },
}

/// Whoever sent a good credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub role: Role,
    /// Who it is, to be told to people, in visible ASCII: `oidc:SUB`, with the
    /// e-mail address after a space if the issuer verified it, or `token:HASH`.
    pub subject: String,
}

impl Caller {
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// # Errors
    ///
    /// That this is no admin.
    pub fn check_admin(&self) -> Result<(), Refused> {
        self.is_admin().then_some(()).ok_or(Refused::AdminOnly)
    }

    /// Another organisation's tenant is not told from one that does not exist.
    ///
    /// # Errors
    ///
    /// That there is no such tenant.
    pub fn check_sees(&self, tenant: &Tenant) -> Result<(), VpnError> {
        match &self.role {
            Role::Member { organisation } if *organisation != tenant.organisation => {
                Err(VpnError::TenantNotFound)
            }
            Role::Admin | Role::Member { .. } => Ok(()),
        }
    }
}
