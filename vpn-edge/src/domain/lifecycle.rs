//! The VPN's lifecycle: a state machine over the plan, the tenant's readiness,
//! what is asked for and what is observed of the gateway.
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

/// How long a gateway may take to answer before the VPN counts as failed.
pub const ENABLING_DEADLINE: SignedDuration = SignedDuration::from_secs(30);

/// What is seen of a tenant's gateway *of the current generation*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayState {
    Absent,
    Starting,
    Ready,
    /// With the gateway's own words.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub gateway: GatewayState,
    /// The edge can steer the tenant's port to the gateway.
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
    /// Asks for a gateway: a port of `pool`, a subnet clear of `cluster_ranges` and
    /// the new `keys`.
    ///
    /// From `failed` this is a fresh attempt that keeps its port while it holds
    /// it and the pool has it. Keys that could not be made lead to `failed`, and
    /// so do ranges that leave no subnet.
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

    /// Gives up gateway, port and keys.
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

    /// Replaces the keys; the port, and with it the endpoint, and the subnet stay.
    pub fn regenerate(&mut self, keys: Keys, now: Timestamp) -> Result<(), VpnError> {
        let allocation = self.configuration()?;
        let (port, subnet) = (allocation.port, allocation.subnet);
        self.begin(port, subnet, keys, now);
        Ok(())
    }

    /// Takes another port of `pool`, and `keys`, in place of a port that somebody
    /// else has come by.
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

    /// Asks for a gateway of a new generation.
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

    /// What a client's configuration is made from, while `enabled`.
    pub fn configuration(&self) -> Result<&Allocation, VpnError> {
        match self.vpn.state {
            State::Unavailable => Err(VpnError::NotAvailable),
            State::Disabled | State::Failed => Err(VpnError::NotEnabled),
            State::Enabling => Err(VpnError::BeingEnabled),
            State::Enabled => self.vpn.allocation.as_ref().ok_or(VpnError::NotEnabled),
        }
    }

    /// Changes the plan. A plan without VPN ends the VPN from any state.
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

    /// Readiness matters to enabling alone: an enabled VPN stays enabled.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// Takes in what is seen of the gateway of the current generation.
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
