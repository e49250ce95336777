//! The audit log of a cluster, as the shipped roles let controllers keep it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, Client};
use lab::cluster::{Cluster, Controller, Identity, SYSTEM, api, token};
use lab::node::{Lab, program};
use nix::sys::signal::Signal;
use uuid::Uuid;
use vpn_edge::api::AuditList;
use vpn_edge::audit::{Action, Limits, Log as _, Outcome, Query, Record};
use vpn_edge::auth::{Caller, Role};
use vpn_edge::cluster::audit::KubeLog;
use vpn_edge::cluster::tenants::KubeRegistry;
use vpn_edge::cluster::tenants::Settings;
use vpn_edge::domain::{Plan, Pools, Tenant, TunnelSettings};
use vpn_edge::registry::Registry;

const ALL: Query = Query {
    tenant: None,
    limit: 1000,
    before: None,
};

/// A cluster with the roles of controllers.
struct Scene {
    cluster: Cluster,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        cluster.install()?;
        Ok(Self { cluster, _lab: lab })
    }

    /// Of the controllers' account.
    fn client(&self) -> Result<Client> {
        self.cluster.client_as(Identity::ServiceAccount {
            namespace: SYSTEM,
            name: "vpn-edge-controller",
        })
    }

    fn registry(&self) -> Result<Arc<KubeRegistry>> {
        let settings = Settings {
            pools: Pools::new(vec!["vpn.example.com=30000-30009".parse()?])?,
            tunnels: TunnelSettings {
                cluster_ranges: Vec::new(),
                dns: IpAddr::from([10, 96, 0, 10]),
                ipv6: false,
                mtu: None,
            },
        };
        let client = self.client()?;
        let registry = self.cluster.run(KubeRegistry::start(client, settings))?;
        Ok(Arc::new(registry))
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client(), SYSTEM)
    }

    /// What `vpn-edge` prints that asks this controller's API.
    fn asked(&self, controller: usize, token: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.node().command(program("vpn-edge")?);
        let server = format!("http://127.0.0.1:{}", api(controller));
        command
            .args(arguments)
            .env("VPN_EDGE_TOKEN", token)
            .env("VPN_EDGE_SERVER", server);
        let output = self.cluster.node().output(command)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        ensure!(output.status.success(), "{}", text(output.stderr));
        Ok(text(output.stdout))
    }
}

fn caller() -> Caller {
    Caller {
        role: Role::Admin,
        subject: "oidc:alice alice@example.com".to_owned(),
    }
}

fn tenant(number: u128) -> Result<Tenant> {
    let id = Uuid::from_u128(number);
    let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Business, Timestamp::now())?;
    tenant.set_namespace(format!("t-{number}"))?;
    Ok(tenant)
}

/// One action, from its begin to its outcome.
async fn act(log: &KubeLog, tenant: &Tenant, action: Action) -> Result<Record> {
    let mut record = Record::begin(&caller(), tenant, action);
    log.begin(record.clone()).await?;
    let outcome = Outcome::new(200, None);
    log.end(tenant.id, record.id, outcome.clone()).await?;
    record.outcome = Some(outcome);
    Ok(record)
}

async fn write(log: &KubeLog, tenant: &Tenant) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for _ in 0..10 {
        // One after the other, and two at once.
        let both = tokio::try_join!(
            act(log, tenant, Action::Enable),
            act(log, tenant, Action::Download),
        )?;
        records.extend([both.0, both.1]);
    }
    Ok(records)
}

#[test]
fn several_writers_of_one_log_at_once_lose_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let registry = scene.registry()?;
    let tenant = tenant(1)?;
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(KubeLog::new(scene.client()?, SYSTEM, registry.clone()));
    }
    let records = scene.cluster.run(async {
        let acts = writers.iter().map(|log| write(log, &tenant));
        futures_util::future::try_join_all(acts).await
    })?;
    let mut records: Vec<Record> = records.into_iter().flatten().collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.id));
    let kept = scene.cluster.run(writers[0].read(ALL))?;
    assert_eq!(kept, records);
    // Of other ConfigMaps, the account knows those beside it alone.
    let elsewhere: Api<ConfigMap> = Api::namespaced(scene.client()?, "default");
    let refused = scene.cluster.run(elsewhere.get("kube-root-ca.crt"));
    ensure!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.is_forbidden()),
        "{refused:?}"
    );
    let maps = scene
        .cluster
        .run(scene.maps().list(&ListParams::default()))?;
    let map = format!("vpn-edge-audit-{}", tenant.id);
    let is_it = |name: Option<&str>| name == Some(map.as_str());
    ensure!(
        maps.iter()
            .any(|found| is_it(found.metadata.name.as_deref()))
    );
    Ok(())
}

