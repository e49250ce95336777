use std::sync::Arc;

use super::super::super::index::Reservation;
use super::super::super::status;
use super::super::super::testing::{MADE, at, settings, view};
use super::*;

const GENERATION: u64 = MADE.cast_unsigned() * 1000 + 1;

fn refused(words: &str) -> Hindrance {
    Hindrance::Refused(words.to_owned())
}

/// A tenant in this state, and hindered so, as it is seen.
fn seen(state: State, hindered: Hindrance) -> Seen {
    let view = told(state, &Hindrance::Nothing);
    let standing = Standing::Tenant(view.tenant(&[]).unwrap().into());
    Seen::new(&view, &standing, hindered)
}

/// A resource whose status was written in this state, and hindered so.
fn told(state: State, hindered: &Hindrance) -> View {
    let mut view = view(30_000, GENERATION);
    if state == State::Disabled {
        (view.keys, view.service) = (None, None);
    }
    let mut tenant = view.tenant(&[]).unwrap();
    tenant.vpn.state = state;
    tenant.vpn.failure = (state == State::Failed).then(|| "why".to_owned());
    let status = status::of(
        &view,
        &tenant,
        Some(Reservation::Held),
        hindered,
        &settings(),
        at(MADE),
    );
    Arc::make_mut(&mut view.resource).status = Some(status);
    view
}

/// The reasons of what is told of these, one after the other.
fn reasons(first: Option<Seen>, then: impl IntoIterator<Item = Seen>) -> Vec<String> {
    let mut known = first.map(Known::new);
    let mut reasons = Vec::new();
    for seen in then {
        let (events, now) = news(known.take(), seen);
        reasons.extend(events.into_iter().map(|event| event.reason));
        known = Some(now);
    }
    reasons
}

#[test]
fn what_a_status_says_is_not_told_again() {
    let hindrances = [
        Hindrance::Nothing,
        Hindrance::NoPorts,
        refused("no"),
        Hindrance::Gateway("no".to_owned()),
    ];
    for state in [
        State::Disabled,
        State::Enabling,
        State::Enabled,
        State::Failed,
    ] {
        for hindered in &hindrances {
            let view = told(state, hindered);
            let standing = Standing::Tenant(view.tenant(&[]).unwrap().into());
            let known = Seen::told(&view);
            assert!(known.is_some());
            for now in [hindered.clone(), Hindrance::Unknown] {
                let seen = Seen::new(&view, &standing, now);
                let told = reasons(known.clone(), [seen]);
                assert!(told.is_empty(), "{state:?} {hindered:?}: {told:?}");
            }
        }
    }
    for standing in [
        Standing::Invalid("no id".to_owned()),
        Standing::Duplicate("t-0".to_owned()),
    ] {
        let mut view = view(30_000, GENERATION);
        let (reason, message) = standing.refusal().unwrap();
        let status = status::refused(&view, reason, &message, at(MADE));
        Arc::make_mut(&mut view.resource).status = Some(status);
        let seen = || Seen::new(&view, &standing, Hindrance::Nothing);
        assert!(reasons(Seen::told(&view), [seen()]).is_empty());
        assert_eq!(reasons(None, [seen()]), [reason]);
    }
}

#[test]
fn what_came_about_unseen_is_told() {
    let before = Seen::told(&told(State::Enabling, &Hindrance::Nothing));
    let now = seen(State::Enabled, Hindrance::Nothing);
    assert_eq!(reasons(before, [now]), ["Enabled"]);
    let mut new = view(30_000, GENERATION);
    Arc::make_mut(&mut new.resource).status = None;
    assert!(Seen::told(&new).is_none());
}

#[test]
fn a_hindrance_is_told_once_a_message_until_it_is_over() {
    use Hindrance::{Gateway, Nothing, Unknown};
    let one = || seen(State::Disabled, refused("one"));
    let nothing = || seen(State::Disabled, Nothing);
    assert_eq!(
        reasons(Some(nothing()), [one(), one(), one()]),
        ["ApplyFailed"]
    );
    let other = seen(State::Disabled, refused("another"));
    assert_eq!(
        reasons(Some(one()), [other, one()]),
        ["ApplyFailed", "ApplyFailed"]
    );
    assert_eq!(reasons(Some(one()), [nothing(), one()]), ["ApplyFailed"]);
    // Nobody knows while the API server is away.
    let view = told(State::Disabled, &refused("one"));
    let standing = Standing::Tenant(view.tenant(&[]).unwrap().into());
    let unknown = Seen::new(&view, &standing, Unknown);
    assert!(reasons(Some(one()), [unknown, one()]).is_empty());

    // A pod that ends again and again.
    let crashed = || seen(State::Enabling, Gateway("it ended".to_owned()));
    let starting = || seen(State::Enabling, Nothing);
    let told = reasons(
        Some(starting()),
        [crashed(), starting(), crashed(), starting()],
    );
    assert_eq!(told, ["GatewayDegraded"]);
    let enabled = seen(State::Enabled, Nothing);
    let told = reasons(Some(crashed()), [enabled, crashed()]);
    assert_eq!(told, ["Enabled", "Enabling", "GatewayDegraded"]);
}

#[test]
fn a_note_is_as_long_as_the_api_server_takes_it() {
    let long = seen(State::Disabled, refused(&"ä".repeat(5000)));
    let (events, _) = news(None, long);
    let note = events[0].note.as_ref().unwrap();
    assert_eq!(note.chars().count(), NOTE);
}
