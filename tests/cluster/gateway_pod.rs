//! A gateway with what its pod's template gives it and no more.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PodSpec;
use lab::client::Client;
use lab::node::{Lab, Node};
use lab::pod::{Pod, Secrets, secrets};
use vpn_edge::cluster::gateways::objects::{PublicSpec, deployment, secret};
use vpn_edge::cluster::gateways::settings::{GatewayTarget, Settings};
use vpn_edge::cluster::gateways::{INIT, MAIN};
use vpn_edge::gateways::GatewaySpec;

use super::tunnel::{OTHER_SERVER, SERVER, configuration, spec};

/// Its address.
const POD: &str = "100.64.0.2";

/// A client and two of the tenant's servers, with the pod between them.
struct Scene {
    client: Node,
    pod: Node,
    _cluster: Node,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let [client, pod, cluster] = ["client", "pod", "cluster"].map(|name| lab.node(name));
        let (client, pod, cluster) = (client?, pod?, cluster?);
        cluster.link("pod", &pod, "eth0")?;
        cluster.link("client", &client, "eth0")?;
        cluster.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             ip address add 100.64.0.1/24 dev pod
             ip address add 192.0.2.1/24 dev client
             ip address add {SERVER}/32 dev lo
             ip address add {OTHER_SERVER}/32 dev lo"
        ))?;
        pod.sh(&format!(
            "ip address add {POD}/24 dev eth0; ip route add default via 100.64.0.1"
        ))?;
        client.sh(&format!(
            "ip address add 192.0.2.2/24 dev eth0; ip route add {POD} via 192.0.2.1"
        ))?;
        Ok(Self {
            client,
            pod,
            _cluster: cluster,
            _lab: lab,
        })
    }
}

fn template(spec: &GatewaySpec) -> Result<PodSpec> {
    let settings = Settings::new("none".into());
    let made = deployment(&place(), &PublicSpec::of(spec), &settings);
    let template = made.spec.context("a Deployment has a spec")?.template;
    template.spec.context("a template has a spec")
}

fn mounted(spec: &GatewaySpec) -> Secrets {
    secrets([secret(&place(), spec)])
}

fn place() -> GatewayTarget {
    GatewayTarget {
        namespace: "tenant".into(),
        owner: Default::default(),
        pod: Default::default(),
    }
}

fn run(spec: &GatewaySpec, scene: &Scene) -> Result<Pod> {
    let mut pod = Pod::run(&template(spec)?, &mounted(spec), &scene.pod)?;
    await_ready(&mut pod)?;
    Ok(pod)
}

fn await_ready(pod: &mut Pod) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        match pod.check() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed().as_secs() > 20 => {
                return Err(error.context(pod.log(MAIN)));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    }
}

/// A line of the main process's status, as the kernel tells it.
fn status(pod: &Pod, key: &str) -> Result<String> {
    let process = pod.process(MAIN).context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(value.context("the kernel tells it")?.trim().to_owned())
}

#[test]
fn a_gateway_serves_with_net_admin_alone_and_nothing_to_write_to() -> Result<()> {
    let scene = Scene::new()?;
    let spec = spec(1, &["10.97.1.0/24"])?;
    let pod = run(&spec, &scene)?;
    let client = Client::up(&scene.client, &configuration(&spec, POD))?;
    client.await_reach(SERVER)?;
    ensure!(!client.reaches(OTHER_SERVER), "it is not the tenant's");

    for set in ["CapEff", "CapPrm", "CapBnd"] {
        // linux/capability.h: CAP_NET_ADMIN is 12.
        assert_eq!(status(&pod, set)?, format!("{:016x}", 1 << 12), "{set}");
    }
    assert_eq!(status(&pod, "NoNewPrivs")?, "1");
    for file in [
        "/written",
        "/etc/vpn-edge/written",
        "/proc/sys/net/ipv4/ip_forward",
    ] {
        let write = pod.exec(MAIN, &["sh", "-c", &format!("echo 1 > {file}")]);
        ensure!(write.is_err(), "{file} can be written");
    }
    scene
        .pod
        .sh("ethtool -k eth0 | grep -q '^generic-receive-offload: on'")?;
    let links = scene.pod.sh("ip -o link show wg0")?;
    ensure!(links.contains("mtu 1420"), "{links}");

    pod.stop()?;
    ensure!(
        scene.pod.sh("ip link show wg0").is_err(),
        "the device is left"
    );
    Ok(())
}

