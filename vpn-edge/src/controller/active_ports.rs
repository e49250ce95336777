//! Which ports the edges of a cluster steer, computed from the resources that the
//! agents watch.
//!
//! Agents apply these within milliseconds and do not report back: with thousands of
//! tenants on many nodes, reports would be most of the API server's load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::Instant;

use super::rest;
use crate::domain::{ActivePorts, GatewayState, Tenant};
use crate::gateways::{Gateway, Gateways};
use crate::registry::Registry;

const RETRY: Duration = Duration::from_secs(1);

/// Follows registry and gateways until the receiver is dropped.
pub fn follow(
    registry: Arc<dyn Registry>,
    gateways: Arc<dyn Gateways>,
) -> watch::Receiver<ActivePorts> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut registry_changed = registry.changes();
        let mut gateways_changed = gateways.changes();
        loop {
            let start = Instant::now();
            let look = async { Ok((registry.list().await?, gateways.list().await?)) };
            let reconciled: Result<_> = look.await;
            let retry = reconciled.is_err();
            match reconciled {
                Ok((tenants, gateways)) => {
                    let now = Some(active_ports(tenants.iter().map(Arc::as_ref), &gateways));
                    sender.send_if_modified(|before| {
                        let changed = *before != now;
                        *before = now;
                        changed
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot list tenants and gateways; retrying: {error:#}")
                }
            }
            rest(start.elapsed()).await;
            tokio::select! {
                Ok(()) = registry_changed.changed() => {}
                Ok(()) = gateways_changed.changed() => {}
                () = sender.closed() => return,
                () = tokio::time::sleep(RETRY), if retry => {}
            }
        }
    });
    receiver
}

/// The ports whose gateways are ready and have their tenant's current keys.
fn active_ports<'a>(
    tenants: impl IntoIterator<Item = &'a Tenant>,
    gateways: &[Gateway],
) -> BTreeMap<u16, (uuid::Uuid, u64)> {
    let ready: BTreeMap<u16, &Gateway> = gateways
        .iter()
        .filter(|gateway| gateway.state == GatewayState::Ready)
        .map(|gateway| (gateway.port, gateway))
        .collect();
    let served = tenants.into_iter().filter_map(|tenant| {
        let port = tenant.vpn.allocation.as_ref()?.port;
        let gateway = ready.get(&port)?;
        let wanted = (tenant.id, tenant.vpn.generation);
        ((gateway.tenant, gateway.generation) == wanted).then_some((port, wanted))
    });
    served.collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Plan, PortPool, TunnelDigest};
    use crate::wireguard::Keys;

    #[test]
    fn a_port_is_steered_once_its_gateway_is_ready_with_the_keys_of_now() {
        let now = Timestamp::UNIX_EPOCH;
        let id = Uuid::from_u128(1);
        let mut tenant = Tenant::new(id, "acme".into(), Plan::Business, now).unwrap();
        tenant.set_ready(true);
        let mut pool = PortPool::new("31001-31001".parse().unwrap(), [], []).unwrap();
        tenant
            .enable(&mut pool, &[], Keys::generate(), now)
            .unwrap();
        let gateway = |generation, state| Gateway {
            tenant: id,
            generation,
            port: 31_001,
            digest: TunnelDigest::default(),
            state,
            location: None,
        };
        let generation = tenant.vpn.generation;
        let seen = |gateway| active_ports(std::slice::from_ref(&tenant), &[gateway]);
        let ready = gateway(generation, GatewayState::Ready);
        assert_eq!(
            seen(ready.clone()),
            [(31_001, (id, generation))].into_iter().collect()
        );
        assert!(seen(gateway(generation, GatewayState::Starting)).is_empty());
        assert!(seen(gateway(generation - 1, GatewayState::Ready)).is_empty());
        assert!(active_ports(&[], &[ready]).is_empty());
    }
}
