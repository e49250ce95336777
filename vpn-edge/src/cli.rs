//! The command line.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::{agent, controller, key, standalone, teardown};
use crate::{api, client, cluster, gateway, inspect};

/// A WireGuard edge: one port a tenant, steered by XDP.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole system on this machine.
    Standalone(standalone::StandaloneArgs),
    /// Be an edge node: for gateways on other nodes, or for those of a cluster.
    Agent(agent::AgentArgs),
    /// Run the tenants' lifecycle and the API in a Kubernetes cluster.
    Controller(controller::ControllerArgs),
    /// Print the definition of the VpnTenant resource, for `kubectl apply -f -`.
    Crd,
    /// Print the API's description, OpenAPI 3.1.
    Openapi,
    /// Take off this machine what `standalone` or `agent` leaves there when it ends.
    Teardown(teardown::TeardownArgs),
    /// Be a tenant's gateway, in the namespace this starts in.
    Gateway(gateway::GatewayArgs),
    /// Show the port map as the kernel has it.
    Ports(inspect::ports::PortsArgs),
    /// Show what was dropped and why, or follow drops as they happen.
    Drops(inspect::drops::DropsArgs),
    /// Show the clients that each tenant was reached from lately.
    Flows(inspect::flows::FlowsArgs),
    /// Ask what the edge does with a packet, step by step.
    Trace(inspect::trace::TraceArgs),
    /// Show the tenants' traffic on a live screen.
    Top(inspect::top::TopArgs),
    /// Manage tenants and their VPN.
    Tenant(client::TenantArgs),
    /// Show who did what to which tenant.
    Audit(client::AuditArgs),
    /// Manage the API's tokens.
    Token(client::TokenArgs),
    /// Manage the key that the database's private keys are encrypted under.
    Key(key::KeyArgs),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being done.
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
