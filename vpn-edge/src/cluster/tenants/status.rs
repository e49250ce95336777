//! What a VpnTenant's status says. Pure.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Settings;
use super::convert::{ACCEPTED, View};
use super::hindrance::Hindrance;
use super::index::Reservation;
use crate::cluster::VpnTenantStatus;
use crate::domain::subnet::{client_address, client_address6};
use crate::domain::subnet::{tunnel_subnet, tunnel_subnet6};
use crate::domain::{State, Tenant};

const PORT_ALLOCATED: &str = "PortAllocated";
const GATEWAY_READY: &str = "GatewayReady";

/// All is as the spec asks for.
pub const READY: &str = "Ready";

/// A condition without its times.
struct Says {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

fn says(type_: &'static str, status: bool, reason: &'static str, message: &str) -> Says {
    let message = message.to_owned();
    Says {
        type_,
        status,
        reason,
        message,
    }
}

/// The status of something that is no tenant, for this reason.
pub fn refused(
    view: &View,
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

/// The status of `tenant`, whose resource and keys are the view's, and the port of
/// these keys in this `reservation`. `hindered` is what keeps it from what it asks
/// for.
///
/// A port is published once the gateway's Service holds it: edges act on what
/// they read here. It stays published while that Service is missing and nobody
/// else has the port, so that deleting a Service costs no sessions.
pub fn of(
    view: &View,
    tenant: &Tenant,
    reservation: Option<Reservation>,
    hindered: &Hindrance,
    settings: &Settings,
    now: Timestamp,
) -> VpnTenantStatus {
    let current = view.resource.status.clone().unwrap_or_default();
    let vpn = &tenant.vpn;
    let hindered = hindered.or_told(&current, tenant);
    let hindrance = hindered.says();
    // A state that came about without being asked for began unnoticed.
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
            .or_else(|| hindrance.map(|(_, words)| words.to_owned())),
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
        // A port that is in no pool any more still leads where it led.
        let old = current.endpoint.filter(|_| current.port == Some(port));
        let hostname = settings.pools.hostname(port);
        status.port = Some(port);
        status.endpoint = hostname.map(|name| format!("{name}:{port}")).or(old);
        if let Ok(subnet) = tunnel_subnet(tenant.id, &settings.cluster_ranges) {
            status.subnet = Some(subnet.to_string());
            let address = Ipv4Net::new_assert(client_address(subnet), subnet.prefix_len());
            status.addresses.push(IpNet::from(address).to_string());
        }
        if settings.tunnel_ipv6 {
            let subnet = tunnel_subnet6(tenant.id);
            let address = Ipv6Net::new_assert(client_address6(subnet), subnet.prefix_len());
            status.addresses.push(IpNet::from(address).to_string());
        }
        status.server_public_key = Some(allocation.keys.server.public().to_string());
        status.client_public_key = Some(allocation.keys.client.public().to_string());
        status.keys_created_at = Some(Time(whole_second(allocation.created_at)));
    }
    let in_pool = published.is_none_or(|of| settings.pools.contains(of.port));
    let conditions = conditions(view, tenant, status.port, in_pool, hindrance);
    status.conditions = timed(view, &current.conditions, conditions, now);
    status
}

/// `published` is the port in the status, and `hindrance` the reason and message
/// of what keeps the tenant from what it asks for.
fn conditions(
    view: &View,
    tenant: &Tenant,
    published: Option<u16>,
    in_pool: bool,
    hindrance: Option<(&'static str, &str)>,
) -> Vec<Says> {
    let vpn = &tenant.vpn;
    let wanted = view.resource.spec.vpn.enabled;
    let failure = vpn.failure.as_deref().unwrap_or_default();
    let absent = match vpn.state {
        State::Unavailable => ("PlanWithoutVpn", "the plan does not include the VPN"),
        _ if !wanted => ("Disabled", "the VPN is not asked for"),
        State::Failed => ("NoKeys", failure),
        _ if !tenant.ready => ("TenantNotReady", "the rest of the tenant is not ready"),
        _ => hindrance.unwrap_or(("Pending", "a port and keys are about to be made")),
    };
    let port = match (&vpn.allocation, published) {
        (_, Some(port)) if !in_pool => {
            let message = format!(
                "port {port} is the tenant's, but no pool has it any more: edges do not steer                  it. Disable and enable the VPN to get a port of a pool."
            );
            says(PORT_ALLOCATED, true, "OutsidePools", &message)
        }
        (_, Some(port)) => {
            let message = format!("port {port} is the tenant's");
            says(PORT_ALLOCATED, true, "Allocated", &message)
        }
        (Some(allocation), None) => {
            let (reason, message) = hindrance.map_or_else(
                || {
                    let port = allocation.port;
                    let message = format!(
                        "port {port} of the keys Secret is not reserved by the gateway's Service"
                    );
                    ("NotReserved", message)
                },
                |(reason, message)| (reason, message.to_owned()),
            );
            says(PORT_ALLOCATED, false, reason, &message)
        }
        (None, None) => says(PORT_ALLOCATED, false, absent.0, absent.1),
    };
    let serving = "the gateway answers and the edge steers to it";
    let starting = "the gateway does not answer, or the edge does not steer to it yet";
    let (serves, reason, message) = match (vpn.state, &vpn.allocation) {
        (_, None) => (false, absent.0, absent.1),
        (State::Enabled, _) => (true, "Serving", serving),
        (State::Failed, _) => (false, "Failed", failure),
        _ => {
            let (reason, message) = hindrance.unwrap_or(("Starting", starting));
            (false, reason, message)
        }
    };
    let gateway = says(GATEWAY_READY, serves, reason, message);
    let ready = match (wanted, &vpn.allocation) {
        (false, None) => match hindrance {
            Some((reason, message)) => says(READY, false, reason, message),
            None => says(READY, true, "Disabled", "the VPN is off, as asked"),
        },
        (false, Some(_)) => {
            let going = ("Disabling", "the VPN is about to be switched off");
            let (reason, message) = hindrance.unwrap_or(going);
            says(READY, false, reason, message)
        }
        // It may serve, and yet not as it is asked for.
        (true, Some(_)) if let Some((reason, message)) = hindrance => {
            says(READY, false, reason, message)
        }
        (true, _) => says(READY, serves, reason, message),
    };
    let accepted = says(ACCEPTED, true, "Accepted", "this is the tenant of its id");
    vec![accepted, port, gateway, ready]
}

fn timed(view: &View, current: &[Condition], says: Vec<Says>, now: Timestamp) -> Vec<Condition> {
    let conditions = says.into_iter().map(|says| {
        let status = if says.status { "True" } else { "False" };
        let same = |old: &&Condition| old.type_ == says.type_ && old.status == status;
        let old = current.iter().find(same);
        Condition {
            last_transition_time: old.map_or(Time(now), |old| old.last_transition_time.clone()),
            message: says.message,
            observed_generation: view.resource.metadata.generation,
            reason: says.reason.to_owned(),
            status: status.to_owned(),
            type_: says.type_.to_owned(),
        }
    });
    conditions.collect()
}

/// As resources write times.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
