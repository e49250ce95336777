//! How soon a tenant that is applied to a cluster is steered.
//!
//! Everything is real but the gateways' containers: API server, scheduler,
//! controller manager, the controller, and an agent, which has a gateway's port
//! in its map once its pod is ready. A stand-in for a kubelet says so at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::PostParams;
use lab::agent::Agent;
use lab::cluster::{Cluster, Containers, Controller, Kubelet, SERVER, token};
use lab::node::{Lab, Node};
use serde::Serialize;
use serde_json::{from_value, json};
use uuid::Uuid;
use vpn_edge::cluster::{TENANT, VpnTenant};
use vpn_edge::datapath::{DEFAULT_ROOT, Reader};
use vpn_edge_common::mode;

/// The name that selects this.
pub const NAME: &str = "cluster";
/// Tenants that are there before, and those that come at once.
const LOADS: [(usize, usize); 3] = [(0, 1), (0, 1_000), (1_000, 1)];
/// Workers, of 200 pods each.
const WORKERS: usize = 6;
/// Requests at a time.
const MAX_CONCURRENT: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at the map.
const POLL: Duration = Duration::from_millis(20);

/// Milliseconds from the request that creates a tenant.
#[derive(Serialize)]
pub struct Figure {
    before: usize,
    tenants: usize,
    median: f64,
    p99: f64,
    worst: f64,
}

pub fn measure() -> Result<Vec<Figure>> {
    let mut scene = Scene::new()?;
    println!(
        "{:<32} {:>10} {:>10} {:>10}",
        "CREATE TO MAP ENTRY, ms", "median", "p99", "worst"
    );
    let mut figures = Vec::new();
    for (before, tenants) in LOADS {
        let rounds = if tenants == 1 { 15 } else { 1 };
        let mut took = Vec::new();
        for _ in 0..rounds {
            took.extend(scene.create(tenants)?);
            if tenants == 1 {
                scene.delete_last()?;
            }
        }
        took.sort_by(f64::total_cmp);
        let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize];
        let figure = Figure {
            before,
            tenants,
            median: at(0.5),
            p99: at(0.99),
            worst: at(1.0),
        };
        println!(
            "{:<32} {:>10.0} {:>10.0} {:>10.0}",
            format!("{tenants} at once, {before} before"),
            figure.median,
            figure.p99,
            figure.worst
        );
        figures.push(figure);
    }
    println!();
    Ok(figures)
}

struct Scene {
    made: usize,
    edge: Node,
    _agent: Agent,
    _controller: Controller,
    _kubelets: Vec<Kubelet>,
    _members: Vec<lab::cluster::Member>,
    cluster: Cluster,
    _lab: Lab,
}

/// A pod with an address, and nothing in it.
struct Nothing(AtomicU32);

impl Containers for Nothing {
    const CHANGE: bool = false;

