//! What callers may do to tenants, by API or by page.
//!
//! A tenant of another organisation looks like one that does not exist. Attempts on
//! tenants that the caller sees are in the audit log, so that nobody can fill another
//! organisation's log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Api;
use super::body::{CreateTenant, PatchTenant, VpnStatus};
use super::error::ApiError;
use crate::audit::Action;
use crate::auth::Caller;
use crate::domain::{Tenant, TunnelSpec, VpnError};
use crate::registry::Change;
use crate::wireguard::{ClientConfig, Keys, PublicKey};

/// How long an answer waits for the edge to apply a revocation.
const REVOCATION: Duration = Duration::from_secs(1);

/// A client's `wg-quick` file.
pub struct Configuration {
    pub filename: String,
    pub text: Zeroizing<String>,
}

impl Api {
    /// The caller's visible tenants, by ID.
    pub async fn seen(&self, caller: &Caller) -> Result<Vec<Arc<Tenant>>, ApiError> {
        let mut tenants = self.registry.list().await?;
        tenants.retain(|tenant| caller.check_sees(tenant).is_ok());
        Ok(tenants)
    }

    /// The tenant, if it exists and the caller sees it.
    pub async fn find(&self, caller: &Caller, id: Uuid) -> Result<Tenant, ApiError> {
        let tenant = self.registry.get(id).await?;
        let tenant = tenant.ok_or(VpnError::TenantNotFound)?;
        caller.check_sees(&tenant)?;
        Ok(tenant)
    }

    pub async fn create(&self, caller: &Caller, new: CreateTenant) -> Result<Tenant, ApiError> {
        caller.check_admin()?;
        let tenant = new.tenant(self.settings.tunnels.ipv6, Timestamp::now())?;
        let new = tenant.clone();
        self.recorded(caller, &tenant, Action::Create, |api, _| async move {
            Ok(api.registry.create(new).await?)
        })
        .await
    }

