//! One command of a set-up, shown while it runs.

use crate::workspace;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a command that talks much and matters little, unless it fails.
pub fn step(what: &str, mut command: Command) -> Result<()> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}")
            .expect("a valid template"),
    );
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let terminal = io::stderr().is_terminal();
    if !terminal {
        eprintln!("{what}");
    }

    let line = workspace::line(&command);
    let (output, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("{what}: cannot run `{line}`"))?;
    drop(command); // and with it the pipe's writing end
    let mut last = VecDeque::new();
    for text in BufReader::new(output).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).trim_end().to_owned();
        bar.set_message(text.clone());
        last.push_back(text);
        if last.len() > 20 {
            last.pop_front();
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if !status.success() {
        let last = Vec::from(last).join("\n");
        bail!("{what}: `{line}` failed ({status}):\n{last}");
    }
    eprintln!("{what}: done in {} s", started.elapsed().as_secs());
    Ok(())
}