#[test]
fn without_its_init_a_gateway_says_what_is_missing() -> Result<()> {
    let scene = Scene::new()?;
    let spec = spec(1, &["10.97.1.0/24"])?;
    let mut template = template(&spec)?;
    let init = template.init_containers.take().context("it has one")?;
    assert_eq!(init[0].name, INIT);
    let mut pod = Pod::run(&template, &mounted(&spec), &scene.pod)?;
    let start = std::time::Instant::now();
    while pod.process(MAIN).is_some() && !pod.log(MAIN).contains("error:") {
        ensure!(
            start.elapsed().as_secs() < 20,
            "it runs on: {}",
            pod.log(MAIN)
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let log = pod.log(MAIN);
    ensure!(log.contains("cannot switch on forwarding"), "{log}");
    ensure!(pod.check().is_err(), "it is ready all the same");
    Ok(())
}

#[test]
fn what_is_live_changes_in_place_and_keys_never() -> Result<()> {
    let scene = Scene::new()?;
    let before = spec(1, &["10.97.1.0/24"])?;
    let mut pod = run(&before, &scene)?;
    let client = Client::up(&scene.client, &configuration(&before, POD))?;
    client.await_reach(SERVER)?;
    let session = || scene.client.sh("wg show wg0 latest-handshakes");
    let first = session()?;

    pod.update(&mounted(&spec(1, &["10.98.0.0/16"])?))?;
    client.await_reach(OTHER_SERVER)?;
    ensure!(!client.reaches(SERVER), "what was taken away is reached");
    assert_eq!(session()?, first, "the session was lost");

    // Another DNS server, and what else will take another pod: that may come late.
    let mut other = spec(1, &["10.97.1.0/24"])?;
    other.tunnel.live.dns = "10.96.0.11".parse()?;
    other.tunnel.fixed.mtu = Some(1380);
    let resolves = |server: &str| {
        let rules = scene.pod.sh("nft list table inet vpn-edge")?;
        anyhow::Ok(rules.contains(&format!("ip daddr {server} udp dport 53 accept")))
    };
    ensure!(resolves("10.96.0.10")?);
    pod.update(&mounted(&other))?;
    client.await_reach(SERVER)?;
    ensure!(resolves("10.96.0.11")? && !resolves("10.96.0.10")?);
    client.await_cut(OTHER_SERVER)?;
    assert_eq!(session()?, first, "the session was lost");
    pod.update(&mounted(&spec(1, &["10.98.0.0/16"])?))?;
    client.await_reach(OTHER_SERVER)?;

    // The Secret of the next pod, which this one is mounted too.
    let after = spec(2, &["10.97.1.0/24"])?;
    pod.update(&mounted(&after))?;
    let start = std::time::Instant::now();
    while !pod.log(MAIN).contains("for another gateway") {
        ensure!(start.elapsed().as_secs() < 20, "{}", pod.log(MAIN));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    ensure!(client.reaches(OTHER_SERVER) && !client.reaches(SERVER));
    assert_eq!(session()?, first, "the session was lost");
    Ok(())
}

#[test]
fn a_pod_takes_no_keys_but_those_of_its_generation() -> Result<()> {
    let scene = Scene::new()?;
    let (asked, stale) = (spec(2, &[])?, spec(1, &[])?);
    let error = Pod::run(&template(&asked)?, &mounted(&stale), &scene.pod).err();
    let error = format!("{:#}", error.context("it took them")?);
    ensure!(
        error.contains("keys of generation 1 instead of 2"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_gateway_that_has_died_is_not_ready() -> Result<()> {
    let scene = Scene::new()?;
    let mut pod = run(&spec(1, &[])?, &scene)?;
    let process = pod.process(MAIN).context("it runs")?;
    process.signal(nix::sys::signal::Signal::SIGKILL)?;
    let start = std::time::Instant::now();
    while pod.check().is_ok() {
        ensure!(start.elapsed().as_secs() < 20, "it is ready still");
    }
    // As a kubelet would ask of one that it does not know to be dead.
    let words = [
        "vpn-edge",
        "gateway",
        "probe",
        "--config",
        "/etc/vpn-edge/gateway.json",
    ];
    let error = format!("{:#}", pod.exec(MAIN, &words).err().context("it answers")?);
    ensure!(error.contains("no gateway listens"), "{error}");
    Ok(())
}
