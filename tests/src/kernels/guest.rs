//! A boot: from power on, through the commands, to power off.
//!
//! The guest has two serial ports: one for its kernel's messages, one for what
//! its commands print.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

pub use super::image::Copy;
use super::image::pack;
use super::kernel::Kernel;

/// Emulation is slow, and slower on a busy machine; a guest that takes longer
/// than this hangs.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A guest uses both of a small machine's processors: one at a time.
static POWER: Mutex<()> = Mutex::new(());

/// What the guest printed, and how its commands ended.
pub struct Report {
    /// What `uname -r` said.
    pub release: String,
    pub printed: String,
    /// Name and exit code, in turn.
    pub ends: Vec<(String, i32)>,
    pub took: Duration,
}

/// Boots the newest packaged kernel of the series with the files, and runs the
/// commands (name and bash script) in turn.
///
/// # Errors
///
/// When the kernel cannot be had, or the guest does not run all commands to
/// their ends with exit code 0; the error has all that it printed.
pub fn boot(series: &str, files: &[Copy], commands: &[(&str, String)]) -> Result<Report> {
    let _power = POWER.lock().unwrap_or_else(PoisonError::into_inner);
    let kernel = Kernel::newest(series)?;
    let folder = TempDir::new()?;
    let image = pack(folder.path(), &kernel, files, commands)?;
    let started = Instant::now();
    let messages = folder.path().join("messages");
    let qemu = qemu(&kernel.image(), &image, &messages)?;
    let (printed, ending) = read(qemu, started + TIMEOUT)?;
    let report = Report {
        ends: ends(&printed),
        took: started.elapsed(),
        printed,
        release: kernel.release,
    };
    let booted = report
        .printed
        .contains(&format!("@kernel {}", report.release));
    let well =
        report.ends.len() == commands.len() && report.ends.iter().all(|(_, code)| *code == 0);
    ensure!(
        booted && well,
        "Linux {} {ending} after {} s; commands that ended: {}\n{}\nits kernel:\n{}",
        report.release,
        report.took.as_secs(),
        summary(&report.ends),
        report.printed,
        String::from_utf8_lossy(&fs::read(messages).unwrap_or_default())
    );
    Ok(report)
}

fn qemu(kernel: &Path, image: &Path, messages: &Path) -> Result<Child> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-machine",
            "q35",
            // With a thread for each CPU, one may run a breakpoint that another
            // has just patched away, and the kernel panics over it.
            "-accel",
            "tcg,thread=single",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "2G",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .args(["-display", "none"])
        .args(["-serial", &format!("file:{}", messages.display())])
        .args(["-serial", "stdio"])
        // A panic reboots, which -no-reboot turns into an end.
        .args(["-append", "console=ttyS0 panic=-1 loglevel=4"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().context("cannot run qemu-system-x86_64")
}

/// All that the guest prints until it is off, or until the deadline; and which
/// of the two it was.
fn read(mut qemu: Child, deadline: Instant) -> Result<(String, &'static str)> {
    let output = qemu.stdout.take().context("qemu's output is piped")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut text = String::new();
    let ending = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => writeln!(text, "{line}")?,
            Err(RecvTimeoutError::Disconnected) => break "went off",
            Err(RecvTimeoutError::Timeout) => {
                qemu.kill()?;
                break "hung";
            }
        }
    };
    qemu.wait()?;
    Ok((text, ending))
}

/// Reads `@end <number>-<name> <code>`.
fn ends(printed: &str) -> Vec<(String, i32)> {
    printed
        .lines()
        .filter_map(|line| {
            let end = line.strip_prefix("@end ")?;
            let (command, code) = end.split_once(' ')?;
            let (_, name) = command.split_once('-')?;
            Some((name.to_owned(), code.trim().parse().ok()?))
        })
        .collect()
}

fn summary(ends: &[(String, i32)]) -> String {
    let ends: Vec<_> = ends
        .iter()
        .map(|(name, code)| format!("{name} ({code})"))
        .collect();
    if ends.is_empty() {
        "none".to_owned()
    } else {
        ends.join(", ")
    }
}

impl Report {
    /// How many tests the guest's test executables ran and passed.
    ///
    /// # Errors
    ///
    /// When there is no such number.
    pub fn passed(&self) -> Result<u32> {
        let count = self
            .printed
            .lines()
            .filter_map(|line| line.split_once("test result: ok. "))
            .filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok())
            .sum();
        if count == 0 {
            bail!("no test passed in the guest:\n{}", self.printed);
        }
        Ok(count)
    }
}
