//! `--keep`: the lab stays, and its dashboard is there for this machine's browser.

use std::io::{self, IsTerminal as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use lab::edge::Edge;
use lab::node::Node;
use lab::topology::Topology;

use crate::show::Show;

/// Where the daemon answers on the edge, and this process on the machine unless
/// somebody else does.
const PORT: u16 = 8080;

static ENTER: AtomicBool = AtomicBool::new(false);

/// Leaves the lab as it is until this process is interrupted, or told by Enter
/// on a terminal to go on.
///
/// # Errors
///
/// When the dashboard cannot be shown, or the lab ends by itself.
pub fn until_told(
    show: &Show,
    topology: &Topology,
    edge: &Edge,
    organisations: &[&str],
) -> Result<()> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).or_else(|_| TcpListener::bind(any))?;
    let url = format!("http://{}/", listener.local_addr()?);
    let node = edge.node.clone();
    thread::spawn(move || forward(&listener, &node));
    let terminal = io::stdin().is_terminal();
    let end = if terminal {
        "Enter or Ctrl-C"
    } else {
        "Ctrl-C"
    };
    show.say(&format!(
        "\nThe lab stays until {end}. Its dashboard: {url}"
    ));
    show.say(&format!("  the admin's token   {}", edge.token()));
    for organisation in organisations {
        let token = edge.member_token(organisation)?;
        show.say(&format!("  a token of {organisation:<8} {token}"));
    }

    let nodes: [&Node; 5] = [
        &topology.client_a,
        &topology.client_b,
        &topology.router,
        &topology.edge,
        &topology.cluster,
    ];
    show.say("To enter it, as root:");
    let mut held = Vec::new();
    for node in nodes {
        let mut command = node.command("sleep");
        command.arg("infinity");
        let process = node.start("held", command)?;
        show.say(&format!(
            "  {:<10} nsenter --target {} --net --mount --pid",
            node.name,
            process.pid()
        ));
        held.push(process);
    }
    if terminal {
        thread::spawn(|| {
            let _ = io::stdin().read_line(&mut String::new());
            ENTER.store(true, Ordering::Relaxed);
        });
    }
    while !ENTER.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(200));
        if held.iter_mut().any(|process| !process.running()) {
            bail!("the lab ended");
        }
    }
    Ok(())
}

/// Takes connections on the machine, and goes on with each on the node.
fn forward(listener: &TcpListener, node: &Node) {
    for client in listener.incoming().flatten() {
        let connected = node.inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?));
        thread::spawn(move || {
            let Ok(Ok(server)) = connected.join() else {
                return;
            };
            let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else {
                return;
            };
            thread::spawn(move || pass(from, to));
            pass(server, client);
        });
    }
}

/// Passes on what comes, until one side has said all.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
