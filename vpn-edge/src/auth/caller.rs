//! A caller, and what it may see.

use super::refused::Refused;
use crate::domain::{Tenant, VpnError};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// An admin of the platform: may do everything.
    Admin,
    /// A member of one organisation: sees its tenants and may operate their VPNs.
    Member { organisation: String },
}

/// The sender of a valid credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub role: Role,
    /// The caller's name for people, in visible ASCII: `oidc:SUB`, followed by a
    /// space and the e-mail address if the issuer verified it, or `token:HASH`.
    pub subject: String,
}

impl Caller {
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// # Errors
    ///
    /// If the caller is not an admin.
    pub fn check_admin(&self) -> Result<(), Refused> {
        self.is_admin().then_some(()).ok_or(Refused::AdminOnly)
    }

    /// Another organisation's tenant looks like one that does not exist.
    ///
    /// # Errors
    ///
    /// If the caller sees no such tenant.
    pub fn check_sees(&self, tenant: &Tenant) -> Result<(), VpnError> {
        match &self.role {
            Role::Member { organisation } if *organisation != tenant.organisation => {
                Err(VpnError::TenantNotFound)
            }
            Role::Admin | Role::Member { .. } => Ok(()),
        }
    }
}
