//! Computes a VpnTenant's status. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Settings;
use super::blocker::Blocker;
use super::conditions::{READY, conditions, says, timed};
use super::convert::{ACCEPTED, TenantObjects};
use super::index::Reservation;
use crate::cluster::VpnTenantStatus;
use crate::domain::{State, Tenant, TunnelSpec};

/// The status of a resource that is not a tenant, for this reason.
pub fn refused(
    view: &TenantObjects,
    reason: &'static str,
    message: &str,
    now: Timestamp,
) -> VpnTenantStatus {
    let current = view.resource.status.clone().unwrap_or_default();
    let since = current.since.clone();
    let since = since.filter(|_| current.phase == Some(State::Failed));
    let conditions = [
        says(ACCEPTED, false, reason, message),
        says(READY, false, reason, message),
    ];
    VpnTenantStatus {
        observed_generation: view.resource.metadata.generation,
        phase: Some(State::Failed),
        since: Some(since.unwrap_or(Time(now))),
        reason: Some(message.to_owned()),
        generation: current.generation,
        key_generation: current.key_generation,
        conditions: timed(view, &current.conditions, conditions.into(), now),
        ..VpnTenantStatus::default()
    }
}

/// The status of `tenant`, whose resource and keys are in the view, and the port of
/// these keys in this `reservation`. `blocker` is what blocks the spec.
///
/// A port is published once the gateway's Service holds it: edges act on what they
/// read here. It stays published while that Service is missing and nobody else has
/// the port, so that deleting a Service ends no sessions.
pub fn of(
    view: &TenantObjects,
    tenant: &Tenant,
    reservation: Option<Reservation>,
    blocker: &Blocker,
    settings: &Settings,
    now: Timestamp,
) -> VpnTenantStatus {
    let current = view.resource.status.clone().unwrap_or_default();
    let vpn = &tenant.vpn;
    let blocker = blocker.or_published(&current, tenant);
    let blocker = blocker.says();
    // The start of a state that was not requested was not observed.
    let known = current.since.as_ref().map(|since| since.0);
    let unnoticed = current.phase != Some(vpn.state) && known.is_some_and(|at| vpn.since <= at);
    let since = if unnoticed { now } else { vpn.since };
    let mut status = VpnTenantStatus {
        observed_generation: view.resource.metadata.generation,
        phase: Some(vpn.state),
        since: Some(Time(whole_second(since))),
        reason: vpn
            .failure
            .clone()
            .or_else(|| blocker.map(|(_, words)| words.to_owned())),
        generation: vpn.generation.cast_signed(),
        key_generation: view
            .kept()
            .map_or(current.key_generation, |kept| kept.key_generation),
        ..VpnTenantStatus::default()
    };
    let allocation = vpn.allocation.as_ref();
    let published = allocation.filter(|of| match reservation {
        Some(Reservation::Held) => view.reserves(of.port),
        Some(Reservation::Free) => view.publishes(of.port, vpn.generation),
        Some(Reservation::Lost) | None => false,
    });
    if let Some(allocation) = published {
        let port = allocation.port;
        // A port that is in no pool any more keeps its endpoint.
        let old = current.endpoint.filter(|_| current.port == Some(port));
        let hostname = settings.pools.hostname(port);
        status.port = Some(port);
        status.endpoint = hostname.map(|name| format!("{name}:{port}")).or(old);
        if let Some(TunnelSpec { fixed, live: _ }) = TunnelSpec::of(tenant, &settings.tunnels) {
            let v4 = fixed.subnets().find(|subnet| subnet.addr().is_ipv4());
            status.subnet = v4.map(|subnet| subnet.to_string());
            status.addresses = fixed.client_addresses().map(|of| of.to_string()).collect();
        }
        status.server_public_key = Some(allocation.keys.server.public().to_string());
        status.client_public_key = Some(allocation.keys.client.public().to_string());
        status.keys_created_at = Some(Time(whole_second(allocation.created_at)));
    }
    let in_pool = published.is_none_or(|of| settings.pools.contains(of.port));
    let conditions = conditions(view, tenant, status.port, in_pool, blocker);
    status.conditions = timed(view, &current.conditions, conditions, now);
    status
}

/// Resources have times in seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
