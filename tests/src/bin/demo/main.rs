//! `cargo xtask demo`: two tenants' databases, read through their tunnels.
//!
//! Everything is as in earnest: the daemon and its API, stock WireGuard tools
//! with the configurations unedited, PostgreSQL over TLS, names from DNS. Only
//! the machines are namespaces of this one.

mod keep;
mod show;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::client_netns::{Answer, Laptop, Outcome};
use lab::edge::Edge;
use lab::names;
use lab::postgres::{Account, Database};
use lab::topology::{A, B, DNS, EDGE, HOSTNAME, Side, Topology, Uplink};
use show::Show;

/// The client's own name servers: the router's addresses.
const RESOLVERS: [&str; 2] = ["192.0.2.1", "192.0.2.5"];

/// After this much something hangs that should not.
const TIMEOUT: Duration = Duration::from_secs(120);

static OVER: AtomicBool = AtomicBool::new(false);

const QUERY: &str = "SELECT entry, split_part(version(), ' (', 1), ssl.version
    FROM ledger, pg_stat_ssl ssl WHERE pid = pg_backend_pid()";

/// One customer of the platform.
struct Customer {
    side: Side,
    id: &'static str,
    namespace: &'static str,
    database: Account,
}

const ACME: Customer = Customer {
    side: A,
    id: "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    namespace: "kovra-acme",
    database: Account {
        owner: A.organisation,
        address: A.server,
        name: "kovra-db-a1b2c3d4-rw.kovra-acme.svc.cluster.local",
        password: "sesame",
    },
};

const GLOBEX: Customer = Customer {
    side: B,
    id: "0f4e2b1a-93c8-4d6e-8a57-6b1d2c3e4f50",
    namespace: "kovra-globex",
    database: Account {
        owner: B.organisation,
        address: B.server,
        name: "kovra-db-e5f6a7b8-rw.kovra-globex.svc.cluster.local",
        password: "barley",
    },
};

/// A customer's employee: a laptop, and the configuration downloaded last.
struct Member<'a> {
    customer: &'static Customer,
    laptop: Laptop<'a>,
    port: u16,
    configuration: String,
    file: PathBuf,
}

fn main() -> ExitCode {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [option] if option == "--keep" => true,
        _ => {
            eprintln!("usage: cargo xtask demo [--keep]");
            return ExitCode::from(2);
        }
    };
    let mut show = Show::new();
    let outcome = tools::check().and_then(|()| {
        thread::spawn(end_what_hangs);
        run(&mut show, keep)
    });
    if let Err(error) = outcome {
        show.summary();
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(!show.all_held()))
}

/// Ends the process, and with it the lab, unless the show is over in time.
fn end_what_hangs() {
    thread::sleep(TIMEOUT);
    if !OVER.load(Ordering::Relaxed) {
        eprintln!(
            "error: not done after {} s: the last command hangs",
            TIMEOUT.as_secs()
        );
        std::process::exit(1);
    }
}

fn run(show: &mut Show, keep: bool) -> Result<()> {
    show.step("Build the lab: two clients, a router, the edge, a cluster");
    let topology = Topology::new(Uplink::Veth)?;
    let services = Services::start(&topology)?;

    show.step("Start the daemon on the edge, and enable two tenants' VPN");
    show.command(
        "edge",
        &format!("vpn-edge standalone --uplink eth0 --hostname {HOSTNAME} …"),
    );
    let edge = Edge::start(&topology, Uplink::Veth, &[])?;
    let laptop = Laptop::new(&topology.client_a, RESOLVERS[0])?;
    let mut acme = enable(show, &edge, &ACME, laptop)?;
    let laptop = Laptop::new(&topology.client_b, RESOLVERS[1])?;
    let globex = enable(show, &edge, &GLOBEX, laptop)?;
    for database in &services.databases {
        database.await_ready()?;
    }

    show.step("Without a tunnel, try to reach the databases");
    for member in [&acme, &globex] {
        out_of_reach(show, member, "no tunnel")?;
    }

    show.step("Connect with the downloaded configurations, and read the databases");
    for member in [&acme, &globex] {
        connect(show, member)?;
        reads_its_own(show, member, "tunnel up")?;
    }

    show.step("Through the tunnels, try to reach the other tenant's database");
    for (member, other) in [(&acme, &GLOBEX), (&globex, &ACME)] {
        cannot_read(show, member, &other.database)?;
    }

    show.step("Look at the port map in the kernel");
    ports(show, &edge, &[&acme, &globex])?;

    show.step("Rotate acme's keys");
    rotate(show, &edge, &mut acme)?;

    show.step("Disable globex's VPN");
    disable(show, &edge, &globex, &acme)?;

    show.summary();
    OVER.store(true, Ordering::Relaxed);
    if keep {
        keep::until_told(show, &topology, &edge, &[A.organisation, B.organisation])?;
    }
    Ok(())
}

