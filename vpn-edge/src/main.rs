use std::process::ExitCode;

use vpn_edge::{cli::Cli, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    // Processes with keys in memory must not leave core dumps.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("error: cannot keep keys out of core dumps: {error}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::read();
    telemetry::init(cli.logs_datapath());
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing installed a TLS provider before main");
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
