//! The cluster's resources that the edge needs, and the desired state made from them.
//!
//! Events go in, the state comes out; nothing here does I/O. A new list replaces the
//! old one when it is complete, so that a relist is never taken for a deletion of all
//! tenants.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use uuid::Uuid;

use super::parts::{EndpointSlice, Node, VpnTenant};
use crate::agent::{Allocated, DesiredState};
use crate::cluster::cache::{Cache, Name};
use crate::cluster::{GATEWAY, TENANT, label};
use crate::domain::{GatewayState, TunnelDigest};
use crate::gateways::{Addresses, Gateway, Location};

/// The cached part of a resource.
pub(super) trait Row: Sized + PartialEq {
    type Object: ResourceExt;

    /// None if the edge has no use for the object.
    fn of(object: &Self::Object) -> Option<Self>;
}

/// All resources of a kind.
#[derive(Debug)]
pub(super) struct Table<R>(Cache<R>);

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self(Cache::default())
    }
}

impl<R: Row> Table<R> {
    /// Applies an event of a watch. Returns whether anything changed: most updates of
    /// Nodes change nothing that matters here.
    pub fn feed(&mut self, event: &Event<R::Object>) -> bool {
        let was_complete = self.0.is_complete();
        let changes = self.0.take(event, R::of);
        let mut changes = changes.iter();
        let changed = changes.any(|change| self.0.get(&change.name) != change.before.as_ref());
        self.0.is_complete() && (changed || !was_complete)
    }

    fn rows(&self) -> impl Iterator<Item = (&Name, &R)> {
        self.0.iter()
    }
}

/// A VpnTenant.
#[derive(Debug, PartialEq)]
pub(super) struct Tenant {
    id: Uuid,
    created: Option<Timestamp>,
    /// None while it has no port or is being deleted.
    allocated: Option<Allocated>,
}

impl Row for Tenant {
    type Object = VpnTenant;

    fn of(object: &VpnTenant) -> Option<Self> {
        if object.name_any() != TENANT {
            return None;
        }
        let id = object.spec.id.parse().ok()?;
        let metadata = &object.metadata;
        let deleted = metadata.deletion_timestamp.is_some();
        let allocated = if deleted { None } else { object.allocated(id) };
        Some(Self {
            id,
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            allocated,
        })
    }
}

/// An EndpointSlice of a gateway's Service.
#[derive(Debug, PartialEq)]
pub(super) struct Slice {
    tenant: Uuid,
    generation: u64,
    port: u16,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    state: EndpointState,
    node: Option<String>,
    /// The pod's name; a pod has one endpoint per IP version.
    pod: Option<String>,
    address: IpAddr,
}

/// The best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EndpointState {
    Ready,
    /// Terminating, but still serving.
    Leaving,
    Starting,
}

impl Row for Slice {
    type Object = EndpointSlice;

    fn of(object: &EndpointSlice) -> Option<Self> {
        let labels = object.labels();
        // Anybody who may create Services in a namespace may set labels, but this
        // name is taken there.
        if labels.get("kubernetes.io/service-name")? != GATEWAY {
            return None;
        }
        let ports = object.ports.iter().flatten();
        let mut udp = ports.filter(|port| port.protocol.as_deref() == Some("UDP"));
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let leaving =
                conditions.serving.unwrap_or(ready) && conditions.terminating == Some(true);
            Some(Endpoint {
                state: match (ready, leaving) {
                    (true, _) => EndpointState::Ready,
                    (false, true) => EndpointState::Leaving,
                    (false, false) => EndpointState::Starting,
                },
                node: endpoint.node_name.clone(),
                pod: endpoint.target_ref.as_ref().and_then(|of| of.name.clone()),
                // All addresses are equivalent: the API says to use the first.
                address: endpoint.addresses.first()?.parse().ok()?,
            })
        });
        Some(Self {
            tenant: labels.get(label::TENANT)?.parse().ok()?,
            generation: labels.get(label::GENERATION)?.parse().ok()?,
            port: udp.next()?.port?.try_into().ok()?,
            endpoints: endpoints.collect(),
        })
    }
}

/// A Node.
#[derive(Debug, PartialEq)]
pub(super) struct NodeAddresses {
    /// The addresses at which its gateways are reached.
    internal: Addresses,
    /// All addresses that it may send from.
    all: BTreeSet<IpAddr>,
}

impl Row for NodeAddresses {
    type Object = Node;

    fn of(object: &Node) -> Option<Self> {
        let of_types = |types: &'static [&str]| {
            let addresses = object.status.addresses.iter();
            let addresses = addresses.filter(|address| types.contains(&&*address.type_));
            addresses.filter_map(|address| address.address.parse::<IpAddr>().ok())
        };
        let all = of_types(&["InternalIP", "ExternalIP"]);
        Some(Self {
            internal: first_of_each(of_types(&["InternalIP"])),
            all: all.map(|address| address.to_canonical()).collect(),
        })
    }
}

fn first_of_each(all: impl Iterator<Item = IpAddr>) -> Addresses {
    let mut first = Addresses::default();
    for address in all {
        match address {
            IpAddr::V4(v4) => first.v4 = first.v4.or(Some(v4)),
            IpAddr::V6(v6) => first.v6 = first.v6.or(Some(v6)),
        }
    }
    first
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The name of this node.
    node: String,
    pub tenants: Table<Tenant>,
    pub slices: Table<Slice>,
    pub nodes: Table<NodeAddresses>,
}