/// What runs behind the gateways, and the names that everyone can look up.
struct Services {
    databases: [Database; 2],
    _names: [lab::node::Process; 2],
}

impl Services {
    fn start(topology: &Topology) -> Result<Self> {
        let [a, b] = [&ACME.database, &GLOBEX.database];
        Ok(Self {
            databases: [
                Database::start(&topology.cluster, a)?,
                Database::start(&topology.cluster, b)?,
            ],
            _names: [
                names::serve(&topology.router, &RESOLVERS, &[(HOSTNAME, EDGE)])?,
                names::serve(
                    &topology.cluster,
                    &[DNS],
                    &[(a.name, a.address), (b.name, b.address)],
                )?,
            ],
        })
    }
}

/// Runs `vpn-edge` on the edge before the audience's eyes.
fn vpn_edge(show: &Show, edge: &Edge, command: &str) -> Result<String> {
    show.command("edge", &format!("vpn-edge {command}"));
    let arguments: Vec<&str> = command.split_whitespace().collect();
    edge.vpn_edge(&arguments)
        .with_context(|| format!("vpn-edge {command}"))
}

fn enable<'a>(
    show: &Show,
    edge: &Edge,
    customer: &'static Customer,
    laptop: Laptop<'a>,
) -> Result<Member<'a>> {
    let Customer {
        side,
        id,
        namespace,
        ..
    } = customer;
    let Side {
        organisation,
        network,
        ..
    } = side;
    vpn_edge(
        show,
        edge,
        &format!(
            "tenant create --id {id} --organisation {organisation} --plan business --ready \
             --namespace {namespace} --network {network}"
        ),
    )?;
    vpn_edge(show, edge, &format!("tenant enable {id}"))?;
    let configuration = vpn_edge(show, edge, &format!("tenant config {id}"))?;
    show.output(&redacted(&configuration));
    let status = edge.tenant(&["status", id])?;
    Ok(Member {
        customer,
        port: u16::try_from(status["port"].as_u64().context("the tenant has no port")?)?,
        file: laptop.save(organisation, &configuration)?,
        configuration,
        laptop,
    })
}

fn wg_quick(show: &Show, member: &Member, verb: &str) -> Result<()> {
    let file = member.file.file_name().unwrap_or_default().display();
    show.command(
        &member.laptop.node.name,
        &format!("wg-quick {verb} ./{file}"),
    );
    member.laptop.wg_quick(verb, &member.file)
}

/// Brings up a tunnel that should work. psql is not patient: on a busy machine
/// the handshake comes first.
fn connect(show: &Show, member: &Member) -> Result<()> {
    wg_quick(show, member, "up")?;
    member
        .laptop
        .await_handshake(member.customer.side.organisation)
}

/// Asks a database for its ledger, by name.
fn query(show: &Show, member: &Member, database: &Account) -> Result<Answer> {
    let url = database.url();
    let shown = url.replace(database.password, "…");
    show.command(&member.laptop.node.name, &format!("psql \"{shown}\""));
    let answer = member.laptop.query(&url, QUERY)?;
    show.output(&answer.printed);
    Ok(answer)
}

/// Asks the member's own database, without looking its name up.
fn query_address(show: &Show, member: &Member) -> Result<Answer> {
    let Account { address, name, .. } = member.customer.database;
    show.command(
        &member.laptop.node.name,
        &format!(
            "PGHOSTADDR={address} psql \"postgresql://app:…@{name}:5432/app?sslmode=require\""
        ),
    );
    let url = member.customer.database.url();
    let answer = member.laptop.query_at(address, &url, QUERY)?;
    show.output(&answer.printed);
    Ok(answer)
}

fn reads_its_own(show: &mut Show, member: &Member, when: &str) -> Result<()> {
    let database = &member.customer.database;
    let answer = query(show, member, database)?;
    let ledger = format!("the ledger of {}", database.owner);
    show.check(
        answer.printed.starts_with(&ledger) && answer.printed.contains("|TLS"),
        &format!(
            "{}, {when}: reads its database by name, over TLS",
            database.owner
        ),
        &ledger,
        &seen(&answer),
    );
    Ok(())
}

/// Neither the name nor the connection works.
fn out_of_reach(show: &mut Show, member: &Member, when: &str) -> Result<()> {
    let owner = member.customer.database.owner;
    let answer = query(show, member, &member.customer.database)?;
    show.check(
        answer.outcome == Outcome::NoName,
        &format!("{owner}, {when}: the database's name does not resolve"),
        "an unknown name",
        &seen(&answer),
    );
    let answer = query_address(show, member)?;
    show.check(
        answer.outcome == Outcome::NoConnection,
        &format!("{owner}, {when}: the database's address is not reached"),
        "no connection",
        &seen(&answer),
    );
    Ok(())
}

