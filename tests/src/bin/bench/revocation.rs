//! How soon a disabled tenant's port is closed, seen from the packets.
//!
//! The whole system in the lab: a client sends without pause, the API is told
//! to disable, and the drop counters say when the first packet found the port
//! closed.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::edge::Edge;
use lab::topology::{A, EDGE, Topology, Uplink};
use serde::Serialize;
use vpn_edge::datapath::{DEFAULT_ROOT, Reader};
use vpn_edge_common::DropReason;

/// The name that selects this.
pub const NAME: &str = "revocation";
/// Tenants in the registry.
const TENANTS: [usize; 2] = [1, 2_700];
const ROUNDS: usize = 15;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two packets.
const PAUSE: Duration = Duration::from_micros(100);

/// Milliseconds to the first packet that was refused; medians, and the worst.
#[derive(Serialize)]
pub struct Figure {
    tenants: usize,
    after_request: f64,
    /// Below zero where it was refused before the answer was there.
    after_answer: f64,
    worst_after_answer: f64,
}

pub fn measure() -> Result<Vec<Figure>> {
    println!(
        "{:<24} {:>16} {:>16} {:>16}",
        "REVOCATION, ms", "after request", "after answer", "at worst"
    );
    let figures = TENANTS.map(|tenants| -> Result<Figure> {
        let figure = with(tenants)?;
        println!(
            "{:<24} {:>16.1} {:>16.1} {:>16.1}",
            format!("{tenants} tenants"),
            figure.after_request,
            figure.after_answer,
            figure.worst_after_answer
        );
        Ok(figure)
    });
    println!();
    figures.into_iter().collect()
}

fn with(tenants: usize) -> Result<Figure> {
    let topology = Topology::new(Uplink::Veth)?;
    let edge = Edge::start(&topology, Uplink::Veth, &[("--ports", "31000-31000")])?;
    register(&edge, tenants - 1)?;
    let tenant = edge.enabled(&A)?;
    let port = tenant.port;

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sender = topology.client_a.inside(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((EDGE, port))?;
        // Data of a session that is not there: refused for that, until there
        // is no gateway to refuse it for.
        let mut message = [0; 32];
        message[0] = 4;
        while !stopped.load(Relaxed) {
            let _ = socket.send(&message);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    });
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        edge.await_ports(|ports| ports.get(&port).is_some_and(|port| port["mode"] == "xdp"))?;
        let (id, token) = (tenant.id.clone(), edge.token().to_owned());
        let timed = edge.node.inside(move || disable(&id, &token, port));
        samples.push(timed.join().expect("the thread does not panic")?);
        edge.tenant(&["enable", &tenant.id])?;
        let status = edge.tenant(&["status", &tenant.id])?;
        ensure!(
            status["port"] == port,
            "the pool has but one port: {status}"
        );
    }
    stop.store(true, Relaxed);
    sender.join().expect("the thread does not panic")?;

    let sorted = |by: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(by).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (request, answer) = (sorted(|sample| sample.0), sorted(|sample| sample.1));
    Ok(Figure {
        tenants,
        after_request: request[ROUNDS / 2],
        after_answer: answer[ROUNDS / 2],
        worst_after_answer: answer[ROUNDS - 1],
    })
}

/// Milliseconds from request and from answer to the first refused packet.
fn disable(id: &str, token: &str, port: u16) -> Result<(f64, f64)> {
    let reader = Reader::open(Path::new(DEFAULT_ROOT))?;
    let slot = reader.allocation(port).context("the port is open")?.slot;
    let closed = move |reader: &Reader| -> Result<u64> {
        Ok(reader.counters(slot)?.drops[DropReason::NoGateway as usize])
    };
    let before = closed(&reader)?;
    let refused = std::thread::spawn(move || -> Result<Instant> {
        let start = Instant::now();
        while closed(&reader)? == before {
            ensure!(start.elapsed() < TIMEOUT, "no packet was refused");
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(Instant::now())
    });
    let mut stream = TcpStream::connect("127.0.0.1:8080")?;
    let request = format!(
        "POST /v1/tenants/{id}/vpn/disable HTTP/1.1\r\nHost: edge\r\n\
         Authorization: Bearer {token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let asked = Instant::now();
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let answered = Instant::now();
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("the API refused: {answer}");
    }
    let refused = refused.join().expect("the thread does not panic")?;
    Ok((since(asked, refused), since(answered, refused)))
}

/// Milliseconds, below zero if `later` is the earlier.
fn since(earlier: Instant, later: Instant) -> f64 {
    let forth = later.saturating_duration_since(earlier).as_secs_f64();
    let back = earlier.saturating_duration_since(later).as_secs_f64();
    (forth - back) * 1e3
}

/// Adds tenants that are not enabled.
fn register(edge: &Edge, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let file = edge.node.folder.join("tenants.curl");
    let requests: Vec<String> = (0..count)
        .map(|number| {
            format!(
                "url = http://127.0.0.1:8080/v1/tenants\n\
                 header = \"Authorization: Bearer {}\"\n\
                 json = \"{{\\\"organisation\\\": \\\"organisation-{number}\\\", \\\"plan\\\": \\\"business\\\"}}\"\n\
                 fail\noutput = /dev/null\nsilent\nshow-error\n",
                edge.token()
            )
        })
        .collect();
    fs::write(&file, requests.join("next\n"))?;
    edge.node.sh(&format!("curl -K {}", file.display()))?;
    Ok(())
}