    pub async fn patch(
        &self,
        caller: &Caller,
        id: Uuid,
        patch: PatchTenant,
    ) -> Result<Tenant, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(caller, &tenant, Action::Change, |api, caller| async move {
            caller.check_admin()?;
            patch.check(api.settings.tunnels.ipv6)?;
            let change: Change = Box::new(move |tenant, pool| {
                patch.apply(tenant, pool, Timestamp::now());
                Ok(())
            });
            api.change(id, change).await
        })
        .await
    }

    pub async fn delete(&self, caller: &Caller, id: Uuid) -> Result<(), ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(caller, &tenant, Action::Delete, |api, caller| async move {
            caller.check_admin()?;
            if !api.registry.delete(id).await? {
                return Err(VpnError::TenantNotFound.into());
            }
            api.revoked(id, None).await;
            Ok(())
        })
        .await
    }

    /// With the client-provided public key, if there is one; otherwise keys are
    /// generated for both ends.
    pub async fn enable(
        &self,
        caller: &Caller,
        id: Uuid,
        given: Option<PublicKey>,
    ) -> Result<Tenant, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(
            caller,
            &tenant,
            Action::Enable,
            move |api, caller| async move {
                let settings = Arc::clone(&api.settings);
                let change: Change = Box::new(move |tenant, pool| {
                    caller.check_sees(tenant)?;
                    let ranges = &settings.tunnels.cluster_ranges;
                    tenant.enable(pool, ranges, Keys::generate_for(given), Timestamp::now())
                });
                Ok(api.registry.update(id, change).await?)
            },
        )
        .await
    }

    pub async fn disable(&self, caller: &Caller, id: Uuid) -> Result<Tenant, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(
            caller,
            &tenant,
            Action::Disable,
            move |api, caller| async move {
                let change: Change = Box::new(move |tenant, pool| {
                    caller.check_sees(tenant)?;
                    tenant.disable(pool, Timestamp::now())
                });
                api.change(id, change).await
            },
        )
        .await
    }

    /// Replaces the keys: by generated ones, or by the client-provided public key.
    pub async fn regenerate(
        &self,
        caller: &Caller,
        id: Uuid,
        given: Option<PublicKey>,
    ) -> Result<Tenant, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(
            caller,
            &tenant,
            Action::Regenerate,
            move |api, caller| async move {
                // Without new keys the old ones stay valid, and the caller must know.
                let keys = Keys::generate_for(given).map_err(ApiError::internal)?;
                let change: Change = Box::new(move |tenant, _| {
                    caller.check_sees(tenant)?;
                    tenant.regenerate(keys.clone(), Timestamp::now())
                });
                api.change(id, change).await
            },
        )
        .await
    }

    /// Changes a tenant, and waits until what it revokes is no longer accepted.
    async fn change(&self, id: Uuid, change: Change) -> Result<Tenant, ApiError> {
        let tenant = self.registry.update(id, change).await?;
        self.revoked(id, Some(&tenant)).await;
        Ok(tenant)
    }

    /// The client's configuration.
    pub async fn configuration(
        &self,
        caller: &Caller,
        id: Uuid,
    ) -> Result<Configuration, ApiError> {
        let tenant = self.find(caller, id).await?;
        self.recorded(
            caller,
            &tenant,
            Action::Download,
            |api, caller| async move {
                // Read again once the download is recorded.
                let tenant = api.find(&caller, id).await?;
                api.client(&tenant)
            },
        )
        .await
    }

    fn client(&self, tenant: &Tenant) -> Result<Configuration, ApiError> {
        let allocation = tenant.configuration()?;
        let TunnelSpec { fixed, live } = self.tunnel(tenant).ok_or(VpnError::NotEnabled)?;
        let mut allowed_ips = self.settings.allowed_ips.clone();
        for subnet in fixed.subnets().filter(|subnet| subnet.addr().is_ipv6()) {
            // The gateway itself: no network of the cluster can contain it.
            if !allowed_ips.iter().any(|net| net.contains(&subnet)) {
                allowed_ips.push(subnet);
            }
        }
        let text = ClientConfig {
            key: allocation.keys.client.clone(),
            addresses: fixed.client_addresses().collect(),
            dns: live.dns,
            server_public_key: fixed.server_key.public(),
            allowed_ips,
            endpoint: self.settings.pools.endpoint(fixed.port),
        }
        .render();
        Ok(Configuration {
            filename: filename(tenant),
            text,
        })
    }

    /// The representation of a tenant's VPN.
    pub fn status(&self, tenant: &Tenant) -> VpnStatus {
        let vpn = &tenant.vpn;
        let mut body = VpnStatus {
            state: vpn.state,
            endpoint: None,
            port: None,
            subnet: None,
            client_address: None,
            subnet6: None,
            client_address6: None,
            server_public_key: None,
            client_public_key: None,
            client_key_given: None,
            created_at: None,
            generation: vpn.generation,
            since: whole_second(vpn.since),
            failure: vpn.failure.clone(),
        };
        let Some((allocation, tunnel)) = vpn.allocation.as_ref().zip(self.tunnel(tenant)) else {
            return body;
        };
        let fixed = tunnel.fixed;
        body.endpoint = Some(self.settings.pools.endpoint(fixed.port));
        body.port = Some(fixed.port);
        for subnet in fixed.subnets() {
            match subnet {
                IpNet::V4(subnet) => body.subnet = Some(subnet),
                IpNet::V6(subnet) => body.subnet6 = Some(subnet),
            }
        }
        for address in fixed.client_addresses() {
            match address.addr() {
                IpAddr::V4(address) => body.client_address = Some(address),
                IpAddr::V6(address) => body.client_address6 = Some(address),
            }
        }
        body.server_public_key = Some(fixed.server_key.public());
        body.client_public_key = Some(fixed.client.public_key);
        body.client_key_given = Some(allocation.keys.client.given().is_some());
        body.created_at = Some(whole_second(allocation.created_at));
        body
    }

    fn tunnel(&self, tenant: &Tenant) -> Option<TunnelSpec> {
        TunnelSpec::of(tenant, &self.settings.tunnels)
    }

    /// Waits until the edge steers no packet with keys that the tenant no longer has,
    /// so that a revocation is effective when the caller gets the answer.
    ///
    /// Bounded: an edge that takes longer applies it later.
    async fn revoked(&self, id: Uuid, tenant: Option<&Tenant>) {
        let kept = tenant
            .filter(|tenant| tenant.vpn.allocation.is_some())
            .map(|tenant| (id, tenant.vpn.generation));
        let mut active_ports = self.active_ports.clone();
        let closed = active_ports.wait_for(|active_ports| {
            let mut open = active_ports.iter().flat_map(BTreeMap::values);
            !open.any(|open| open.0 == id && Some(*open) != kept)
        });
        if tokio::time::timeout(REVOCATION, closed).await.is_err() {
            tracing::error!(tenant = %id, "the edge has not closed the port yet");
        }
    }
}

/// `wg-quick` names the interface after the file, and the kernel allows 15 characters
/// (IFNAMSIZ less its terminator).
pub fn filename(tenant: &Tenant) -> String {
    let id = tenant.id.simple().to_string();
    format!("vpn-{}.conf", &id[..8])
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
