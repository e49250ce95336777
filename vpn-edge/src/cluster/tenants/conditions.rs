//! The conditions of a VpnTenant. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::convert::{ACCEPTED, TenantObjects};
use crate::domain::{State, Tenant};

const PORT_ALLOCATED: &str = "PortAllocated";
const GATEWAY_READY: &str = "GatewayReady";

/// Everything is as the spec asks for.
pub const READY: &str = "Ready";

/// A condition without its times.
pub struct Says {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

pub fn says(type_: &'static str, status: bool, reason: &'static str, message: &str) -> Says {
    let message = message.to_owned();
    Says {
        type_,
        status,
        reason,
        message,
    }
}

/// `published` is the port in the status; `blocker` is reason and message of what
/// blocks the spec from being carried out.
pub fn conditions(
    view: &TenantObjects,
    tenant: &Tenant,
    published: Option<u16>,
    in_pool: bool,
    blocker: Option<(&'static str, &str)>,
) -> Vec<Says> {
    let vpn = &tenant.vpn;
    let wanted = view.resource.spec.vpn.enabled;
    let failure = vpn.failure.as_deref().unwrap_or_default();
    let absent = match vpn.state {
        State::Unavailable => ("PlanWithoutVpn", "the plan does not include the VPN"),
        _ if !wanted => ("Disabled", "the spec does not enable the VPN"),
        State::Failed => ("KeysUnavailable", failure),
        _ if !tenant.ready => (
            "TenantNotReady",
            "spec.ready is false: set it once the tenant is provisioned",
        ),
        _ => blocker.unwrap_or(("Pending", "a port and keys are being allocated")),
    };
    let port = match (&vpn.allocation, published) {
        (_, Some(port)) if !in_pool => {
            let message = format!(
                "port {port} is allocated to the tenant, but it is in no pool any more, and edges do not \
                 steer it: disable and enable the VPN to get a port of a pool"
            );
            says(PORT_ALLOCATED, true, "OutsidePools", &message)
        }
        (_, Some(port)) => {
            let message = format!("port {port} is allocated to the tenant");
            says(PORT_ALLOCATED, true, "Allocated", &message)
        }
        (Some(allocation), None) => {
            let (reason, message) = blocker.map_or_else(
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
            let (reason, message) = blocker.unwrap_or(("Starting", starting));
            (false, reason, message)
        }
    };
    let gateway = says(GATEWAY_READY, serves, reason, message);
    let ready = match (wanted, &vpn.allocation) {
        (false, None) => match blocker {
            Some((reason, message)) => says(READY, false, reason, message),
            None => says(READY, true, "Disabled", "the VPN is off, as the spec asks"),
        },
        (false, Some(_)) => {
            let going = ("Disabling", "the VPN is being disabled");
            let (reason, message) = blocker.unwrap_or(going);
            says(READY, false, reason, message)
        }
        // It may serve without matching the spec.
        (true, Some(_)) if let Some((reason, message)) = blocker => {
            says(READY, false, reason, message)
        }
        (true, _) => says(READY, serves, reason, message),
    };
    let accepted = says(
        ACCEPTED,
        true,
        "Accepted",
        "the spec is valid and no older VpnTenant has its id",
    );
    vec![accepted, port, gateway, ready]
}

pub fn timed(
    view: &TenantObjects,
    current: &[Condition],
    says: Vec<Says>,
    now: Timestamp,
) -> Vec<Condition> {
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
