use std::net::{IpAddr, TcpStream};

use anyhow::{Result, ensure};
use lab::cluster::{Cluster, Identity, PORT};
use lab::node::Lab;

#[test]
fn the_control_plane_answers_its_own_network_and_no_other() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let version = cluster.run(cluster.client().apiserver_version())?;
    let (git, short) = (version.git_version, (version.major, version.minor));
    ensure!(
        git.starts_with(&format!("v{}.{}.", short.0, short.1)),
        "{git}"
    );

    let other = lab.node("other")?;
    cluster.node().link("other", &other, "up")?;
    cluster.node().sh("ip address add 192.0.2.1/24 dev other")?;
    other.sh("ip address add 192.0.2.2/24 dev up; ip route add 10.255.0.1 via 192.0.2.1")?;
    let server = IpAddr::from([10, 255, 0, 1]);
    let client = cluster.client_in(&other, Identity::ADMIN, server)?;
    assert_eq!(cluster.run(client.apiserver_version())?.git_version, git);

    ensure!(
        TcpStream::connect(("127.0.0.1", PORT)).is_err(),
        "the host listens, or this is not the only API server"
    );
    Ok(())
}
