//! What a kubelet gives a pod of its account and of its node.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, PodSpec, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::{PORT, SERVER};

/// The files by which the pod's account reaches the API server.
pub(super) async fn files(client: &Client, pod: &Pod) -> Result<BTreeMap<String, ByteString>> {
    let namespace = pod.namespace().unwrap_or_default();
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    let account = spec.service_account_name.as_deref();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let answer = accounts
        .create_token_request(
            account.unwrap_or("default"),
            &PostParams::default(),
            &TokenRequest::default(),
        )
        .await?;
    let token = answer.status.and_then(|status| status.token);
    let token = token.context("a token request without a token")?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let authority = maps.get("kube-root-ca.crt").await?.data.unwrap_or_default();
    let authority = authority.get("ca.crt").context("no authority")?;
    let files = [
        ("token", &token),
        ("ca.crt", authority),
        ("namespace", &namespace),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())));
    Ok(files.into())
}

/// The spec with its variables' values, as far as they are the node's name, keys of
/// ConfigMaps and the API server's place, and with arguments that name them.
pub(super) async fn resolved(client: &Client, namespace: &str, spec: &PodSpec) -> Result<PodSpec> {
    let mut spec = spec.clone();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let node = spec.node_name.clone().unwrap_or_default();
    let all = spec.init_containers.iter_mut().flatten();
    for container in all.chain(&mut spec.containers) {
        resolve(container, &node, &maps).await?;
    }
    Ok(spec)
}

async fn resolve(container: &mut Container, node: &str, maps: &Api<ConfigMap>) -> Result<()> {
    let variables = container.env.get_or_insert_default();
    for variable in variables.iter_mut() {
        let Some(source) = &variable.value_from else {
            continue;
        };
        let field = source.field_ref.as_ref();
        if field.is_some_and(|field| field.field_path == "spec.nodeName") {
            variable.value = Some(node.to_owned());
        }
        if let Some(key) = &source.config_map_key_ref {
            let map = maps.get(&key.name).await?.data.unwrap_or_default();
            let value = map.get(&key.key);
            let value = value.with_context(|| format!("{} has no key {}", key.name, key.key))?;
            variable.value = Some(value.clone());
        }
    }
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", SERVER.to_string()),
        ("KUBERNETES_SERVICE_PORT", PORT.to_string()),
    ] {
        variables.push(EnvVar {
            name: name.to_owned(),
            value: Some(value),
            ..EnvVar::default()
        });
    }
    for argument in container.args.iter_mut().flatten() {
        for variable in &*variables {
            let value = variable.value.as_deref().unwrap_or_default();
            *argument = argument.replace(&format!("$({})", variable.name), value);
        }
    }
    Ok(())
}
