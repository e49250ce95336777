//! `cargo xtask bench [--svg FILE] [NAME…]`: what the packet path costs.
//!
//! Every figure stands beside its baseline, taken in the same round, since a
//! machine's speed drifts. Ratios carry over to other machines, nanoseconds do
//! not.

mod clock;
mod cluster;
mod messages;
mod picture;
mod refill;
mod renewed;
mod report;
mod revocation;
mod rig;
mod subjects;
mod world;

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use report::{Report, figure};
use rig::Rig;
use subjects::Subject;

/// Times that every figure is taken.
const ROUNDS: usize = 21;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (svg, mut names) = arguments()?;
    let all = names.is_empty();
    let revocation = all || names.iter().any(|name| name == revocation::NAME);
    names.retain(|name| name != revocation::NAME);
    let cluster = all || names.iter().any(|name| name == cluster::NAME);
    names.retain(|name| name != cluster::NAME);
    if cluster {
        let figures = serde_json::to_string_pretty(&cluster::measure()?)?;
        fs::write(target().join("bench-cluster.json"), figures)?;
    }
    if revocation {
        let figures = serde_json::to_string_pretty(&revocation::measure()?)?;
        fs::write(target().join("bench-revocation.json"), figures)?;
    }
    if !all && names.is_empty() {
        return Ok(());
    }
    let subjects = chosen(&names)?;
    let samples = measure(&subjects)?;
    let figures = subjects.iter().zip(&samples).map(|(subject, own)| {
        let baseline = subjects
            .iter()
            .position(|other| other.name == subject.baseline)
            .expect("chosen with its baseline");
        figure(subject, own, &samples[baseline])
    });
    let report = Report(figures.collect());
    report.print(&subjects);

    let json = target().join("bench.json");
    fs::write(&json, serde_json::to_string_pretty(&report.0)?)?;
    println!("written to {}", json.display());
    if let Some(picture) = picture::draw(&report) {
        fs::write(&svg, picture).with_context(|| format!("cannot write {}", svg.display()))?;
        println!("drawn in {}", svg.display());
    }
    Ok(())
}

/// Where the picture goes, and beginnings of the names to measure.
fn arguments() -> Result<(PathBuf, Vec<String>)> {
    let (mut svg, mut names) = (target().join("bench.svg"), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--svg" {
            svg = arguments.next().context("--svg takes a file")?.into();
        } else {
            names.push(argument);
        }
    }
    Ok((svg, names))
}

/// The subjects whose names begin like one of `names`, or all, and their
/// baselines.
fn chosen(names: &[String]) -> Result<Vec<Subject>> {
    let all = subjects::all();
    let begins = |subject: &Subject, name: &String| subject.name.starts_with(name.as_str());
    for name in names {
        ensure!(
            all.iter().any(|subject| begins(subject, name)),
            "no benchmark `{name}`; there are\n{}",
            all.iter()
                .map(|subject| subject.name.as_str())
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
    let wanted =
        |subject: &Subject| names.is_empty() || names.iter().any(|name| begins(subject, name));
    let baselines: Vec<String> = all
        .iter()
        .filter(|subject| wanted(subject))
        .map(|subject| subject.baseline.clone())
        .collect();
    Ok(all
        .into_iter()
        .filter(|subject| wanted(subject) || baselines.contains(&subject.name))
        .collect())
}

/// A sample of every subject a round.
fn measure(subjects: &[Subject]) -> Result<Vec<Vec<f64>>> {
    let mut rig = Rig::new()?;
    let mut samples = vec![Vec::with_capacity(ROUNDS); subjects.len()];
    // A first round warms caches and branch predictors, and is not kept.
    for round in 0..=ROUNDS {
        for (subject, kept) in subjects.iter().zip(&mut samples) {
            if std::io::stderr().is_terminal() {
                eprint!("\rround {round} of {ROUNDS}: {:<40}", subject.name);
            }
            let value = rig.measure(subject)?;
            if round > 0 {
                kept.push(value);
            }
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r{:<60}\r", "");
    }
    Ok(samples)
}

/// The folder of build outputs that this program lies in.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().nth(2).map(PathBuf::from);
    found.unwrap_or_else(|| "target".into())
}