fn cannot_read(show: &mut Show, member: &Member, other: &Account) -> Result<()> {
    let answer = query(show, member, other)?;
    show.check(
        answer.outcome == Outcome::NoConnection,
        &format!(
            "{}, tunnel up: {}'s database is not reached",
            member.customer.database.owner, other.owner
        ),
        "no connection",
        &seen(&answer),
    );
    Ok(())
}

fn ports(show: &mut Show, edge: &Edge, members: &[&Member]) -> Result<()> {
    let table = vpn_edge(show, edge, "ports")?;
    show.output(&table);
    let ports = edge.ports()?;
    for member in members {
        let row = ports.get(&member.port).cloned().unwrap_or_default();
        let packets = |way: &str| row[way]["packets"].as_u64().unwrap_or(0);
        let (ingress, egress) = (packets("ingress"), packets("egress"));
        let (tenant, mode) = (row["tenant"].as_str(), row["mode"].as_str());
        show.check(
            tenant == Some(member.customer.id) && mode == Some("xdp") && ingress > 0 && egress > 0,
            &format!(
                "{}: port {} is steered by XDP",
                member.customer.database.owner, member.port
            ),
            "the tenant in mode xdp, packets both ways",
            &format!(
                "mode {}, {ingress} packets in, {egress} out",
                mode.unwrap_or("none")
            ),
        );
    }
    Ok(())
}

fn rotate(show: &mut Show, edge: &Edge, member: &mut Member) -> Result<()> {
    let Customer { id, database, .. } = member.customer;
    vpn_edge(show, edge, &format!("tenant regenerate {id}"))?;
    out_of_reach(show, member, "keys rotated")?;
    wg_quick(show, member, "down")?;
    out_of_reach(show, member, "tunnel down")?;
    wg_quick(show, member, "up")?;
    let answer = query_address(show, member)?;
    show.check(
        answer.outcome == Outcome::NoConnection,
        &format!("{}, old configuration up again: still dead", database.owner),
        "no connection",
        &seen(&answer),
    );
    wg_quick(show, member, "down")?;

    let new = vpn_edge(show, edge, &format!("tenant config {id}"))?;
    let old = std::mem::replace(&mut member.configuration, new);
    show.output(&redacted(&member.configuration));
    let changed: Vec<&str> = old
        .lines()
        .zip(member.configuration.lines())
        .filter(|(old, new)| old != new)
        .map(|(old, _)| old.split_once(" =").map_or(old, |(key, _)| key))
        .collect();
    show.check(
        changed == ["PrivateKey", "PublicKey"]
            && old.lines().count() == member.configuration.lines().count(),
        &format!(
            "{}, new configuration: the keys differ, and nothing else",
            database.owner
        ),
        "PrivateKey, PublicKey",
        &changed.join(", "),
    );
    member.file = member.laptop.save(database.owner, &member.configuration)?;
    connect(show, member)?;
    reads_its_own(show, member, "new configuration up")
}

fn disable(show: &mut Show, edge: &Edge, member: &Member, other: &Member) -> Result<()> {
    let Customer { id, database, .. } = member.customer;
    vpn_edge(show, edge, &format!("tenant disable {id}"))?;
    out_of_reach(show, member, "disabled")?;
    let table = vpn_edge(show, edge, "ports")?;
    show.output(&table);
    let ports: Vec<u16> = edge.ports()?.into_keys().collect();
    show.check(
        ports == [other.port],
        &format!(
            "{}, disabled: port {} is gone from the map",
            database.owner, member.port
        ),
        &format!("{:?}", [other.port]),
        &format!("left: {ports:?}"),
    );
    let refused = match vpn_edge(show, edge, &format!("tenant config {id}")) {
        Ok(_) => "a configuration".into(),
        Err(error) => match error.root_cause().to_string().split_once("error: ") {
            Some((_, said)) => said.to_owned(),
            None => error.to_string(),
        },
    };
    show.output(&refused);
    show.check(
        refused.contains("VPN is not enabled"),
        &format!("{}, disabled: no configuration to download", database.owner),
        "VPN is not enabled",
        &refused,
    );
    reads_its_own(show, other, "meanwhile")
}

/// An answer in a few words.
fn seen(answer: &Answer) -> String {
    let line = answer.printed.lines().next().unwrap_or("nothing");
    match answer.outcome {
        Outcome::Rows => line.replace('|', ", "),
        // `psql: error: where, and with what: why`
        _ => line.rsplit(": ").next().unwrap_or(line).to_owned(),
    }
}

/// The configuration as others may see it.
fn redacted(configuration: &str) -> String {
    let line = |line: &str| match line.split_once('=') {
        Some(("PrivateKey ", _)) => "PrivateKey = …\n".into(),
        _ => format!("{line}\n"),
    };
    configuration.lines().map(line).collect()
}