    fn start(&self, _: &Pod) -> Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::from(self.0.fetch_add(1, Relaxed)).into()])
    }

    fn stop(&self, _: &Pod) -> Result<()> {
        Ok(())
    }
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let (edge, world) = (lab.node("edge")?, lab.node("world")?);
        edge.link("eth0", &world, "eth0")?;
        world.sh("ip address add 192.0.2.1/24 dev eth0")?;
        edge.sh("ip address add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")?;
        cluster.node().link("edge", &edge, "api")?;
        cluster.node().sh("ip address add 10.255.1.1/24 dev edge")?;
        edge.sh(&format!(
            "ip address add 10.255.1.2/24 dev api; ip route add {SERVER} via 10.255.1.1
             sysctl -qw net.ipv4.ip_forward=1"
        ))?;
        cluster.install()?;
        let mut members = vec![cluster.add_node("edge", &[IpAddr::from([192, 0, 2, 2])])?];
        cluster.kubectl_said(&["cordon", "edge"])?;
        let mut kubelets = Vec::new();
        for number in 1..=WORKERS {
            let last = u8::try_from(number + 9)?;
            let address = IpAddr::from([192, 0, 2, last]);
            let member = cluster.add_node(&format!("worker-{number}"), &[address])?;
            let pods = Ipv4Addr::new(10, 244, last, 1);
            kubelets.push(Kubelet::start(&member, Nothing(u32::from(pods).into())));
            members.push(member);
        }
        token(cluster.node())?;
        let controller = Controller::start(&cluster, 0, "30000-31999")?;
        let mut agent = Agent::in_cluster(&edge, "edge", &cluster.agents_kubeconfig()?, &[])?;
        agent.restart()?;
        Ok(Self {
            made: 0,
            edge,
            _agent: agent,
            _controller: controller,
            _kubelets: kubelets,
            _members: members,
            cluster,
            _lab: lab,
        })
    }

    /// Creates so many tenants at once, and gives back the milliseconds that
    /// each took to be steered.
    fn create(&mut self, count: usize) -> Result<Vec<f64>> {
        let numbers: Vec<usize> = (self.made..self.made + count).collect();
        self.made += count;
        let client = self.cluster.client();
        let params = PostParams::default();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let made = stream::iter(&numbers).map(Ok::<_, anyhow::Error>);
        self.cluster.run(
            made.try_for_each_concurrent(MAX_CONCURRENT, async |number| {
                let namespace = json!({ "metadata": { "name": namespace(*number) } });
                namespaces.create(&params, &from_value(namespace)?).await?;
                Ok(())
            }),
        )?;

        let mut wanted: BTreeSet<[u8; 16]> = numbers
            .iter()
            .map(|number| id(*number).into_bytes())
            .collect();
        let steered = self.edge.inside(move || {
            let reader = Reader::open(Path::new(DEFAULT_ROOT))?;
            let mut seen = BTreeMap::new();
            let start = Instant::now();
            while !wanted.is_empty() {
                ensure!(
                    start.elapsed() < TIMEOUT,
                    "{} are not steered",
                    wanted.len()
                );
                let now = Instant::now();
                for allocation in reader.allocations().values() {
                    if allocation.mode == mode::HOP && wanted.remove(&allocation.tenant) {
                        seen.insert(allocation.tenant, now);
                    }
                }
                // Who reads it takes others' time.
                std::thread::sleep(POLL.max(now.elapsed() * 20));
            }
            Ok(seen)
        });
        let created = stream::iter(numbers.clone()).map(|number| {
            let tenants: Api<VpnTenant> = Api::namespaced(client.clone(), &namespace(number));
            async move {
                let tenant = json!({
                    "metadata": { "name": TENANT },
                    "spec": {
                        "id": id(number), "organisation": "acme", "plan": "business",
                        "ready": true, "vpn": { "enabled": true },
                    },
                });
                let asked = Instant::now();
                tenants
                    .create(&PostParams::default(), &from_value(tenant)?)
                    .await?;
                Ok::<_, anyhow::Error>((id(number).into_bytes(), asked))
            }
        });
        let asked: BTreeMap<[u8; 16], Instant> = self
            .cluster
            .run(created.buffer_unordered(MAX_CONCURRENT).try_collect())?;
        let steered = steered.join().expect("the thread does not panic")?;
        let took = asked.iter().map(|(id, asked)| {
            let seen = steered.get(id).context("all were seen")?;
            Ok(seen.duration_since(*asked).as_secs_f64() * 1e3)
        });
        took.collect()
    }

    /// Deletes the tenant that was created last, and waits until it is gone.
    fn delete_last(&self) -> Result<()> {
        let namespace = namespace(self.made - 1);
        self.cluster.kubectl_said(&[
            "delete",
            "vpntenant",
            TENANT,
            "-n",
            &namespace,
            "--timeout=60s",
        ])?;
        Ok(())
    }
}

fn namespace(number: usize) -> String {
    format!("tenant-{number}")
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(0x7c9e_6679_7425_40de_944b_0000_0000_0000 + number as u128)
}