#[test]
fn logs_are_bounded_and_those_of_living_tenants_stay() -> Result<()> {
    let scene = Scene::new()?;
    let registry = scene.registry()?;
    scene
        .cluster
        .kubectl_said(&["create", "namespace", "t-100"])?;
    let lives = scene.cluster.run(registry.create(tenant(100)?))?;
    let limits = Limits {
        records: 5,
        gone: 3,
    };
    let log = KubeLog::with_limits(scene.client()?, SYSTEM, registry, limits);
    scene.cluster.run(async {
        let mut acted = Vec::new();
        for _ in 0..6 {
            acted.insert(0, act(&log, &lives, Action::Change).await?);
        }
        let query = Query {
            tenant: Some(lives.id),
            ..ALL
        };
        assert_eq!(log.read(query).await?, acted[..5]);
        let page = Query { limit: 2, ..query };
        assert_eq!(log.read(page).await?, acted[..2]);
        let before = Some(acted[1].id);
        assert_eq!(log.read(Query { before, ..page }).await?, acted[2..4]);

        // As many as it takes for it to look.
        for number in 0..32 {
            act(&log, &tenant(number)?, Action::Delete).await?;
        }
        anyhow::Ok(())
    })?;
    let expected: BTreeSet<u128> = [29, 30, 31, 100].into();
    scene.cluster.eventually("the oldest are gone", async || {
        let left = log.read(ALL).await?;
        let left: BTreeSet<u128> = left.iter().map(|r| r.tenant.as_u128()).collect();
        ensure!(left == expected, "{left:?}");
        Ok(Some(()))
    })
}

#[test]
fn without_the_api_server_nothing_is_begun() -> Result<()> {
    let mut scene = Scene::new()?;
    let registry = scene.registry()?;
    let log = KubeLog::new(scene.client()?, SYSTEM, registry);
    let tenant = tenant(1)?;
    scene.cluster.stop_api_server();
    let refused = scene.cluster.run(act(&log, &tenant, Action::Enable));
    ensure!(refused.is_err(), "{refused:?}");
    scene.cluster.start_api_server()?;
    let record = scene.cluster.eventually("a record", async || {
        Ok(Some(act(&log, &tenant, Action::Disable).await?))
    })?;
    let kept = scene.cluster.run(log.read(ALL))?;
    ensure!(kept.contains(&record), "{kept:?}");
    Ok(())
}

#[test]
fn what_callers_did_outlives_the_tenant_its_namespace_and_a_controller() -> Result<()> {
    let scene = Scene::new()?;
    let token = token(scene.cluster.node())?;
    let mut controllers = Vec::new();
    for number in 0..2 {
        controllers.push(Controller::start(&scene.cluster, number, "30000-30009")?);
    }
    let id = Uuid::from_u128(7).to_string();
    scene
        .cluster
        .kubectl_said(&["create", "namespace", "acme"])?;
    let tenant = |controller: usize, words: &str| {
        let words: Vec<&str> = ["tenant"].into_iter().chain(words.split(' ')).collect();
        scene.asked(controller, &token, &words)
    };
    let create = "create --organisation acme --plan business --ready --namespace acme --id";
    tenant(0, &format!("{create} {id}"))?;
    // The other one hears of it soon.
    scene.cluster.eventually("the tenant", async || {
        Ok(Some(tenant(1, &format!("show {id}"))?))
    })?;
    let refused = tenant(1, &format!("disable {id}")).expect_err("it is not enabled");
    ensure!(
        refused.to_string().contains("VPN is not enabled"),
        "{refused}"
    );
    tenant(0, &format!("enable --no-wait {id}"))?;
    tenant(0, &format!("delete {id}"))?;
    scene
        .cluster
        .kubectl_said(&["delete", "namespace", "acme"])?;
    controllers[0].end(Signal::SIGKILL)?;
    controllers[0].launch()?;

    for controller in 0..2 {
        let words = ["audit", "--tenant", &id, "--output", "json"];
        let text = scene.asked(controller, &token, &words)?;
        let list: AuditList = serde_json::from_str(&text).context(text)?;
        let told: Vec<_> = list
            .records
            .into_iter()
            .map(|record| {
                let outcome = record
                    .outcome
                    .map(|outcome| (outcome.status, outcome.error));
                ensure!(record.admin && record.organisation == "acme");
                ensure!(record.caller.starts_with("token:"), "{}", record.caller);
                Ok((record.action, outcome))
            })
            .collect::<Result<_>>()?;
        let not_enabled = Some("VPN is not enabled".to_owned());
        let expected = [
            (Action::Delete, Some((204, None))),
            (Action::Enable, Some((202, None))),
            (Action::Disable, Some((409, not_enabled))),
            (Action::Create, Some((201, None))),
        ];
        ensure!(told == expected, "controller {controller}: {told:?}");
    }
    Ok(())
}
