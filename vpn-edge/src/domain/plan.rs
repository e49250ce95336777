//! Tenants' plans.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A tenant's plan. Only [`Plan::Business`] and [`Plan::EnterpriseCloud`]
/// include the VPN.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(description = "Only business and enterprise_cloud include the VPN.")]
pub enum Plan {
    Developer,
    Team,
    Business,
    EnterpriseCloud,
}

impl Plan {
    pub const ALL: [Plan; 4] = [
        Plan::Developer,
        Plan::Team,
        Plan::Business,
        Plan::EnterpriseCloud,
    ];

    pub fn has_vpn(self) -> bool {
        matches!(self, Plan::Business | Plan::EnterpriseCloud)
    }

    /// The name in the API, the database and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Plan::Developer => "developer",
            Plan::Team => "team",
            Plan::Business => "business",
            Plan::EnterpriseCloud => "enterprise_cloud",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown plan {0:?}; it is one of developer, team, business, enterprise_cloud")]
pub struct UnknownPlan(String);

impl FromStr for Plan {
    type Err = UnknownPlan;

    fn from_str(name: &str) -> Result<Plan, UnknownPlan> {
        Plan::ALL
            .into_iter()
            .find(|plan| plan.as_str() == name)
            .ok_or_else(|| UnknownPlan(name.to_owned()))
    }
}

/// What a tenant may send, and receive, per second. None is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub packets: Option<u32>,
    pub bytes: Option<u64>,
}

/// The limits by plan.
#[derive(Clone, Debug, Default)]
pub struct PlanLimits(BTreeMap<Plan, Limits>);

impl PlanLimits {
    /// A later limit of a plan replaces an earlier one.
    pub fn new(limits: impl IntoIterator<Item = PlanLimit>) -> Self {
        let by_plan = limits.into_iter().map(|limit| (limit.plan, limit.limits));
        Self(by_plan.collect())
    }

    pub fn of(&self, plan: Plan) -> Limits {
        self.0.get(&plan).copied().unwrap_or_default()
    }
}

/// One plan's limits, written `business=packets:50000,bytes:12500000`; either part
/// may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimit {
    plan: Plan,
    limits: Limits,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLimit {
    #[error(transparent)]
    Plan(#[from] UnknownPlan),
    #[error("{0:?} is not a limit; write PLAN=packets:N,bytes:N (per second), or one of the two")]
    Form(String),
    #[error("{0} packets per second is out of range: use 1 to 100000000")]
    Packets(u64),
    #[error("{0} bytes per second is out of range: use 1000 to 100000000000")]
    Bytes(u64),
}

impl FromStr for PlanLimit {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let form = || InvalidLimit::Form(text.to_owned());
        let (plan, parts) = text.split_once('=').ok_or_else(form)?;
        let mut limits = Limits::default();
        for part in parts.split(',') {
            let (kind, number) = part.split_once(':').ok_or_else(form)?;
            let number: u64 = number.parse().map_err(|_| form())?;
            match kind {
                "packets" if limits.packets.is_none() => {
                    let in_range = (1..=100_000_000).contains(&number);
                    let packets = u32::try_from(number).ok().filter(|_| in_range);
                    limits.packets = Some(packets.ok_or(InvalidLimit::Packets(number))?);
                }
                "bytes" if limits.bytes.is_none() => {
                    if !(1_000..=100_000_000_000).contains(&number) {
                        return Err(InvalidLimit::Bytes(number));
                    }
                    limits.bytes = Some(number);
                }
                _ => return Err(form()),
            }
        }
        Ok(Self {
            plan: plan.parse()?,
            limits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_business_and_enterprise_cloud_have_vpn() {
        let with_vpn: Vec<Plan> = Plan::ALL.into_iter().filter(|p| p.has_vpn()).collect();
        assert_eq!(with_vpn, [Plan::Business, Plan::EnterpriseCloud]);
    }

    #[test]
    fn text_json_and_parsing_agree() {
        for plan in Plan::ALL {
            assert_eq!(plan.to_string().parse(), Ok(plan));
            assert_eq!(
                serde_json::to_value(plan).unwrap(),
                serde_json::Value::from(plan.as_str())
            );
        }
    }

    #[test]
    fn an_unknown_plan_is_refused_with_the_known_ones() {
        let error = "Enterprise".parse::<Plan>().unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown plan \"Enterprise\"; it is one of developer, team, business, enterprise_cloud"
        );
    }

    #[test]
    fn a_plans_limits_are_read_from_text() {
        let limits = PlanLimits::new([
            "business=packets:50000,bytes:12500000".parse().unwrap(),
            "enterprise_cloud=bytes:1000000000".parse().unwrap(),
        ]);
        let business = limits.of(Plan::Business);
        assert_eq!(business.packets, Some(50_000));
        assert_eq!(business.bytes, Some(12_500_000));
        let enterprise = limits.of(Plan::EnterpriseCloud);
        assert_eq!(enterprise.packets, None);
        assert_eq!(enterprise.bytes, Some(1_000_000_000));
        assert_eq!(limits.of(Plan::Team), Limits::default());
    }

    #[test]
    fn a_limit_that_cannot_be_is_refused_with_what_can() {
        let says = |text: &str| text.parse::<PlanLimit>().unwrap_err().to_string();
        for text in [
            "",
            "business",
            "business=",
            "business=packets",
            "business=packets:x",
            "business=bits:1",
            "business=packets:1,packets:2",
            "business=packets:-1",
        ] {
            assert!(says(text).contains("PLAN=packets:N,bytes:N"), "{text}");
        }
        assert!(says("gold=packets:1").contains("business"));
        assert!(says("business=packets:0").contains("1 to 100000000"));
        assert!(says("business=bytes:999").contains("1000 to"));
        assert!(says("business=bytes:100000000001").contains("1000 to"));
    }
}
