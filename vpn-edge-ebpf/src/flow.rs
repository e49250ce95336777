//! Which clients a tenant was reached by, and by which of the node's addresses.
//!
//! A gateway on another node answers to this one, at a port that stands for the
//! flow. Flows are made by packets that passed the guard alone, and in the
//! tenant's own slots. One that no reply has proven gives way first: whoever
//! forges addresses cannot push out a client that is being answered.

use crate::frame::masked;
use crate::log;
use vpn_edge_common::{FLOW_WAYS, FLOWS, Flow, Flows, Words};

/// A client, as it is looked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Client {
    pub address: Words,
    /// [`Flow::key`] with the own address left out.
    key: u64,
    /// The first of its [`FLOW_WAYS`] places.
    first: u64,
}

impl Client {
    /// The client at `address` and `port`, with the edge's secret `seed`.
    #[inline(always)]
    #[must_use]
    pub fn new(seed: u64, address: Words, port: u16) -> Self {
        let [high, low] = address;
        let mixed = high.wrapping_mul(seed) ^ low;
        let mixed = (mixed ^ (mixed >> 32) ^ u64::from(port)).wrapping_mul(seed);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(seed);
        Self {
            address,
            // Never zero, which is the key of none.
            key: Flow::key((mixed >> 24) as u32 | 1, port, 0),
            first: (mixed >> 60) * FLOW_WAYS as u64,
        }
    }

    #[inline(always)]
    #[must_use]
    pub fn port(&self) -> u16 {
        (self.key >> 16) as u16
    }

    /// Where the flow is among the tenant's, if it is known.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, flows: &Flows) -> Option<usize> {
        // SAFETY: references are valid.
        let at = unsafe { flow_find(flows, self) } as usize;
        (at < FLOWS).then_some(at)
    }

    /// Notes a packet that this client sent to the own address `own`, at the
    /// tick `now`: in its flow, or in a new one, in place of the flow that is
    /// missed least. Says where.
    #[inline(always)]
    #[must_use]
    pub fn touch(&self, flows: &Flows, own: u8, now: u32, life: u32) -> usize {
        // SAFETY: references are valid.
        let at = unsafe { flow_touch(flows, self, u32::from(own), now, life) };
        at as usize & (FLOWS - 1)
    }

    /// Whether the key is this client's, whichever address it sent to.
    #[inline(always)]
    fn has(&self, key: u64) -> bool {
        key >> 16 == self.key >> 16
    }

    #[inline(always)]
    fn place(&self, way: usize) -> usize {
        self.first as usize + way
    }

    #[inline(always)]
    fn is_at(&self, flow: &Flow) -> bool {
        let [high, low] = load(flow);
        self.has(flow.key.load()) && high == self.address[0] && low == self.address[1]
    }
}

/// [`Client::find`] as a function of its own; [`FLOWS`] if there is none.
///
/// With symbols of their own, this and the next are global functions to the
/// verifier, which then reads them once, and they have a stack of their own.
///
/// # Safety
///
/// Both must be null or valid for reads.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
unsafe extern "C" fn flow_find(flows: *const Flows, client: *const Client) -> u32 {
    // SAFETY: as the caller vouches.
    let (Some(flows), Some(client)) = (unsafe { flows.as_ref() }, unsafe { client.as_ref() })
    else {
        return FLOWS as u32;
    };
    for way in 0..FLOW_WAYS {
        let at = client.place(way);
        if client.is_at(get(flows, at)) {
            return at as u32;
        }
    }
    FLOWS as u32
}

