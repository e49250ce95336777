//! Other settings reach one gateway after the other.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, ResourceExt as _};
use vpn_edge::cluster::GATEWAY;
use vpn_edge::domain::GatewayState;
use vpn_edge::gateways::GatewaySpec;

use super::scene::{MISSING, Scene};

const FIRST: &str = "vpn-edge:1";
const SECOND: &str = "vpn-edge:2";
const THIRD: &str = "vpn-edge:3";

/// The tenants whose Deployments ask for this image.
async fn asking<'a>(scene: &'a Scene, image: &str) -> Result<Vec<&'a GatewaySpec>> {
    let mut found = Vec::new();
    for spec in &scene.tenants {
        let deployments: Api<Deployment> = scene.api(spec);
        let deployment = deployments.get(GATEWAY).await?;
        let pod = deployment.spec.and_then(|spec| spec.template.spec);
        let pod = pod.context("a Deployment has a pod")?;
        if pod.containers[0].image.as_deref() == Some(image) {
            found.push(spec);
        }
    }
    Ok(found)
}

/// Has the API server refuse whatever changes this tenant's Deployment.
fn forbid(scene: &Scene, spec: &GatewaySpec) -> Result<()> {
    let text = format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: frozen}}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector:
      matchLabels: {{kubernetes.io/metadata.name: {namespace}}}
    resourceRules:
      - apiGroups: [apps]
        apiVersions: [v1]
        operations: [CREATE, UPDATE]
        resources: [deployments]
  validations:
    - expression: 'false'
      message: nothing changes here
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: frozen}}
spec:
  policyName: frozen
  validationActions: [Deny]
",
        namespace = spec.namespace
    );
    let path = scene.cluster.node().folder.join("frozen.yaml");
    std::fs::write(&path, text)?;
    let path = path.display().to_string();
    scene.cluster.kubectl_said(&["apply", "-f", &path])?;
    // Policies are heeded a little later.
    let change = [
        "annotate",
        "deployment",
        GATEWAY,
        "--overwrite",
        "-n",
        &spec.namespace,
        "asked=again",
        "--dry-run=server",
    ];
    scene.cluster.eventually("a refusal", async || {
        let said = scene.cluster.kubectl(&change)?.stderr;
        let said = String::from_utf8(said)?;
        ensure!(said.contains("nothing changes here"), "{said}");
        Ok(Some(()))
    })
}

