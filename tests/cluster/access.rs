use std::fmt::Debug;
use std::fs;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ListParams;
use lab::cluster::{Cluster, Identity};
use lab::node::Lab;

const KUSTOMIZATION: &str = "
resources: [objects.yaml]
namespace: tenants
";

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: tenants}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: readable}
data: {key: value}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
";

#[test]
fn a_service_account_may_do_what_its_role_says_and_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let folder = cluster.node().folder.join("manifests");
    fs::create_dir(&folder)?;
    fs::write(folder.join("kustomization.yaml"), KUSTOMIZATION)?;
    fs::write(folder.join("objects.yaml"), OBJECTS)?;
    let applied = cluster.kubectl(&["apply", "-k", &folder.display().to_string()])?;
    ensure!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );

    let client = cluster.client_as(Identity::ServiceAccount {
        namespace: "tenants",
        name: "reader",
    })?;
    let own: Api<ConfigMap> = Api::namespaced(client.clone(), "tenants");
    let elsewhere: Api<ConfigMap> = Api::namespaced(client, "default");
    let data = cluster.run(own.get("readable"))?.data.unwrap_or_default();
    assert_eq!(data["key"], "value");
    assert_eq!(refusal(cluster.run(own.list(&ListParams::default()))), 403);
    assert_eq!(refusal(cluster.run(elsewhere.get("kube-root-ca.crt"))), 403);

    let nobody = cluster.client_as(Identity::User {
        name: "nobody",
        group: None,
    })?;
    let own: Api<ConfigMap> = Api::namespaced(nobody, "tenants");
    assert_eq!(refusal(cluster.run(own.get("readable"))), 403);
    Ok(())
}

fn refusal<T: Debug>(answer: kube::Result<T>) -> u16 {
    match answer {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("not refused: {other:?}"),
    }
}
