//! The project's own commands: `cargo xtask --help`.

mod bench;
#[allow(dead_code, reason = "build scripts use the rest")]
mod build_ebpf;
mod crds;
mod demo;
mod fixtures;
mod fuzz;
mod image;
mod kubernetes;
mod links;
mod lint;
mod modules;
mod monitoring;
mod npm;
mod programs;
mod schemathesis;
mod screenshots;
mod setup;
mod step;
mod test;
mod tidy;
mod workspace;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, disable_help_subcommand = true)]
enum Xtask {
    /// Install what building, the lab, the demo and the tests need
    Setup,
    /// Build the kernel's programs and list them
    BuildEbpf,
    /// Show the whole path on this machine: two tenants, two clients, a database behind each
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every suite, or the ones named
    #[command(after_help = test::suites())]
    Test { names: Vec<String> },
    /// Write the pictures of the pages into docs/src/images
    Screenshots,
    /// Keep what this version leaves behind, for the suite `upgrade` of later ones
    Fixtures,
    /// Measure; writes target/bench.json
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        names: Vec<String>,
    },
    /// Write the definitions of the Kubernetes resources into manifests/
    Crds,
    /// Feed arbitrary frames to the host's build of the decision
    Fuzz {
        #[arg(default_value_t = 60)]
        seconds: u64,
        /// Keep inputs that reach new code in the tree's corpus
        #[arg(long)]
        keep: bool,
    },
    /// Build a Kubernetes control plane for the tests, and print its folder
    Kubernetes,
    /// Check form, clippy, licences and the tree's own rules
    Lint,
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not by Debug, which adds a backtrace that helps nobody here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Xtask) -> Result<()> {
    match task {
        Xtask::Setup => setup::ready(&setup::EVERYTHING).map(drop),
        Xtask::BuildEbpf => programs::build_and_list(),
        Xtask::Demo { args } => demo::run(&args),
        Xtask::Test { names } => test::run(&names),
        Xtask::Screenshots => screenshots::run(),
        Xtask::Fixtures => fixtures::run(),
        Xtask::Bench { names } => bench::run(&names),
        Xtask::Crds => crds::run(),
        Xtask::Fuzz { seconds, keep } => fuzz::run(seconds, keep),
        Xtask::Kubernetes => {
            for (_, folder) in setup::ready(&[setup::Need::Kubernetes])? {
                println!("{}", folder.display());
            }
            Ok(())
        }
        Xtask::Lint => lint::run(),
    }
}