/// [`Client::touch`] as a function of its own.
///
/// # Safety
///
/// As for [`flow_find`].
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
unsafe extern "C" fn flow_touch(
    flows: *const Flows,
    client: *const Client,
    own: u32,
    now: u32,
    life: u32,
) -> u32 {
    // SAFETY: as the caller vouches.
    let (Some(flows), Some(client)) = (unsafe { flows.as_ref() }, unsafe { client.as_ref() })
    else {
        return 0;
    };
    let key = client.key | u64::from(own & 0xff);
    let mut place = client.place(0);
    let mut least = u64::MAX;
    for way in 0..FLOW_WAYS {
        let at = client.place(way);
        let flow = get(flows, at);
        if client.is_at(flow) {
            if flow.key.load() != key {
                flow.key.store(key);
            }
            let seen = flow.seen.load();
            if (seen >> 32) as u32 != now {
                flow.seen
                    .store(u64::from(now) << 32 | u64::from(seen as u32));
            }
            return at as u32;
        }
        let worth = worth(flow, now, life);
        if worth < least {
            least = worth;
            place = at;
        }
    }
    let flow = get(flows, place);
    if least >> 32 != 0 {
        log::answered_flow_replaced(flow);
    } else if least != 0 {
        log::flow_replaced(flow);
    }
    flow.key.store(0);
    let [first, second] = &flow.address;
    first.store(client.address[0]);
    second.store(client.address[1]);
    flow.seen.store(u64::from(now) << 32);
    flow.indexes.store(0);
    flow.key.store(key);
    place as u32
}

/// A flow that is known by its place.
pub struct Known<'m> {
    flow: &'m Flow,
    pub client: Client,
    /// Index of the own address that the client sent to.
    pub own: u8,
}

/// The flow at `at`, if there is one.
#[inline(always)]
#[must_use]
pub fn at(flows: &Flows, at: usize, seed: u64) -> Option<Known<'_>> {
    let flow = get(flows, at);
    let key = flow.key.load();
    let client = Client::new(seed, load(flow), (key >> 16) as u16);
    // Torn between two writers, or none at all.
    if !client.has(key) {
        return None;
    }
    Some(Known {
        flow,
        client,
        own: key as u8,
    })
}

impl Known<'_> {
    /// Notes a reply at the tick `now`.
    #[inline(always)]
    pub fn confirm(&self, now: u32) {
        let seen = self.flow.seen.load();
        if seen as u32 != now {
            self.flow.seen.store(seen >> 32 << 32 | u64::from(now));
        }
    }

    /// The tick of the client's last packet, and of the last reply.
    #[must_use]
    pub fn seen(&self) -> (u32, u32) {
        let seen = self.flow.seen.load();
        ((seen >> 32) as u32, seen as u32)
    }

    /// Whether a reply proved it within the last `life` ticks.
    #[inline(always)]
    #[must_use]
    pub fn is_proven(&self, now: u32, life: u32) -> bool {
        let proven = self.flow.seen.load() as u32;
        proven != 0 && proven + life > now
    }

    /// Notes an index under which the client wants to be answered.
    #[inline(always)]
    pub fn expect_index(&self, index: u32) {
        let indexes = self.flow.indexes.load();
        self.flow
            .indexes
            .store(indexes >> 32 << 32 | u64::from(index));
    }

    /// The index that was offered last; zero if none was seen.
    #[inline(always)]
    #[must_use]
    pub fn offered(&self) -> u32 {
        self.flow.indexes.load() as u32
    }

    /// Notes a session that the client uses and this node does not know.
    #[inline(always)]
    pub fn note_pending(&self, index: u32) {
        let indexes = self.flow.indexes.load();
        if (indexes >> 32) as u32 != index {
            self.flow
                .indexes
                .store(u64::from(index) << 32 | u64::from(indexes as u32));
        }
    }

    /// Takes the session out that was wondered about; zero if there is none.
    #[inline(always)]
    #[must_use]
    pub fn wondered(&self) -> u32 {
        let indexes = self.flow.indexes.load();
        let index = (indexes >> 32) as u32;
        if index != 0 {
            self.flow.indexes.store(u64::from(indexes as u32));
        }
        index
    }
}

