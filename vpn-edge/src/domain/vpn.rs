//! A tenant's VPN as stored.

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
    /// A gateway is requested and not ready yet, or is being repaired.
    Enabling,
    /// The gateway answers and the edge steers packets to it.
    Enabled,
    /// The last attempt failed. Enable and disable leave this state.
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

    /// The name in the API, the database and on the command line.
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
    /// Incremented by every enable and regenerate, and kept across disable, so that a
    /// gateway of an old generation is never taken for a new one.
    pub generation: u64,
    /// When the state was entered.
    pub since: Timestamp,
    /// Why the VPN failed; only in `failed`.
    pub failure: Option<String>,
    /// Always present in `enabling` and `enabled`; in `failed` unless keys could not
    /// be generated; never in `unavailable` and `disabled`.
    pub allocation: Option<Allocation>,
}

/// The values that a gateway is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The UDP port of the endpoint.
    pub port: u16,
    /// The tunnel's subnet. It stays until the VPN is enabled anew, whatever ranges
    /// are reserved meanwhile, because the client and the gateway are configured with
    /// it.
    pub subnet: Ipv4Net,
    pub keys: Keys,
    /// When the keys were generated.
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
