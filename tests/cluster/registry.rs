//! The registry over a real API server.

mod blockers;
mod crashes;
mod edit;
mod lifecycle;
mod ports;
mod refusals;

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use lab::cluster::{Cluster, eventually};
use lab::node::Lab;
use serde_json::{from_value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;
use vpn_edge::cluster::tenants::KubeRegistry;
use vpn_edge::cluster::tenants::Settings;
use vpn_edge::cluster::{GATEWAY, KEYS, TENANT, VpnTenant, VpnTenantStatus, crd, label};
use vpn_edge::domain::{
    GatewayState, Keys, Observed, Plan, Pools, State, Tenant, TunnelSettings, VpnError,
};
use vpn_edge::registry::{Change, Registry, UpdateError};
use vpn_edge::wireguard::{PrivateKey, PublicKey};

/// A cluster that knows VpnTenants.
struct Scene {
    cluster: Cluster,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let scene = Self { cluster, _lab: lab };
        scene.apply(&crd::definition()?)?;
        scene.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/vpntenants.vpn-edge.dev",
        ])?;
        Ok(scene)
    }

    fn client(&self) -> Client {
        self.cluster.client()
    }

    /// What kubectl prints, if it succeeds.
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.cluster.kubectl(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{stderr}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.cluster.node().folder.join("applied.yaml");
        fs::write(&file, yaml)?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])
    }

    fn namespace(&self, name: &str) -> Result<()> {
        self.cluster.run(namespace(self.client(), name))
    }

    fn registry(&self, pool: &str) -> Result<Arc<KubeRegistry>> {
        self.registry_as(self.client(), pool)
    }

    fn registry_as(&self, client: Client, pool: &str) -> Result<Arc<KubeRegistry>> {
        let registry = self
            .cluster
            .run(KubeRegistry::start(client, settings(pool)?))?;
        Ok(Arc::new(registry))
    }

    fn follow(&self, registry: &Arc<KubeRegistry>) -> Follower {
        let registry = Arc::clone(registry);
        let start = async { Follower(tokio::spawn(registry.run_reconciler())) };
        self.cluster.run(start)
    }

    fn eventually<T>(&self, what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
        self.cluster.run(eventually(what, ask))
    }

    /// The status, once it is like this.
    fn status(
        &self,
        namespace: &str,
        like: impl Fn(&VpnTenantStatus) -> bool,
    ) -> Result<VpnTenantStatus> {
        let tenants: Api<VpnTenant> = Api::namespaced(self.client(), namespace);
        let mut last = None;
        let outcome = self.eventually("a status", async || {
            last = tenants.get(TENANT).await?.status;
            Ok(last.clone().filter(&like))
        });
        outcome.with_context(|| format!("{namespace}: last {last:?}"))
    }

    fn secret(&self, namespace: &str) -> Result<Option<Secret>> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), namespace);
        Ok(self.cluster.run(secrets.get_opt(KEYS))?)
    }

    fn service(&self, namespace: &str) -> Result<Option<Service>> {
        self.cluster.run(self.service_async(namespace))
    }

    async fn service_async(&self, namespace: &str) -> Result<Option<Service>> {
        let services: Api<Service> = Api::namespaced(self.client(), namespace);
        Ok(services.get_opt(GATEWAY).await?)
    }

    /// What the gateways' part does once nobody wants a gateway.
    fn remove_gateway(&self, namespace: &str) -> Result<()> {
        let services: Api<Service> = Api::namespaced(self.client(), namespace);
        self.cluster
            .run(services.delete(GATEWAY, &DeleteParams::default()))?;
        Ok(())
    }
}

/// A task that ends when dropped.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn settings(pool: &str) -> Result<Settings> {
    Ok(Settings {
        pools: Pools::new(vec![pool.parse()?])?,
        tunnels: TunnelSettings {
            cluster_ranges: vec!["10.96.0.0/12".parse()?],
            dns: IpAddr::from([10, 96, 0, 10]),
            ipv6: false,
            mtu: None,
        },
    })
}

async fn namespace(client: Client, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client);
    let namespace = from_value(json!({ "metadata": { "name": name } }))?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

/// A tenant that is ready for a VPN, in a namespace of this name.
fn tenant(number: u128, namespace: &str) -> Result<Tenant> {
    let id = Uuid::from_u128(number);
    let mut tenant = Tenant::new(id, "acme".to_owned(), Plan::Business, Timestamp::now())?;
    tenant.set_namespace(namespace.to_owned())?;
    tenant.set_ready(true);
    Ok(tenant)
}

fn yaml(number: u128, namespace: &str, vpn: &str) -> String {
    let id = Uuid::from_u128(number);
    format!(
        "apiVersion: vpn-edge.dev/v1alpha1\nkind: VpnTenant\n\
         metadata: {{name: vpn, namespace: {namespace}}}\n\
         spec: {{id: {id}, organisation: acme, plan: business, ready: true, vpn: {{{vpn}}}}}\n"
    )
}

async fn enable(registry: &KubeRegistry, id: Uuid) -> Result<Tenant, UpdateError> {
    enable_for(registry, id, None).await
}

async fn enable_for(
    registry: &KubeRegistry,
    id: Uuid,
    given: Option<PublicKey>,
) -> Result<Tenant, UpdateError> {
    let change: Change = Box::new(move |tenant, pool| {
        tenant.enable(pool, &[], Keys::generate_for(given), Timestamp::now())
    });
    registry.update(id, change).await
}

async fn disable(registry: &KubeRegistry, id: Uuid) -> Result<Tenant, UpdateError> {
    let change: Change = Box::new(|tenant, pool| tenant.disable(pool, Timestamp::now()));
    registry.update(id, change).await
}

async fn regenerate(registry: &KubeRegistry, id: Uuid) -> Result<Tenant, UpdateError> {
    regenerate_for(registry, id, None).await
}

async fn regenerate_for(
    registry: &KubeRegistry,
    id: Uuid,
    given: Option<PublicKey>,
) -> Result<Tenant, UpdateError> {
    let keys = Keys::generate_for(given).expect("the system has random bytes");
    let change: Change =
        Box::new(move |tenant, _| tenant.regenerate(keys.clone(), Timestamp::now()));
    registry.update(id, change).await
}

/// What the controller does when the gateway answers.
async fn serve(registry: &KubeRegistry, id: Uuid) -> Result<Tenant, UpdateError> {
    let change: Change = Box::new(|tenant, _| {
        let gateway = GatewayState::Ready;
        let observed = Observed {
            gateway,
            steerable: true,
        };
        tenant.observe(&observed, Timestamp::now());
        Ok(())
    });
    registry.update(id, change).await
}

/// The public key of a client who keeps the private one.
fn own_key() -> PublicKey {
    let key = PrivateKey::generate().expect("the system has random bytes");
    key.public()
}

fn port(tenant: &Tenant) -> Option<u16> {
    tenant.vpn.allocation.as_ref().map(|a| a.port)
}

fn node_port(service: &Service) -> Option<u16> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    u16::try_from(ports.first()?.node_port?).ok()
}

fn text(secret: &Secret, name: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(name)?;
    String::from_utf8(bytes.0.clone()).ok()
}

/// Reason of a condition, and whether it is true.
fn condition(status: &VpnTenantStatus, type_: &str) -> Option<(bool, String)> {
    let mut conditions = status.conditions.iter();
    let condition = conditions.find(|condition| condition.type_ == type_)?;
    Some((condition.status == "True", condition.reason.clone()))
}

fn is(status: &VpnTenantStatus, type_: &str, reason: &str) -> bool {
    condition(status, type_).is_some_and(|(_, given)| given == reason)
}