/// What would be lost with the flow: nothing, if there is none or it has
/// expired, and more if it is proven; then by the last packet.
#[inline(always)]
fn worth(flow: &Flow, now: u32, life: u32) -> u64 {
    let seen = flow.seen.load();
    let (last, proven) = ((seen >> 32) as u32, seen as u32);
    if flow.key.load() == 0 || last + life <= now {
        return 0;
    }
    let is_proven = proven != 0 && proven + life > now;
    u64::from(is_proven) << 32 | u64::from(last)
}

#[inline(always)]
fn load(flow: &Flow) -> Words {
    let [high, low] = &flow.address;
    [high.load(), low.load()]
}

#[inline(always)]
fn get(flows: &Flows, at: usize) -> &Flow {
    // SAFETY: masked by the length less one, which is a power of two.
    unsafe { flows.0.get_unchecked(masked::<{ FLOWS - 1 }>(at)) }
}

#[cfg(test)]
mod tests {
    use vpn_edge_common::mapped_words;

    use super::*;

    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    const LIFE: u32 = 100;

    fn client(number: u32) -> Client {
        Client::new(SEED, mapped_words(number), 4000)
    }

    #[test]
    fn a_flow_is_found_again_by_its_client_and_by_its_place() {
        let flows = Flows::default();
        let one = client(7);
        assert_eq!(one.find(&flows), None);
        let place = one.touch(&flows, 3, 1000, LIFE);
        assert_eq!(one.find(&flows), Some(place));
        assert_eq!(one.touch(&flows, 5, 1001, LIFE), place, "no second one");
        let known = at(&flows, place, SEED).unwrap();
        assert_eq!(known.client.address, mapped_words(7));
        assert_eq!((known.client.port(), known.own), (4000, 5));
        let others = [
            Client::new(SEED, mapped_words(7), 4001),
            Client::new(SEED, mapped_words(8), 4000),
            Client::new(SEED, [7, mapped_words(7)[1]], 4000),
        ];
        for other in others {
            assert_eq!(other.find(&flows), None);
        }
    }

    #[test]
    fn an_empty_place_has_no_flow() {
        let flows = Flows::default();
        assert!((0..FLOWS).all(|place| at(&flows, place, SEED).is_none()));
    }

    #[test]
    fn what_two_writers_made_together_is_nobodys() {
        let flows = Flows::default();
        let place = client(7).touch(&flows, 0, 1000, LIFE);
        flows.0[place].address[1].store(mapped_words(8)[1]);
        assert!(at(&flows, place, SEED).is_none());
        assert_eq!(client(7).find(&flows), None);
        assert_eq!(client(8).find(&flows), None);
    }

    #[test]
    fn a_proven_flow_outlasts_any_number_that_are_not() {
        let flows = Flows::default();
        let kept = client(7);
        let place = kept.touch(&flows, 0, 1000, LIFE);
        at(&flows, place, SEED).unwrap().confirm(1000);
        for number in 100..10_000 {
            let _ = client(number).touch(&flows, 0, 1001, LIFE);
        }
        assert_eq!(kept.find(&flows), Some(place));
        // But not for ever.
        for number in 100..10_000 {
            let _ = client(number).touch(&flows, 0, 1000 + LIFE, LIFE);
        }
        assert_eq!(kept.find(&flows), None);
    }

    #[test]
    fn clients_use_all_places() {
        let flows = Flows::default();
        for number in 0..5_000 {
            let _ = client(number).touch(&flows, 0, 1000, LIFE);
        }
        let used = (0..FLOWS).filter(|&place| at(&flows, place, SEED).is_some());
        assert_eq!(used.count(), FLOWS);
    }

    #[test]
    fn a_session_is_wondered_about_until_it_is_taken() {
        let flows = Flows::default();
        let place = client(7).touch(&flows, 0, 1000, LIFE);
        let known = at(&flows, place, SEED).unwrap();
        known.expect_index(11);
        known.note_pending(12);
        known.note_pending(13);
        assert_eq!(known.offered(), 11);
        assert_eq!(known.wondered(), 13);
        assert_eq!(known.wondered(), 0);
        assert_eq!(known.offered(), 11);
    }
}
