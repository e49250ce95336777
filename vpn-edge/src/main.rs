use std::process::ExitCode;

use vpn_edge::{cli::Cli, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    // Whatever has keys in memory leaves no core, whoever collects cores.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("error: cannot keep keys out of core dumps: {error}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::read();
    telemetry::init();
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
