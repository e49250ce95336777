//! The command line.

use std::collections::BTreeSet;
use std::env;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{agent, controller, key, standalone, teardown};
use crate::{api, client, cluster, gateway, inspect};

/// WireGuard gateways for the tenants of a Kubernetes cluster or of one machine:
/// one UDP port for each tenant, steered by XDP.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole system on this machine: controller, edge, gateways and API.
    #[command(after_help = VARIABLES)]
    Standalone(standalone::StandaloneArgs),
    /// Run an edge node for gateways on other nodes, or for those of a cluster.
    #[command(after_help = VARIABLES)]
    Agent(agent::AgentArgs),
    /// Run the lifecycle of tenants and the API in a Kubernetes cluster.
    #[command(after_help = VARIABLES)]
    Controller(controller::ControllerArgs),
    /// Run a tenant's gateway in the current network namespace (internal).
    Gateway(gateway::GatewayArgs),
    /// Remove what `standalone` or `agent` leaves in the kernel. Tenants and keys
    /// stay in the database.
    Teardown(teardown::TeardownArgs),
    /// Show tenants' ports as the datapath has them.
    Ports(inspect::ports::PortsArgs),
    /// Show the clients that tenants were reached from recently.
    Flows(inspect::flows::FlowsArgs),
    /// Show dropped packets and why they were dropped.
    Drops(inspect::drops::DropsArgs),
    /// Show tenants' traffic on a live screen.
    Top(inspect::top::TopArgs),
    /// Trace a packet through the datapath.
    Trace(inspect::trace::TraceArgs),
    /// Manage tenants and their VPNs through the API.
    Tenant(client::TenantArgs),
    /// Show the audit log: who did what to which tenant.
    Audit(client::AuditArgs),
    /// Manage API tokens in a token file.
    Token(client::TokenArgs),
    /// Manage the key that encrypts private keys in the database.
    Key(key::KeyArgs),
    /// Print the CustomResourceDefinition of VpnTenant, for `kubectl apply -f -`.
    Crd,
    /// Print the OpenAPI 3.1 description of the API.
    Openapi,
}

const VARIABLES: &str = "\
Environment variables in square brackets set the same as their options, lists
with commas (limits with semicolons). An option has priority over its variable.
An empty variable is ignored.";

impl Cli {
    /// What the command line says. Ends the process where it asks for help or is
    /// wrong.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            // As `exit` does: there is nowhere to report that it cannot be printed.
            let _ = error.print();
            let words: Vec<String> = env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            for (option, variable) in variables_of(&error, &words, Self::command()) {
                eprintln!("note: {option} is set by the environment variable {variable}");
            }
            std::process::exit(error.exit_code())
        })
    }
}

/// The options that an error is about and the environment sets, with their
/// variables.
fn variables_of(
    error: &clap::Error,
    words: &[String],
    mut command: clap::Command,
) -> BTreeSet<(String, String)> {
    command.build();
    let mut command = &command;
    for word in words.iter().skip(1) {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    let named =
        [ContextKind::InvalidArg, ContextKind::PriorArg].map(|kind| match error.get(kind) {
            Some(ContextValue::String(one)) => vec![one.clone()],
            Some(ContextValue::Strings(several)) => several.clone(),
            _ => Vec::new(),
        });
    // As in `--dns <ADDRESS>`.
    let named = named.concat();
    let named = named
        .iter()
        .filter_map(|name| name.split([' ', '=', '[']).next());
    let mut found = BTreeSet::new();
    for option in named {
        let is_given = |word: &String| word.split('=').next() == Some(option);
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long().map(|long| format!("--{long}")).as_deref() == Some(option));
        let variable = arg.and_then(clap::Arg::get_env);
        if let Some(variable) = variable
            && env::var_os(variable).is_some()
            && !words.iter().any(is_given)
        {
            found.insert((option.to_owned(), variable.to_string_lossy().into_owned()));
        }
    }
    found
}

impl Cli {
    /// Whether the eBPF programs are to log.
    #[must_use]
    pub fn logs_datapath(&self) -> bool {
        match &self.command {
            Command::Standalone(args) => args.logs_datapath(),
            Command::Agent(args) => args.logs_datapath(),
            _ => false,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    ///
    /// Whatever the command fails on.
    pub async fn run(self) -> Result<()> {
        match self.command {
            Command::Standalone(args) => standalone::run(args).await,
            Command::Agent(args) => agent::run(args).await,
            Command::Controller(args) => controller::run(args).await,
            Command::Crd => {
                print!("{}", cluster::crd::definition()?);
                Ok(())
            }
            Command::Openapi => {
                println!("{}", api::openapi().to_pretty_json()?);
                Ok(())
            }
            Command::Teardown(args) => teardown::run(args).await,
            Command::Gateway(args) => gateway::run(args).await,
            Command::Ports(args) => inspect::ports::run(&args),
            Command::Drops(args) => inspect::drops::run(&args).await,
            Command::Flows(args) => inspect::flows::run(&args),
            Command::Trace(args) => inspect::trace::run(&args),
            Command::Top(args) => inspect::top::run(&args),
            Command::Tenant(args) => client::run(args).await,
            Command::Audit(args) => client::run_audit(args).await,
            Command::Token(args) => client::run_token(args),
            Command::Key(args) => key::run(args),
        }
    }
}

#[cfg(test)]
mod tests;
