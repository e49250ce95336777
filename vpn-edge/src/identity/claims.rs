//! From a token's claims to a caller.

use std::str::FromStr;

use serde_json::Value;

use super::caller::{Caller, Role};
use super::jwt::Claims;
use super::refused::Refused;
use crate::domain::tenant::check_organisation;

/// Characters of a subject that are kept.
const MAX_SUBJECT: usize = 128;

/// A claim and the value that makes an admin, as CLAIM=VALUE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminClaim {
    claim: String,
    value: String,
}

impl FromStr for AdminClaim {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<AdminClaim, Self::Err> {
        match text.split_once('=') {
            Some((claim, value)) if !claim.is_empty() && !value.is_empty() => Ok(AdminClaim {
                claim: claim.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("write it as CLAIM=VALUE, like groups=vpn-admins"),
        }
    }
}

/// Which claims say who somebody is.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub organisation: String,
    pub admin: Option<AdminClaim>,
}

impl Mapping {
    /// # Errors
    ///
    /// That the claims make neither an admin nor an organisation's member.
    pub fn caller(&self, claims: &Claims) -> Result<Caller, Refused> {
        let subject = subject(claims);
        if self.is_admin(claims) {
            let role = Role::Admin;
            return Ok(Caller { role, subject });
        }
        let organisation = match find(claims, &self.organisation) {
            Some(Value::String(name)) => Some(name),
            // Some issuers write a list even of one.
            Some(Value::Array(names)) => match names.as_slice() {
                [Value::String(name)] => Some(name),
                _ => None,
            },
            _ => None,
        };
        let organisation = organisation
            .filter(|name| check_organisation(name).is_ok())
            .ok_or_else(|| Refused::NoOrganisation(self.organisation.clone()))?;
        Ok(Caller {
            role: Role::Member {
                organisation: organisation.clone(),
            },
            subject,
        })
    }

    fn is_admin(&self, claims: &Claims) -> bool {
        let Some(AdminClaim { claim, value }) = &self.admin else {
            return false;
        };
        match find(claims, claim) {
            Some(Value::String(text)) => text == value,
            Some(Value::Bool(yes)) => yes.to_string() == *value,
            Some(Value::Array(list)) => list.iter().any(|one| one.as_str() == Some(value)),
            _ => false,
        }
    }
}

/// A claim by its name, which may have dots itself, or else by its path.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut parts = name.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// Whom people know this caller as.
fn subject(claims: &Claims) -> String {
    let text = |name: &str| {
        let text = claims.get(name)?.as_str()?;
        (!text.is_empty()).then_some(text)
    };
    // An address that the issuer has not verified may be anybody's.
    let unverified = claims.get("email_verified") == Some(&Value::Bool(false));
    let subject = text("email")
        .filter(|_| !unverified)
        .or_else(|| text("preferred_username"))
        .or_else(|| text("sub"))
        .unwrap_or("unnamed");
    let printable = subject.chars().filter(|c| !c.is_control());
    printable.take(MAX_SUBJECT).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(organisation: &str) -> Mapping {
        Mapping {
            organisation: organisation.to_owned(),
            admin: Some("groups=vpn-admins".parse().unwrap()),
        }
    }

    fn role(mapping: &Mapping, claims: Value) -> Option<Role> {
        let caller = mapping.caller(claims.as_object().unwrap());
        caller.ok().map(|caller| caller.role)
    }

    fn member(organisation: &str) -> Option<Role> {
        let organisation = organisation.to_owned();
        Some(Role::Member { organisation })
    }

    #[test]
    fn an_organisation_is_found_by_name_and_by_path() {
        let plain = mapping("organisation");
        assert_eq!(
            role(&plain, json!({"organisation": "acme"})),
            member("acme")
        );
        assert_eq!(
            role(&plain, json!({"organisation": ["acme"]})),
            member("acme")
        );
        let nested = mapping("app.org.id");
        let claims = json!({"app": {"org": {"id": "acme"}}});
        assert_eq!(role(&nested, claims), member("acme"));
        let url = mapping("https://example.com/org");
        let claims = json!({"https://example.com/org": "acme"});
        assert_eq!(role(&url, claims), member("acme"));
    }

    #[test]
    fn without_one_valid_organisation_nobody_is_a_member() {
        let mapping = mapping("organisation");
        for claims in [
            json!({}),
            json!({"organisation": ""}),
            json!({"organisation": "a b"}),
            json!({"organisation": 7}),
            json!({"organisation": []}),
            json!({"organisation": ["acme", "globex"]}),
            json!({"organisation": {"acme": {}}}),
            json!({"organisation": null, "groups": ["others"]}),
            json!({"groups": "not-vpn-admins"}),
        ] {
            let refused = mapping.caller(claims.as_object().unwrap()).unwrap_err();
            let expected = Refused::NoOrganisation("organisation".to_owned());
            assert_eq!(refused, expected, "{claims}");
        }
    }

    #[test]
    fn an_admin_is_told_by_a_list_a_string_or_a_flag() {
        let groups = mapping("organisation");
        for claims in [
            json!({"groups": ["others", "vpn-admins"]}),
            json!({"groups": "vpn-admins", "organisation": "acme"}),
        ] {
            assert_eq!(role(&groups, claims), Some(Role::Admin));
        }
        let flag = Mapping {
            organisation: "organisation".to_owned(),
            admin: Some("app.admin=true".parse().unwrap()),
        };
        let claims = json!({"app": {"admin": true}});
        assert_eq!(role(&flag, claims), Some(Role::Admin));
        let nobody = Mapping {
            admin: None,
            ..flag
        };
        assert_eq!(role(&nobody, json!({"app": {"admin": true}})), None);
        assert!("groups".parse::<AdminClaim>().is_err());
        assert!("=x".parse::<AdminClaim>().is_err());
    }

    #[test]
    fn a_subject_is_the_best_name_there_is() {
        let table = [
            (json!({"email": "a@b.example", "sub": "1"}), "a@b.example"),
            (
                json!({"email": "a@b.example", "email_verified": false, "preferred_username": "a"}),
                "a",
            ),
            (json!({"email": "", "sub": "1\n2"}), "12"),
            (json!({}), "unnamed"),
        ];
        for (claims, expected) in table {
            assert_eq!(subject(claims.as_object().unwrap()), expected);
        }
    }
}
