//! What is shipped is what the API server takes.

use std::path::Path;

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
    let shipped = ["aws-nlb", "bare-metal", "development"];
    let mut overlays: Vec<String> = shipped
        .iter()
        .map(|overlay| format!("{MANIFESTS}/overlays/{overlay}"))
        .collect();
    overlays.push(with_component(&lab, "tls"));
    for folder in overlays {
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
            assert!(said.contains(made), "{folder}: {said}");
        }
    }
}

#[test]
fn monitors_are_what_the_prometheus_operator_follows() {
    let folder = std::env::var_os("VPN_EDGE_MONITORING")
        .expect("VPN_EDGE_MONITORING is set by `cargo xtask test cluster`");
    let lab = Lab::new().unwrap();
    let cluster = Cluster::start(&lab).unwrap();
    for kind in ["servicemonitors", "podmonitors"] {
        let name = format!("monitoring.coreos.com_{kind}.yaml");
        let file = Path::new(&folder).join(name).display().to_string();
        kubectl(&cluster, &["apply", "--server-side", "-f", &file]);
        let definition = format!("crd/{kind}.monitoring.coreos.com");
        kubectl(
            &cluster,
            &["wait", "--for=condition=Established", &definition],
        );
    }
    let overlay = with_component(&lab, "service-monitor");
    let namespace = format!("{MANIFESTS}/base/namespace.yaml");
    kubectl(&cluster, &["apply", "--server-side", "-f", &namespace]);
    let arguments = [
        "apply",
        "--server-side",
        "--validate=strict",
        "-k",
        &overlay,
    ];
    kubectl(&cluster, &arguments);

    // Each names a port that what it selects has.
    let ask = |what: &str, path: &str| {
        let path = format!("-o=jsonpath={path}");
        let said = kubectl(&cluster, &["get", what, "-n", "vpn-edge-system", &path]);
        assert!(!said.is_empty(), "{what} {path}");
        said
    };
    for (monitor, of, selected, ports) in [
        (
            "servicemonitor/vpn-edge-controller",
            "{.spec.endpoints[*].port}",
            "service/vpn-edge",
            "{.spec.ports[*].name}",
        ),
        (
            "podmonitor/vpn-edge-agent",
            "{.spec.podMetricsEndpoints[*].port}",
            "daemonset/vpn-edge-agent",
            "{.spec.template.spec.containers[*].ports[*].name}",
        ),
    ] {
        let ports = ask(selected, ports);
        let port = ask(monitor, of);
        assert!(ports.split(' ').any(|name| name == port), "{port}: {ports}");
        let label = "{.spec.selector.matchLabels.app\\.kubernetes\\.io/name}";
        let own = "{.metadata.labels.app\\.kubernetes\\.io/name}";
        assert_eq!(ask(monitor, label), ask(selected, own));
    }
}

/// An overlay that has the component, as docs/src/install/kubernetes.md says; its folder.
fn with_component(lab: &Lab, component: &str) -> String {
    let folder = lab.node("operator").unwrap().folder;
    let manifests = folder.join("manifests");
    let copied = std::process::Command::new("cp")
        .args(["-r", MANIFESTS])
        .arg(&manifests)
        .status();
    assert!(copied.unwrap().success());
    let overlay = manifests.join("overlays/bare-metal");
    let file = overlay.join("kustomization.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let components = format!("components: [../../components/{component}]\n");
    std::fs::write(file, text + &components).unwrap();
    overlay.display().to_string()
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
