//! Revocation by the token file, on a running daemon.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::edge::Edge;

const API: &str = "127.0.0.1:8080";

/// A connection to the API that stays open between requests.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(edge: &Edge) -> Result<Self> {
        let stream = edge.node.inside(|| {
            let stream = TcpStream::connect(API)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            Ok(stream)
        });
        let stream = stream.join().expect("the thread does not panic")?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The status of a request with this token.
    fn ask(&mut self, token: &str) -> Result<u16> {
        let request = format!(
            "GET /v1/tenants HTTP/1.1\r\nHost: {API}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ended");
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_lowercase()),
            }
        }
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.context("no length")?.parse()?];
        self.0.read_exact(&mut body)?;
        let status = head[0].split(' ').nth(1).context("no status")?;
        Ok(status.parse()?)
    }
}

/// Removes the last line.
fn remove_last_line(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.pop();
    Ok(fs::write(path, lines.join("\n") + "\n")?)
}

#[test]
fn a_token_that_is_revoked_while_no_file_can_be_opened_is_refused_afterwards() -> Result<()> {
    let (_topology, edge) = super::start()?;
    let rival = edge.member_token("rival")?;
    let mut connection = Connection::open(&edge)?;
    ensure!(connection.ask(&rival)? == 200);

    // Files that are open stay open: the connection goes on.
    edge.limit_files(3)?;
    remove_last_line(&edge.node.folder.join("tokens"))?;
    ensure!(connection.ask(&rival)? == 200, "{}", edge.log());
    let log = edge.log();
    let failure = "Too many open files (os error 24)";
    ensure!(
        log.lines()
            .any(|line| line.contains("the token file") && line.contains(failure)),
        "{log}"
    );

    edge.limit_files(1024)?;
    let start = Instant::now();
    while connection.ask(&rival)? != 401 {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "the revoked token still counts:\n{}",
            edge.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(connection.ask(edge.token())? == 200);
    Ok(())
}
