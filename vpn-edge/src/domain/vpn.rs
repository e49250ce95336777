//! A tenant's VPN as it is stored.

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::wireguard::keys::Keys;

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The plan does not include the VPN.
    Unavailable,
    Disabled,
    /// A gateway is wanted and is not there yet, or is being repaired.
    Enabling,
    /// The gateway answers and the edge steers to it.
    Enabled,
    /// The last attempt came to nothing; enable and disable lead out of it.
    Failed,
}

impl State {
    pub const ALL: [State; 5] = [
        State::Unavailable,
        State::Disabled,
        State::Enabling,
        State::Enabled,
        State::Failed,
    ];

    /// The name on the wire, in the database and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unavailable => "unavailable",
            State::Disabled => "disabled",
            State::Enabling => "enabling",
            State::Enabled => "enabled",
            State::Failed => "failed",
        }
    }
}

/// A tenant's VPN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpn {
    pub state: State,
    /// Grows by one at every enable and regenerate and never goes back, also
    /// across disable: a gateway of an old generation is never taken for a new.
    pub generation: u64,
    /// When the state was entered.
    pub since: Timestamp,
    /// Why the VPN failed, in `failed` alone.
    pub failure: Option<String>,
    /// Always there in `enabling` and `enabled`; in `failed` unless no keys
    /// could be made; never in `unavailable` and `disabled`.
    pub allocation: Option<Allocation>,
}

/// What a gateway is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The UDP port of the endpoint.
    pub port: u16,
    /// The tunnel's. It stays until the VPN is enabled anew, whatever ranges are
    /// reserved meanwhile: the client and the gateway are set up with it.
    pub subnet: Ipv4Net,
    pub keys: Keys,
    /// When the keys were made.
    pub created_at: Timestamp,
}

impl Vpn {
    pub(super) fn new(plan: Plan, now: Timestamp) -> Vpn {
        Vpn {
            state: if plan.has_vpn() {
                State::Disabled
            } else {
                State::Unavailable
            },
            generation: 0,
            since: now,
            failure: None,
            allocation: None,
        }
    }
}
