//! Logging to standard error, filtered by `RUST_LOG`.

use std::env;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::datapath;

/// Sets up logging, at level `info` unless `RUST_LOG` is set.
///
/// With `datapath` what the programs log is shown too, whatever its level: that
/// was chosen when they were loaded. `RUST_LOG` may still name it.
pub fn init(datapath: bool) {
    tracing_subscriber::fmt()
        .with_env_filter(filter(env::var("RUST_LOG").ok(), datapath))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn filter(wanted: Option<String>, datapath: bool) -> EnvFilter {
    let wanted = wanted
        .filter(|wanted| EnvFilter::try_new(wanted).is_ok())
        .unwrap_or_else(|| "info,gotatun=warn".into());
    // Of two directives for a target the latter holds.
    let first = if datapath {
        format!("{}=trace,", datapath::LOG_TARGET)
    } else {
        String::new()
    };
    EnvFilter::new(first + &wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_log_is_shown_if_asked_for_unless_rust_log_names_it() {
        for (wanted, datapath, expected) in [
            (None, false, "gotatun=warn,info"),
            (Some("not=a=filter"), false, "gotatun=warn,info"),
            (Some("vpn_edge=debug"), false, "vpn_edge=debug"),
            (None, true, "datapath=trace,gotatun=warn,info"),
            (Some("warn"), true, "datapath=trace,warn"),
            (Some("datapath=off"), true, "datapath=off"),
        ] {
            let filter = filter(wanted.map(str::to_owned), datapath);
            assert_eq!(filter.to_string(), expected, "{wanted:?} {datapath}");
        }
    }
}
