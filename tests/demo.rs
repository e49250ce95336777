//! `cargo xtask demo --keep`: what it prints leads to its dashboard, and nothing
//! of it stays.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ended when a test fails, too.
struct Demo {
    child: Child,
    lines: Receiver<String>,
}

impl Demo {
    /// All that it leaves is in `folder`, or has it in its environment.
    fn keep(folder: &Path) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_demo"))
            .arg("--keep")
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, lines })
    }

    /// What comes before and after `words` in the next line that has them. The
    /// demo ends itself when it hangs.
    fn says(&self, words: &str) -> Result<(String, String)> {
        let mut said = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(200));
            let line = line.with_context(|| format!("no `{words}`:\n{}", said.join("\n")))?;
            if let Some((before, after)) = line.split_once(words) {
                return Ok((before.trim().to_owned(), after.trim().to_owned()));
            }
            said.push(line);
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(host: &str, path: &str, token: &str) -> Result<String> {
    let mut server = TcpStream::connect(host)?;
    server.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        server,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Processes that were started by the demo.
fn processes(folder: &Path) -> Result<Vec<String>> {
    let mark = format!("TMPDIR={}", folder.display());
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.any(|variable| variable == mark.as_bytes()) {
            found.push(fs::read_to_string(process.join("cmdline")).unwrap_or_default());
        }
    }
    Ok(found)
}

#[test]
fn a_kept_demo_has_its_dashboard_outside_and_leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut demo = Demo::keep(folder.path())?;
    let (tally, _) = demo.says(" as expected, in")?;
    let halves = tally.split_once(" of ").context("a tally")?;
    ensure!(halves.0 == halves.1, "{tally}");
    let (_, url) = demo.says("Its dashboard: ")?;
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let (_, admin) = demo.says("the admin's token")?;
    let (_, member) = demo.says("a token of acme")?;
    demo.says("cluster ")?;

    let page = get(host, "/sign-in", "none")?;
    ensure!(page.contains("<h1>Sign in</h1>"), "{page}");
    let page = get(host, "/tenants", &admin)?;
    ensure!(
        page.contains("kovra-acme") && page.contains("kovra-globex"),
        "{page}"
    );
    let page = get(host, "/tenants?search=kovra", &member)?;
    ensure!(
        page.contains("kovra-acme") && !page.contains("kovra-globex"),
        "{page}"
    );

    ensure!(
        processes(folder.path())?.len() > 5,
        "its processes are found"
    );
    ensure!(
        fs::read_dir(folder.path())?.count() > 0,
        "its folder is found"
    );
    kill(
        Pid::from_raw(i32::try_from(demo.child.id())?),
        Signal::SIGINT,
    )?;
    demo.child.wait()?;
    let start = Instant::now();
    loop {
        let left = (
            processes(folder.path())?,
            fs::read_dir(folder.path())?.count(),
        );
        if left == (Vec::new(), 0) {
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "{left:?} is left"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(TcpStream::connect(host).is_err(), "{host} still answers");
    Ok(())
}
