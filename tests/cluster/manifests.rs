//! What is shipped is what the API server takes.

use lab::cluster::Cluster;
use lab::node::Lab;

/// The folder of the overlays.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

#[test]
fn every_overlay_is_taken_by_the_api_server() {
    let lab = Lab::new().unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    // What is named by others has to be there before the server judges those.
    for file in ["namespace.yaml", "crd.yaml"] {
        let file = format!("{MANIFESTS}/base/{file}");
        kubectl(&cluster, &["apply", "--server-side", "-f", &file]);
    }
    for overlay in ["aws-nlb", "bare-metal", "development"] {
        let folder = format!("{MANIFESTS}/overlays/{overlay}");
        let arguments = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-k",
            &folder,
        ];
        let said = kubectl(&cluster, &arguments);
        for made in [
            "daemonset.apps/vpn-edge-agent",
            "deployment.apps/vpn-edge-controller",
        ] {
            assert!(said.contains(made), "{overlay}: {said}");
        }
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.kubectl(arguments).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}