#[test]
fn a_failing_image_takes_one_gateway_and_a_good_one_reaches_all() -> Result<()> {
    let mut scene = Scene::new(3, FIRST)?;
    let before = scene.tenants.iter().map(|spec| scene.pod(spec));
    let before = before.collect::<Result<Vec<_>>>()?;

    scene.lead(MISSING)?;
    let first = scene.tenants[0].clone();
    let has_failed = |state: &GatewayState| matches!(state, GatewayState::Failed(reason) if reason.contains("no such image"));
    scene.await_state(&first, has_failed)?;
    // Another leader knows as much, also after the controller's own attempts.
    scene.lead(MISSING)?;
    scene.ensure(&first)?;
    scene.await_state(&first, has_failed)?;
    // Once this is changed back, it has looked at all of them.
    let policies: Api<NetworkPolicy> = scene.api(&first);
    let before_edit = scene.cluster.run(policies.get(GATEWAY))?.spec;
    let namespace = &first.namespace;
    let edit = [
        "patch",
        "networkpolicy",
        GATEWAY,
        "--type=merge",
        "-n",
        namespace,
    ];
    let edit = [&edit[..], &["-p", r#"{"spec":{"egress":[{}]}}"#]].concat();
    scene.cluster.kubectl_said(&edit)?;
    scene
        .cluster
        .eventually("the leader has looked", async || {
            let now = policies.get(GATEWAY).await?.spec;
            Ok((now == before_edit).then_some(()))
        })?;
    let failing = scene.cluster.run(asking(&scene, MISSING))?;
    assert_eq!(failing.len(), 1, "{failing:?}");
    for (spec, before) in scene.tenants.iter().zip(&before).skip(1) {
        assert_eq!(scene.pod(spec)?, *before, "another pod");
    }

    scene.lead(SECOND)?;
    for spec in &scene.tenants {
        scene.await_image(spec, SECOND)?;
    }
    // Who breaks long after that breaks by itself.
    let ago = "vpn-edge.dev/rolled=2026-01-01T00:00:00Z";
    let namespace = &first.namespace;
    let mark = [
        "annotate",
        "deployment",
        GATEWAY,
        "--overwrite",
        ago,
        "-n",
        namespace,
    ];
    scene.cluster.kubectl_said(&mark)?;
    let deployments: Api<Deployment> = scene.api(&first);
    scene.cluster.eventually("it is not marked", async || {
        let found = deployments.get(GATEWAY).await?;
        let marked = found.annotations().contains_key("vpn-edge.dev/rolled");
        Ok((!marked).then_some(()))
    })
}

#[test]
fn who_is_refused_or_broken_by_itself_holds_back_nobody() -> Result<()> {
    let mut scene = Scene::new(4, FIRST)?;
    let [frozen, homeless, rest @ ..] = &scene.tenants.clone()[..] else {
        unreachable!("there are four");
    };
    forbid(&scene, frozen)?;
    let change = r#"{"spec":{"gateway":{"nodeSelector":{"disk":"fast"}}}}"#;
    let patch = ["patch", "vpntenant", "vpn", "--type=merge", "-p", change];
    let patch = [&patch[..], &["-n", &homeless.namespace]].concat();
    scene.cluster.kubectl_said(&patch)?;
    scene.await_state(homeless, |state| {
        matches!(state, GatewayState::Failed(reason) if reason.starts_with("its pod cannot be scheduled"))
    })?;

    scene.lead(SECOND)?;
    for spec in rest {
        scene.await_image(spec, SECOND)?;
    }
    scene.cluster.eventually("the homeless one's", async || {
        let asking = asking(&scene, SECOND).await?;
        Ok((asking.len() == 3).then_some(()))
    })?;
    let (_, image) = scene.pod(frozen)?;
    assert_eq!(image, FIRST, "it was refused");

    // It is tried again once nobody forbids it.
    let binding = "validatingadmissionpolicybinding/frozen";
    scene.cluster.kubectl_said(&["delete", binding])?;
    scene.lead(THIRD)?;
    for spec in rest.iter().chain([frozen]) {
        scene.await_image(spec, THIRD)?;
    }
    Ok(())
}

#[test]
fn another_mtu_reaches_gateways_one_after_the_other() -> Result<()> {
    let mut scene = Scene::new(3, FIRST)?;
    let before = scene.tenants.iter().map(|spec| scene.pod(spec));
    let before = before.collect::<Result<Vec<_>>>()?;
    // As a controller does that was started with it, and with a failing image.
    scene.lead(MISSING)?;
    for spec in &mut scene.tenants {
        spec.tunnel.fixed.mtu = Some(1380);
    }
    for spec in &scene.tenants {
        scene.ensure(spec)?;
    }
    let failed = scene.cluster.eventually("one that failed", async || {
        let asking = asking(&scene, MISSING).await?;
        let [spec] = asking[..] else {
            anyhow::bail!("{} gateways are replaced", asking.len());
        };
        Ok(Some(spec.clone()))
    })?;
    scene.await_state(&failed, |state| matches!(state, GatewayState::Failed(_)))?;
    // All the others are asked for again, and serve on as they are.
    for spec in scene
        .tenants
        .iter()
        .filter(|spec| spec.tenant != failed.tenant)
    {
        scene.ensure(spec)?;
    }
    let asking = scene.cluster.run(asking(&scene, MISSING))?;
    ensure!(asking.len() == 1, "{} gateways are replaced", asking.len());
    for (spec, pod) in scene.tenants.iter().zip(&before) {
        if spec.tenant != failed.tenant {
            ensure!(scene.pod(spec)? == *pod, "it was replaced");
        }
    }
    // A good image brings it to all.
    scene.lead(SECOND)?;
    for spec in &scene.tenants {
        scene.await_image(spec, SECOND)?;
        let deployments: Api<Deployment> = scene.api(spec);
        let deployment = scene.cluster.run(deployments.get(GATEWAY))?;
        let made_for = vpn_edge::cluster::gateways::objects::pods_tunnel(&deployment);
        ensure!(
            made_for == Some(&spec.tunnel.digest().fixed),
            "{made_for:?}"
        );
    }
    Ok(())
}

#[test]
fn a_gateway_of_an_earlier_build_keeps_its_pod() -> Result<()> {
    let mut scene = Scene::new(1, FIRST)?;
    let spec = scene.tenants[0].clone();
    let pod = scene.pod(&spec)?;
    let deployments: Api<Deployment> = scene.api(&spec);
    let read = || scene.cluster.run(deployments.get(GATEWAY));
    let before = read()?.annotations().clone();
    // As it was before these annotations were written.
    let mut annotate = vec!["annotate", "deployment", GATEWAY, "--overwrite"];
    annotate.extend(["-n", &spec.namespace]);
    annotate.extend(["vpn-edge.dev/fixed-", "vpn-edge.dev/live-"]);
    annotate.push("vpn-edge.dev/applied=0123456789abcdef");
    scene.cluster.kubectl_said(&annotate)?;
    scene.cluster.eventually("the annotations", async || {
        let deployment = deployments.get(GATEWAY).await?;
        let mut now = deployment.annotations().clone();
        now.remove("vpn-edge.dev/rolled");
        ensure!(now == before, "{now:?}");
        Ok(Some(()))
    })?;
    ensure!(scene.pod(&spec)? == pod, "the pod was replaced");
    // Nor does the controller find anything to do, who asks for the same.
    scene.lead(FIRST)?;
    scene.ensure(&spec)?;
    ensure!(scene.pod(&spec)? == pod, "the pod was replaced");
    Ok(())
}
