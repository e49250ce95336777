//! The VPN's lifecycle: a state machine over the plan, the tenant's readiness, the
//! requested and the observed gateway.
//!
//! Guarantees: a refused transition changes nothing; keys and a port exist only
//! in `enabling`, `enabled` and `failed`; the generation never goes back.

use ipnet::{IpNet, Ipv4Net};
use jiff::{SignedDuration, Timestamp};

use super::error::VpnError;
use super::plan::Plan;
use super::port_pool::Ports;
use super::subnet::tunnel_subnet;
use super::tenant::Tenant;
use super::vpn::{Allocation, State, Vpn};
use crate::wireguard::keys::{KeyError, Keys};

/// How long a gateway may take to answer before the VPN has failed.
pub const ENABLING_DEADLINE: SignedDuration = SignedDuration::from_secs(30);

/// The observed state of a tenant's gateway *of the current generation*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayState {
    Absent,
    Starting,
    Ready,
    /// With the gateway's own message.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub gateway: GatewayState,
    /// Whether the edge can steer the tenant's port to the gateway.
    pub steerable: bool,
}

impl Vpn {
    fn enter(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.since = now;
        self.failure = None;
    }

    fn fail(&mut self, reason: String, now: Timestamp) {
        self.enter(State::Failed, now);
        self.failure = Some(reason);
    }

    fn release(&mut self, pool: &mut dyn Ports) {
        if let Some(allocation) = self.allocation.take() {
            pool.release(allocation.port);
        }
    }
}

impl Tenant {
    /// Requests a gateway with a port of `pool`, a subnet that does not overlap
    /// `cluster_ranges`, and the new `keys`.
    ///
    /// In `failed` this is a new attempt, which keeps its port if the tenant still
    /// holds it and it is still in the pool. If the keys could not be generated, or
    /// no subnet is left, the state becomes `failed`.
    pub fn enable(
        &mut self,
        pool: &mut dyn Ports,
        cluster_ranges: &[IpNet],
        keys: Result<Keys, KeyError>,
        now: Timestamp,
    ) -> Result<(), VpnError> {
        match self.vpn.state {
            State::Unavailable => return Err(VpnError::NotAvailable),
            State::Enabling => return Err(VpnError::BeingEnabled),
            State::Enabled => return Err(VpnError::AlreadyEnabled),
            State::Disabled | State::Failed => {}
        }
        if !self.ready {
            return Err(VpnError::TenantNotReady);
        }
        let kept = self.vpn.allocation.as_ref().map(|a| a.port);
        let port = match kept.filter(|port| pool.keeps(*port, self.id)) {
            Some(port) => port,
            None => pool.allocate(self.id).ok_or(VpnError::NoPortsAvailable)?,
        };
        if let Some(old) = kept.filter(|old| *old != port) {
            pool.release(old);
        }
        self.vpn.generation += 1;
        let keys = keys.map_err(|error| error.to_string());
        let subnet = tunnel_subnet(self.id, cluster_ranges).map_err(|error| error.to_string());
        match keys.and_then(|keys| Ok((keys, subnet?))) {
            Ok((keys, subnet)) => {
                self.vpn.allocation = Some(Allocation {
                    port,
                    subnet,
                    keys,
                    created_at: now,
                });
                self.vpn.enter(State::Enabling, now);
            }
            Err(reason) => {
                self.vpn.allocation = None;
                pool.release(port);
                self.vpn.fail(reason, now);
            }
        }
        Ok(())
    }

    /// Releases gateway, port and keys.
    pub fn disable(&mut self, pool: &mut dyn Ports, now: Timestamp) -> Result<(), VpnError> {
        match self.vpn.state {
            State::Unavailable => Err(VpnError::NotAvailable),
            State::Disabled => Err(VpnError::NotEnabled),
            State::Enabling => Err(VpnError::BeingEnabled),
            State::Enabled | State::Failed => {
                self.vpn.release(pool);
                self.vpn.enter(State::Disabled, now);
                Ok(())
            }
        }
    }

    /// Replaces the keys. Port, endpoint and subnet stay.
    pub fn regenerate(&mut self, keys: Keys, now: Timestamp) -> Result<(), VpnError> {
        let allocation = self.configuration()?;
        let (port, subnet) = (allocation.port, allocation.subnet);
        self.begin(port, subnet, keys, now);
        Ok(())
    }

    /// Takes another port of `pool`, with new `keys`, because the current one belongs
    /// to somebody else.
    pub fn reallocate(
        &mut self,
        pool: &mut dyn Ports,
        keys: Keys,
        now: Timestamp,
    ) -> Result<(), VpnError> {
        let allocation = self.vpn.allocation.as_ref().ok_or(VpnError::NotEnabled)?;
        let subnet = allocation.subnet;
        let port = pool.allocate(self.id).ok_or(VpnError::NoPortsAvailable)?;
        self.begin(port, subnet, keys, now);
        Ok(())
    }

    /// Requests a gateway of a new generation.
    fn begin(&mut self, port: u16, subnet: Ipv4Net, keys: Keys, now: Timestamp) {
        self.vpn.allocation = Some(Allocation {
            port,
            subnet,
            keys,
            created_at: now,
        });
        self.vpn.generation += 1;
        self.vpn.enter(State::Enabling, now);
    }

    /// The allocation that a client's configuration is made from, in `enabled` only.
    pub fn configuration(&self) -> Result<&Allocation, VpnError> {
        match self.vpn.state {
            State::Unavailable => Err(VpnError::NotAvailable),
            State::Disabled | State::Failed => Err(VpnError::NotEnabled),
            State::Enabling => Err(VpnError::BeingEnabled),
            State::Enabled => self.vpn.allocation.as_ref().ok_or(VpnError::NotEnabled),
        }
    }

    /// Changes the plan. A plan without VPN disables the VPN in any state.
    pub fn set_plan(&mut self, plan: Plan, pool: &mut dyn Ports, now: Timestamp) {
        self.plan = plan;
        let available = self.vpn.state != State::Unavailable;
        if available && !plan.has_vpn() {
            self.vpn.release(pool);
            self.vpn.enter(State::Unavailable, now);
        } else if !available && plan.has_vpn() {
            self.vpn.enter(State::Disabled, now);
        }
    }

    /// Readiness matters only for enabling: an enabled VPN stays enabled.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// Applies an observation of the current generation's gateway.
    pub fn observe(&mut self, observed: &Observed, now: Timestamp) {
        let Observed { gateway, steerable } = observed;
        let serving = *gateway == GatewayState::Ready && *steerable;
        match self.vpn.state {
            State::Enabling | State::Failed if serving && self.vpn.allocation.is_some() => {
                self.vpn.enter(State::Enabled, now);
            }
            State::Enabling if now.duration_since(self.vpn.since) > ENABLING_DEADLINE => {
                let seconds = ENABLING_DEADLINE.as_secs();
                let reason = match gateway {
                    GatewayState::Failed(reason) => reason.clone(),
                    GatewayState::Ready => {
                        format!("the edge did not steer to the gateway within {seconds} s")
                    }
                    GatewayState::Absent | GatewayState::Starting => {
                        format!("the gateway did not answer within {seconds} s")
                    }
                };
                self.vpn.fail(reason, now);
            }
            State::Enabled if !serving => self.vpn.enter(State::Enabling, now),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
