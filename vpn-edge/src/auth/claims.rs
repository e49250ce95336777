//! From a token's claims to a caller.

use std::str::FromStr;

use serde_json::Value;

use super::caller::{Caller, Role};
use super::jwt::Claims;
use super::refused::{Invalid, Refused};
use crate::domain::tenant::check_organisation;

/// Maximum length of `sub` (OpenID Connect Core 1.0, section 2) and of an e-mail
/// address, in bytes.
const MAX_NAME: usize = 255;

/// A claim and the value that makes its holder an admin, written CLAIM=VALUE.
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

/// The claims that identify a caller.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub organisation: String,
    pub admin: Option<AdminClaim>,
}

impl Mapping {
    /// # Errors
    ///
    /// If the claims identify nobody, or neither an admin nor a member of an
    /// organisation.
    pub fn caller(&self, claims: &Claims) -> Result<Caller, Refused> {
        let subject = subject(claims).ok_or(Invalid::Incomplete)?;
        if self.is_admin(claims) {
            let role = Role::Admin;
            return Ok(Caller { role, subject });
        }
        let organisation = match find(claims, &self.organisation) {
            Some(Value::String(name)) => Some(name),
            // Some issuers write a list even for a single value.
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

/// A claim by its name, which may contain dots, or otherwise by its path.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut parts = name.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// The issuer's ID of this caller, which is unique and never reassigned; followed by
/// the e-mail address, for people, if it is verified.
fn subject(claims: &Claims) -> Option<String> {
    let text = |name: &str| {
        let text = claims.get(name)?.as_str()?;
        (1..=MAX_NAME).contains(&text.len()).then_some(text)
    };
    let mut subject = format!("oidc:{}", printable(text("sub")?));
    let verified = claims.get("email_verified") == Some(&Value::Bool(true));
    if let Some(email) = text("email").filter(|_| verified) {
        subject.push(' ');
        subject.push_str(&printable(email));
    }
    Some(subject)
}

/// Escapes characters that are not visible ASCII, so that a name cannot imitate
/// another one or start a new line in a log.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for c in text.chars() {
        if c.is_ascii_graphic() && c != '\\' {
            printable.push(c);
        } else {
            printable.extend(c.escape_unicode());
        }
    }
    printable
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

    fn role(mapping: &Mapping, mut claims: Value) -> Option<Role> {
        claims["sub"] = json!("1");
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
        for mut claims in [
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
            claims["sub"] = json!("1");
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
    fn a_subject_is_the_issuers_own_and_an_address_only_beside_it() {
        let email = "a@b.example";
        let table = [
            (
                json!({"sub": "1", "email": email, "email_verified": true}),
                "oidc:1 a@b.example",
            ),
            (json!({"sub": "1", "email": email}), "oidc:1"),
            (
                json!({"sub": "1", "email": email, "email_verified": false}),
                "oidc:1",
            ),
            (
                json!({"sub": "1", "email": email, "email_verified": "yes"}),
                "oidc:1",
            ),
            (json!({"sub": "1", "preferred_username": "root"}), "oidc:1"),
            (
                json!({"sub": "1", "email": "", "email_verified": true}),
                "oidc:1",
            ),
        ];
        for (claims, expected) in table {
            let subject = subject(claims.as_object().unwrap());
            assert_eq!(subject.as_deref(), Some(expected), "{claims}");
        }
    }

    #[test]
    fn no_subject_looks_like_anothers_or_breaks_a_line() {
        let table = [
            ("auth0|5f7c-8", r"oidc:auth0|5f7c-8"),
            ("1\ntoken:0f0f", r"oidc:1\u{a}token:0f0f"),
            ("1 root@b.example", r"oidc:1\u{20}root@b.example"),
            // Read from right to left, of no width, and a look-alike.
            ("\u{202e}toor", r"oidc:\u{202e}toor"),
            ("ro\u{200b}ot", r"oidc:ro\u{200b}ot"),
            ("r\u{43e}ot", r"oidc:r\u{43e}ot"),
            // What is escaped differs from what was written so.
            (r"\u{a}", r"oidc:\u{5c}u{a}"),
        ];
        for (sub, expected) in table {
            let claims = json!({"sub": sub});
            let subject = subject(claims.as_object().unwrap());
            assert_eq!(subject.as_deref(), Some(expected));
        }
    }

    #[test]
    fn who_has_no_subject_is_nobody() {
        let mapping = mapping("organisation");
        let long = "1".repeat(MAX_NAME + 1);
        for sub in [json!(null), json!(""), json!(7), json!(long)] {
            let claims = json!({"organisation": "acme", "groups": ["vpn-admins"], "sub": sub});
            let refused = mapping.caller(claims.as_object().unwrap()).unwrap_err();
            assert_eq!(refused, Refused::Invalid(Invalid::Incomplete), "{sub}");
        }
    }
}
