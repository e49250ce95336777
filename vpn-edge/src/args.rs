//! Options that commands of all kinds share, and the environment variables that
//! set the options of daemons.

use std::env;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction};

use crate::datapath;

/// Lets an environment variable set the option: `VPN_EDGE_` and the option's name,
/// in the plural where it may be given several times. The variable then has all the
/// values, separated by commas.
///
/// For `#[command(mut_args(variable))]` on all options of a daemon. Hidden options
/// get no variable, and an option with another one keeps that.
pub fn variable(arg: Arg) -> Arg {
    if arg.is_hide_set() || arg.is_positional() {
        return arg;
    }
    let arg = match arg.get_action() {
        // `false` and `0` are off, and what is no answer is an error.
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        ArgAction::Append if arg.get_value_delimiter().is_none() => arg.value_delimiter(','),
        _ => arg,
    };
    let name = match arg.get_env() {
        Some(name) => name.to_owned(),
        None => format!("VPN_EDGE_{}", arg.get_id().as_str().to_uppercase()).into(),
    };
    match env::var_os(&name) {
        // Files of settings have empty variables for what is not set.
        Some(value) if value.is_empty() => arg.env(None::<&str>),
        _ => arg.env(name),
    }
}

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// Output format.
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        global = true,
        help_heading = None::<&str>
    )]
    pub output: Output,
}

/// Where the programs and maps are.
#[derive(Clone, Debug, clap::Args)]
pub struct BpffsArgs {
    /// Directory on bpffs for programs and maps.
    #[arg(long, value_name = "DIR", env = "VPN_EDGE_BPFFS", default_value = datapath::DEFAULT_ROOT)]
    pub bpffs: PathBuf,
}

/// Where `standalone` keeps what belongs to running gateways.
#[derive(Clone, Debug, clap::Args)]
pub struct RuntimeArgs {
    /// Directory for sockets and files of running gateways.
    #[arg(long, value_name = "DIR", default_value = "/run/vpn-edge")]
    pub runtime: PathBuf,
}

#[cfg(test)]
pub mod testing {
    use clap::Command;

    /// The command as it is in an environment that sets nothing.
    pub fn without_variables(command: Command) -> Command {
        command
            .mut_args(|arg| arg.env(None::<&str>))
            .mut_subcommands(without_variables)
    }
}
