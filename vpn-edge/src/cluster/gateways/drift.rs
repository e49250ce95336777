//! Whether an object is still as applied.

use serde::Serialize;
use serde_json::Value;

/// Fields that must contain only what was applied: additional entries would select or
/// allow something else.
const WHOLE: [&str; 6] = [
    "selector",
    "podSelector",
    "namespaceSelector",
    "nodeSelector",
    "ingress",
    "egress",
];

/// Fields with quantities, which the API server normalises.
const QUANTITIES: [&str; 3] = ["requests", "limits", "sizeLimit"];

/// Whether every field that `wanted` sets has its value in `live`. Others may have
/// set more fields.
#[must_use]
pub fn holds(wanted: &impl Serialize, live: &impl Serialize) -> bool {
    let json = |value: serde_json::Result<Value>| value.expect("an object is JSON");
    covers(
        &json(serde_json::to_value(wanted)),
        &json(serde_json::to_value(live)),
    )
}

fn covers(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(key, wanted)| {
            let Some(live) = live.get(key) else {
                return false;
            };
            if WHOLE.contains(&&**key) {
                wanted == live
            } else if QUANTITIES.contains(&&**key) {
                are_same(wanted, live)
            } else {
                covers(wanted, live)
            }
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len()
                && wanted
                    .iter()
                    .zip(live)
                    .all(|(wanted, live)| covers(wanted, live))
        }
        _ => wanted == live,
    }
}

/// Whether these quantities are equal.
fn are_same(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted
            .iter()
            .all(|(key, wanted)| live.get(key).is_some_and(|live| are_same(wanted, live))),
        (Value::String(wanted), Value::String(live)) => {
            let amounts = (amount(wanted), amount(live));
            wanted == live
                || matches!(amounts, (Some(wanted), Some(live))
                    if (wanted - live).abs() <= 1e-9 * wanted.abs())
        }
        _ => wanted == live,
    }
}

/// The value of a quantity such as `250m`, `1.5Gi` or `2e3`.
fn amount(quantity: &str) -> Option<f64> {
    if let Ok(number) = quantity.parse() {
        return Some(number);
    }
    let suffix = quantity.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, suffix) = quantity.split_at(suffix);
    let unit = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 2f64.powi(10),
        "Mi" => 2f64.powi(20),
        "Gi" => 2f64.powi(30),
        "Ti" => 2f64.powi(40),
        "Pi" => 2f64.powi(50),
        "Ei" => 2f64.powi(60),
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn same(wanted: Value, live: Value) {
        assert!(holds(&wanted, &live), "{wanted} is not in {live}");
    }

    #[track_caller]
    fn other(wanted: Value, live: Value) {
        assert!(!holds(&wanted, &live), "{wanted} is in {live}");
    }

    #[test]
    fn what_others_add_is_theirs_and_what_was_set_stays() {
        let wanted = json!({ "spec": { "replicas": 1, "strategy": { "type": "Recreate" } } });
        same(wanted.clone(), wanted.clone());
        let mut live = wanted.clone();
        live["spec"]["progressDeadlineSeconds"] = json!(600);
        live["status"] = json!({ "replicas": 1 });
        same(wanted.clone(), live.clone());
        live["spec"]["replicas"] = json!(0);
        other(wanted.clone(), live);
        other(wanted, json!({ "spec": { "replicas": 1 } }));
    }

    #[test]
    fn lists_have_what_was_set_and_no_more() {
        let wanted = json!({ "ports": [{ "port": 1 }] });
        same(
            wanted.clone(),
            json!({ "ports": [{ "port": 1, "protocol": "UDP" }] }),
        );
        other(wanted.clone(), json!({ "ports": [{ "port": 2 }] }));
        other(
            wanted.clone(),
            json!({ "ports": [{ "port": 1 }, { "port": 2 }] }),
        );
        other(wanted, json!({ "ports": [] }));
    }

    #[test]
    fn nothing_is_added_to_what_selects_and_lets_through() {
        let more = |field: &str| {
            other(
                json!({ "spec": { field: { "a": "1" } } }),
                json!({ "spec": { field: { "a": "1", "b": "2" } } }),
            );
        };
        for field in WHOLE {
            more(field);
        }
        other(
            json!({ "egress": [{ "ports": [{ "port": 53 }] }] }),
            json!({ "egress": [{ "ports": [{ "port": 53, "endPort": 99 }] }] }),
        );
    }

    #[test]
    fn quantities_are_compared_by_what_they_amount_to() {
        let limits =
            |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory } });
        same(limits("1000m", "1024Mi"), limits("1", "1Gi"));
        same(limits("0.5", "2e3"), limits("500m", "2k"));
        same(limits("1.5", "256Mi"), limits("1500m", "256Mi"));
        other(limits("1", "1Gi"), limits("1", "1G"));
        other(limits("1", "1Gi"), limits("2", "1Gi"));
        other(limits("1", "1Gi"), json!({ "limits": { "cpu": "1" } }));
        other(limits("1", "odd"), limits("1", "even"));
        // Elsewhere they are words.
        other(json!({ "cpu": "1000m" }), json!({ "cpu": "1" }));
    }
}