/// The desired state, except for what only this node knows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Gateways on this node have no location yet.
    pub desired: DesiredState,
    /// By port, the pods of gateways on this node.
    pub here: BTreeMap<u16, Addresses>,
}

impl Index {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..Self::default()
        }
    }

    /// The kinds that have not been listed yet.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("vpntenants", self.tenants.0.is_complete()),
            ("endpointslices", self.slices.0.is_complete()),
            ("nodes", self.nodes.0.is_complete()),
        ]
        .into_iter()
        .filter_map(|(name, is_complete)| (!is_complete).then_some(name))
        .collect()
    }

    /// Whether this node is in the cluster.
    pub fn has_node(&self) -> bool {
        self.nodes.rows().any(|((_, name), _)| *name == self.node)
    }

    /// The state, once everything has been listed.
    pub fn seen(&self) -> Option<Seen> {
        if !self.missing().is_empty() {
            return None;
        }
        let has_gateway = |namespace: &str, of: &Allocated| {
            self.slices.rows().any(|((place, _), slice)| {
                place == namespace
                    && (slice.port, slice.tenant, slice.generation)
                        == (of.port, of.tenant, of.generation)
            })
        };
        let mut held: BTreeMap<u16, (&str, &Tenant, &Allocated)> = BTreeMap::new();
        let mut ids: BTreeMap<&str, Uuid> = BTreeMap::new();
        for ((namespace, _), row) in self.tenants.rows() {
            ids.insert(namespace, row.id);
            let Some(allocated) = &row.allocated else {
                continue;
            };
            // A port has one holder. If two tenants claim it, all edges choose the
            // same one: the one that has a gateway there, then the older one. Other
            // numbers, which tenants may be able to influence, are not considered.
            let claim = (namespace.as_str(), row, allocated);
            match held.entry(allocated.port) {
                Entry::Vacant(free) => drop(free.insert(claim)),
                Entry::Occupied(mut holder) => {
                    let rank = |(namespace, row, of): (&str, &Tenant, &Allocated)| {
                        (!has_gateway(namespace, of), row.created, row.id)
                    };
                    if rank(claim) < rank(*holder.get()) {
                        holder.insert(claim);
                    }
                }
            }
        }

        // A gateway has one EndpointSlice or more per IP version. Only those in the
        // tenant's own namespace count.
        let mut gateways: BTreeMap<(u16, bool, u64, &str), Vec<&Endpoint>> = BTreeMap::new();
        for ((namespace, _), slice) in self.slices.rows() {
            if ids.get(namespace.as_str()) != Some(&slice.tenant) {
                continue;
            }
            let wanted = held.get(&slice.port).is_some_and(|(home, _, allocated)| {
                home == namespace
                    && allocated.tenant == slice.tenant
                    && allocated.generation == slice.generation
            });
            let key = (slice.port, wanted, slice.generation, namespace.as_str());
            gateways.entry(key).or_default().extend(&slice.endpoints);
        }

        let mut seen = Seen::default();
        let mut by_port = BTreeMap::new();
        for ((port, _, generation, namespace), endpoints) in gateways {
            // The desired generation comes last and replaces the others.
            by_port.insert(port, (ids[namespace], generation, endpoints));
        }
        for (port, (tenant, generation, endpoints)) in by_port {
            let pod = pod(&endpoints);
            let location = pod.as_ref().and_then(|pod| {
                if pod.node == Some(self.node.as_str()) {
                    seen.here.insert(port, pod.addresses);
                    return None;
                }
                let node = (String::new(), pod.node?.to_owned());
                let node = self.nodes.0.get(&node)?.internal;
                // A node may have more IP versions than its pods.
                let addresses = Addresses {
                    v4: node.v4.filter(|_| pod.addresses.v4.is_some()),
                    v6: node.v6.filter(|_| pod.addresses.v6.is_some()),
                };
                (addresses != Addresses::default()).then_some(Location::There(addresses))
            });
            seen.desired.gateways.push(Gateway {
                tenant,
                generation,
                port,
                digest: TunnelDigest::default(),
                state: match pod {
                    Some(_) => GatewayState::Ready,
                    None => GatewayState::Starting,
                },
                location,
            });
        }
        let others = self
            .nodes
            .rows()
            .filter(|((_, name), _)| *name != self.node);
        seen.desired.edges = others.flat_map(|(_, node)| &node.all).copied().collect();
        let allocated = held
            .into_values()
            .map(|(_, _, allocated)| allocated.clone());
        seen.desired.allocated = allocated.collect();
        Some(seen)
    }
}

struct Pod<'a> {
    node: Option<&'a str>,
    addresses: Addresses,
}

/// The endpoint that serves, if there is one. Of several, all edges choose the same.
fn pod<'a>(endpoints: &[&'a Endpoint]) -> Option<Pod<'a>> {
    let best = endpoints.iter().min()?;
    if best.state == EndpointState::Starting {
        return None;
    }
    let own = endpoints.iter().filter(|endpoint| {
        (&endpoint.node, &endpoint.pod, endpoint.state) == (&best.node, &best.pod, best.state)
    });
    let mut own: Vec<IpAddr> = own.map(|endpoint| endpoint.address).collect();
    own.sort_unstable();
    Some(Pod {
        node: best.node.as_deref(),
        addresses: first_of_each(own.into_iter()),
    })
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
