use std::net::IpAddr;

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use lab::cluster::Cluster;
use lab::node::Lab;

#[test]
fn a_node_is_ready_as_long_as_its_lease_is_renewed() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let nodes: Api<Node> = Api::all(cluster.client());
    let member = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 10])])?;
    assert_eq!(cluster.run(readiness(&nodes))?.as_deref(), Some("True"));

    drop(member);
    cluster.eventually("the node is taken for dead", async || {
        let readiness = readiness(&nodes).await?;
        Ok((readiness.as_deref() == Some("Unknown")).then_some(()))
    })?;

    let _back = cluster.add_node("worker", &[IpAddr::from([192, 0, 2, 10])])?;
    assert_eq!(cluster.run(readiness(&nodes))?.as_deref(), Some("True"));
    Ok(())
}

async fn readiness(nodes: &Api<Node>) -> Result<Option<String>> {
    let status = nodes.get("worker").await?.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let mut ready = conditions.into_iter().filter(|one| one.type_ == "Ready");
    Ok(ready.next().map(|ready| ready.status))
}
