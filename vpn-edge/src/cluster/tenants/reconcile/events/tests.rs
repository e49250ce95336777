use std::sync::Arc;

use super::super::super::index::Reservation;
use super::super::super::status;
use super::super::super::testing::{MADE, at, settings, view};
use super::*;

const GENERATION: u64 = MADE.cast_unsigned() * 1000 + 1;

fn refused(words: &str) -> Blocker {
    Blocker::Refused(words.to_owned())
}

/// A tenant in this state with this blocker, as it is seen.
fn seen(state: State, blocker: Blocker) -> Seen {
    let view = published(state, &Blocker::None);
    let validity = Validity::Tenant(view.tenant(&[]).unwrap().into());
    Seen::new(&view, &validity, blocker)
}

/// A resource whose status was written in this state, with this blocker.
fn published(state: State, blocker: &Blocker) -> TenantObjects {
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
        blocker,
        &settings(),
        at(MADE),
    );
    Arc::make_mut(&mut view.resource).status = Some(status);
    view
}

/// The reasons of what is told of these, one after the other.
fn reasons(first: Option<Seen>, then: impl IntoIterator<Item = Seen>) -> Vec<String> {
    let mut known = first.map(Published::new);
    let mut reasons = Vec::new();
    for seen in then {
        let (events, now) = diff(known.take(), seen);
        reasons.extend(events.into_iter().map(|event| event.reason));
        known = Some(now);
    }
    reasons
}

#[test]
fn what_a_status_says_is_not_told_again() {
    let blockers = [
        Blocker::None,
        Blocker::NoPorts,
        refused("no"),
        Blocker::Gateway("no".to_owned()),
    ];
    for state in [
        State::Disabled,
        State::Enabling,
        State::Enabled,
        State::Failed,
    ] {
        for blocker in &blockers {
            let view = published(state, blocker);
            let validity = Validity::Tenant(view.tenant(&[]).unwrap().into());
            let known = Seen::read(&view);
            assert!(known.is_some());
            for now in [blocker.clone(), Blocker::Unknown] {
                let seen = Seen::new(&view, &validity, now);
                let told = reasons(known.clone(), [seen]);
                assert!(told.is_empty(), "{state:?} {blocker:?}: {told:?}");
            }
        }
    }
    for validity in [
        Validity::Invalid("no id".to_owned()),
        Validity::Duplicate("t-0".to_owned()),
    ] {
        let mut view = view(30_000, GENERATION);
        let (reason, message) = validity.refusal().unwrap();
        let status = status::refused(&view, reason, &message, at(MADE));
        Arc::make_mut(&mut view.resource).status = Some(status);
        let seen = || Seen::new(&view, &validity, Blocker::None);
        assert!(reasons(Seen::read(&view), [seen()]).is_empty());
        assert_eq!(reasons(None, [seen()]), [reason]);
    }
}

#[test]
fn what_came_about_unseen_is_told() {
    let before = Seen::read(&published(State::Enabling, &Blocker::None));
    let now = seen(State::Enabled, Blocker::None);
    assert_eq!(reasons(before, [now]), ["Enabled"]);
    let mut new = view(30_000, GENERATION);
    Arc::make_mut(&mut new.resource).status = None;
    assert!(Seen::read(&new).is_none());
}

#[test]
fn a_blocker_is_an_event_once_a_message_until_it_is_over() {
    use Blocker::{Gateway, Unknown};
    let one = || seen(State::Disabled, refused("one"));
    let nothing = || seen(State::Disabled, Blocker::None);
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
    let view = published(State::Disabled, &refused("one"));
    let validity = Validity::Tenant(view.tenant(&[]).unwrap().into());
    let unknown = Seen::new(&view, &validity, Unknown);
    assert!(reasons(Some(one()), [unknown, one()]).is_empty());

    // A pod that ends again and again.
    let crashed = || seen(State::Enabling, Gateway("it ended".to_owned()));
    let starting = || seen(State::Enabling, Blocker::None);
    let told = reasons(
        Some(starting()),
        [crashed(), starting(), crashed(), starting()],
    );
    assert_eq!(told, ["GatewayDegraded"]);
    let enabled = seen(State::Enabled, Blocker::None);
    let told = reasons(Some(crashed()), [enabled, crashed()]);
    assert_eq!(told, ["Enabled", "Enabling", "GatewayDegraded"]);
}

#[test]
fn a_note_is_as_long_as_the_api_server_takes_it() {
    let long = seen(State::Disabled, refused(&"ä".repeat(5000)));
    let (events, _) = diff(None, long);
    let note = events[0].note.as_ref().unwrap();
    assert_eq!(note.chars().count(), NOTE);
}
