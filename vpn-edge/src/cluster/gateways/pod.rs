//! A gateway's pod.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, ExecAction, PodSecurityContext, PodSpec, Probe,
    SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::settings::{GatewayTarget, Settings};
use crate::cluster::GATEWAY;

/// The gateway's container.
pub const MAIN: &str = "gateway";

/// The init container.
pub const INIT: &str = "init";

/// Key in the Secret, and the name of the file.
pub const CONFIG: &str = "gateway.json";

/// The gateway's status socket.
pub const STATUS: &str = "/run/vpn-edge/status.sock";

const MOUNTED_CONFIG: &str = "/etc/vpn-edge/gateway.json";

/// Where programs look for the TUN device.
const DEVICES: &str = "/dev/net";

/// Grace period for removing the device, in seconds.
const GRACE: i64 = 5;

pub(super) fn spec(place: &GatewayTarget, generation: u64, settings: &Settings) -> PodSpec {
    let pod = &place.pod;
    let resources = pod.resources.as_ref().unwrap_or(&settings.resources);
    let generation = generation.to_string();
    let container = |name: &str, more: &[&str], security: SecurityContext| Container {
        name: name.into(),
        image: Some(settings.image.clone()),
        command: Some(command(&[&["--generation", &generation], more].concat())),
        // The last lines of a failed gateway's log become its termination message.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        resources: Some(resources.clone()),
        security_context: Some(security),
        volume_mounts: Some(vec![
            mount("config", "/etc/vpn-edge", true),
            mount("run", "/run/vpn-edge", false),
            // Where a userspace WireGuard is configured.
            mount("run", "/var/run/wireguard", false),
            mount("devices", DEVICES, name == MAIN),
        ]),
        ..Container::default()
    };
    let probe = |period, failures| Probe {
        exec: Some(ExecAction {
            command: Some(command(&["--probe"])),
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    let init = container(INIT, &["--init", "--devices", DEVICES], privileged());
    let main = container(MAIN, &["--follow"], confined());
    PodSpec {
        init_containers: Some(vec![init]),
        containers: vec![Container {
            // Often until it is ready, rarely afterwards.
            startup_probe: Some(probe(1, 60)),
            readiness_probe: Some(probe(10, 2)),
            ..main
        }],
        volumes: Some(vec![
            Volume {
                name: "config".into(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(GATEWAY.into()),
                    // Without DAC_OVERRIDE, root can read only its own files.
                    default_mode: Some(0o400),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            },
            in_memory("run"),
            in_memory("devices"),
        ]),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        image_pull_secrets: settings.pull_secrets(),
        node_selector: (!pod.node_selector.is_empty())
            .then(|| pod.node_selector.clone().into_iter().collect()),
        tolerations: (!pod.tolerations.is_empty()).then(|| pod.tolerations.clone()),
        termination_grace_period_seconds: Some(GRACE),
        ..PodSpec::default()
    }
}

/// Forwarding is enabled below `/proc/sys`, which is writable only in privileged
/// containers: as a `sysctl` of the pod, each kubelet would have to allow it.
/// Creating the device node needs MKNOD.
fn privileged() -> SecurityContext {
    SecurityContext {
        privileged: Some(true),
        run_as_user: Some(0),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// WireGuard, addresses and nftables need NET_ADMIN, which applies only to the pod's
/// own network. It needs root as well, since Kubernetes gives capabilities to no
/// other user; a root that owns nothing and cannot gain privileges.
fn confined() -> SecurityContext {
    SecurityContext {
        privileged: Some(false),
        allow_privilege_escalation: Some(false),
        run_as_user: Some(0),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: Some(vec!["NET_ADMIN".into()]),
        }),
        ..SecurityContext::default()
    }
}

/// The arguments are those of version 0.0.1: an image that is pinned knows no
/// others, and other ones would replace each tenant's pod.
fn command(more: &[&str]) -> Vec<String> {
    let words = ["vpn-edge", "gateway", "--config", MOUNTED_CONFIG];
    let words = words.iter().chain(more);
    words.map(|word| (*word).to_owned()).collect()
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        // The API server drops a `false`.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// For a socket or a device node: nothing of any size.
fn in_memory(name: &str) -> Volume {
    Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity("1Mi".into())),
        }),
        ..Volume::default()
    }
}
