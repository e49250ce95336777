//! What an organisation pays for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A tenant's plan. Only [`Plan::Business`] and [`Plan::EnterpriseCloud`]
/// include the VPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The name on the wire, in the database and on the command line.
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
}
