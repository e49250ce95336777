use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Arg, Command};

use super::*;
use crate::local::sqlite::KEY_VARIABLE;

fn command(path: &[&str]) -> Command {
    let mut command = Cli::command();
    command.build();
    for name in path {
        command = command.find_subcommand(name).expect(name).clone();
    }
    command
}

/// What can be given: neither help nor what is hidden.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let options = command.get_opts().chain(command.get_arguments());
    let options = options.filter(|arg| !arg.is_hide_set() && !arg.is_positional());
    options.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
}

fn variable(arg: &Arg) -> Option<&str> {
    arg.get_env()
        .map(|name| name.to_str().expect("a name in ASCII"))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

const DAEMONS: [&[&str]; 5] = [
    &["standalone"],
    &["agent"],
    &["agent", "check"],
    &["agent", "prepare"],
    &["controller"],
];

/// Names of variables by other conventions, or of what is the same in all of a
/// cluster's settings.
const OTHERS: [(&str, &str, &str); 4] = [
    ("agent", "node", "NODE_NAME"),
    ("agent", "ports", "VPN_EDGE_POOLS"),
    ("controller", "namespace", "POD_NAMESPACE"),
    ("controller", "identity", "POD_NAME"),
];

#[test]
fn every_option_of_a_daemon_has_a_variable() {
    for path in DAEMONS {
        let command = command(path);
        let mut seen = BTreeSet::new();
        for arg in options(&command) {
            let id = arg.get_id().as_str();
            if path == ["agent", "check"] && id == "output" {
                assert_eq!(variable(arg), None);
                continue;
            }
            let other = |(of, option, _): &&(&str, &str, &str)| (*of, *option) == (path[0], id);
            let expected = match OTHERS.iter().find(other) {
                Some((_, _, name)) => (*name).to_owned(),
                None => format!("VPN_EDGE_{}", id.to_uppercase()),
            };
            assert_eq!(variable(arg), Some(expected.as_str()), "{path:?} {id}");
            // Kubernetes gives pods such variables for Services.
            let is_of_service = |name: &str| {
                ["_PORT", "_SERVICE_HOST"]
                    .iter()
                    .any(|end| name.ends_with(end))
                    || name.contains("_PORT_")
            };
            assert!(!is_of_service(&expected), "{expected}");
            let taken = [
                KEY_VARIABLE,
                "VPN_EDGE_BIN",
                "VPN_EDGE_CA",
                "VPN_EDGE_SERVER",
                "VPN_EDGE_TOKEN",
            ];
            assert!(!taken.contains(&expected.as_str()), "{expected}");
            seen.insert(expected);
        }
        assert!(seen.len() >= 12, "{path:?} has {seen:?}");
    }
}

/// It inherits the environment of `standalone`.
#[test]
fn a_gateway_takes_no_option_from_the_environment() {
    for path in [
        &["gateway"][..],
        &["gateway", "init"],
        &["gateway", "probe"],
    ] {
        let command = command(path);
        assert!(options(&command).count() >= 2, "{path:?}");
        for arg in command.get_arguments() {
            assert_eq!(variable(arg), None, "{path:?}");
        }
    }
}

#[test]
fn few_options_of_a_daemon_are_under_no_heading() {
    let plain = |path: &[&str]| -> BTreeSet<String> {
        let command = command(path);
        options(&command)
            .filter(|arg| arg.get_help_heading().is_none())
            .filter_map(|arg| Some(arg.get_long()?.to_owned()))
            .collect()
    };
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let standalone: BTreeSet<String> = of(&["hostname", "listen", "ports", "uplink"]);
    assert_eq!(plain(&["standalone"]), standalone);
    let agent: BTreeSet<String> = of(&["allocations", "node", "ports", "sessions", "uplink"]);
    assert_eq!(plain(&["agent"]), agent);
    let controller: BTreeSet<String> = of(&["listen", "pool"]);
    assert_eq!(plain(&["controller"]), controller);
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All commands, with the words that lead to each.
fn all(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    found.push((path.to_owned(), command.clone()));
    for inner in command.get_subcommands() {
        all(inner, &format!("{path} {}", inner.get_name()), found);
    }
}

#[test]
fn the_reference_has_every_option_and_variable() {
    let page = repository().join("docs/src/reference/command-line.md");
    let page = fs::read_to_string(page).unwrap();
    let mut commands = Vec::new();
    all(&command(&[]), "vpn-edge", &mut commands);
    assert!(commands.len() > 20);
    for (path, command) in commands {
        for arg in options(&command) {
            let option = format!("`--{}", arg.get_long().unwrap());
            let ends = ["`", " ", "[", "\\"];
            let is_there = ends
                .iter()
                .any(|end| page.contains(&format!("{option}{end}")));
            assert!(is_there, "{path} {option}");
            if let Some(variable) = variable(arg) {
                assert!(page.contains(&format!("`{variable}`")), "{path} {variable}");
            }
        }
    }
}

/// Names in a text that begin as our variables do.
fn variables_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("VPN_EDGE_")).collect()
}

#[test]
fn manifests_set_variables_that_there_are() {
    let known: BTreeSet<String> = DAEMONS
        .iter()
        .flat_map(|path| {
            let command = command(path);
            let names = options(&command).filter_map(variable).map(str::to_owned);
            names.collect::<Vec<_>>()
        })
        .collect();
    let mut folders = vec![repository().join("manifests")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for name in variables_in(&text) {
                assert!(known.contains(name), "{name} in {}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen}");
}

const LINE: &str = "LINE_OF_THE_TEST";

/// For [`parsed`]; nothing otherwise.
#[test]
fn in_a_process_of_its_own() {
    let Ok(line) = env::var(LINE) else {
        return;
    };
    let words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
    match Cli::try_parse_from(&words) {
        Ok(cli) => println!("{cli:?}"),
        Err(error) => println!(
            "{error}\n{:?}",
            variables_of(&error, &words, Cli::command())
        ),
    }
}

/// What a command line comes to where these variables are all that is set.
fn parsed(line: &str, variables: &[(&str, &str)]) -> String {
    let test = "cli::tests::in_a_process_of_its_own";
    let output = Process::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env_clear()
        .env(LINE, format!("vpn-edge {line}"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Whether all of `expected` is in what the command line comes to.
#[track_caller]
fn assert_parsed(line: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let said = parsed(line, variables);
    for part in expected {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn variables_set_what_options_set() {
    let variables = [
        ("VPN_EDGE_HOSTNAME", "vpn.example.com"),
        ("VPN_EDGE_UPLINKS", "eth0,eth1"),
        ("VPN_EDGE_ADDRESSES", "192.0.2.1,2001:db8::1"),
        ("VPN_EDGE_DRAIN", "30"),
        ("VPN_EDGE_BPFFS", "/sys/fs/bpf/other"),
        ("VPN_EDGE_DATABASE", "/other.db"),
    ];
    let expected = [
        r#"hostname: "vpn.example.com""#,
        r#"uplinks: ["eth0", "eth1"]"#,
        "addresses: [192.0.2.1, 2001:db8::1]",
        "drain: 30",
        r#"bpffs: "/sys/fs/bpf/other""#,
        r#"database: "/other.db""#,
    ];
    assert_parsed("standalone", &variables, &expected);
    let given = "standalone --uplink eth2 --drain 1";
    assert_parsed(given, &variables, &[r#"uplinks: ["eth2"]"#, "drain: 1"]);

    // Limits have commas of their own.
    let limits = "business=packets:100,bytes:20000;enterprise_cloud=packets:300";
    let variables = [("VPN_EDGE_LIMITS", limits), ("NODE_NAME", "worker-1")];
    for line in ["agent", "agent check", "agent prepare"] {
        let said = parsed(line, &variables);
        assert!(
            said.contains("Business") && said.contains("Enterprise"),
            "{said}"
        );
        assert!(said.contains(r#"node: Some("worker-1")"#), "{line}: {said}");
    }

    let pools = "a.example.com=30000-30049,b.example.com=30050-30099";
    let variables = [("VPN_EDGE_POOLS", pools), ("NODE_NAME", "worker-1")];
    let both = ["first: 30000, last: 30049", "first: 30050, last: 30099"];
    assert_parsed("controller", &variables, &both);
    assert_parsed("agent", &variables, &both);
    // Whoever looks into the daemon's container looks at the same maps.
    let variables = [("VPN_EDGE_BPFFS", "/sys/fs/bpf/other")];
    for line in [
        "ports",
        "flows",
        "drops",
        "top",
        "trace --hex 00",
        "teardown",
    ] {
        assert_parsed(line, &variables, &[r#"bpffs: "/sys/fs/bpf/other""#]);
    }
    let variables = [("VPN_EDGE_DATABASE", "/other.db")];
    assert_parsed("key rotate", &variables, &[r#"database: "/other.db""#]);
}

#[test]
fn a_flag_whose_variable_is_false_is_off() {
    for line in ["standalone --hostname x", "controller --pool x=1024-1025"] {
        let flag = |value, expected| {
            assert_parsed(line, &[("VPN_EDGE_TUNNEL_IPV6", value)], &[expected]);
        };
        for off in ["false", "0", "no", "off", ""] {
            flag(off, "tunnel_ipv6: false");
        }
        for on in ["true", "1", "yes", "on"] {
            flag(on, "tunnel_ipv6: true");
        }
        flag("flase", "invalid value 'flase' for '--tunnel-ipv6'");
    }
}

#[test]
fn an_empty_variable_sets_nothing() {
    let variables = [
        ("VPN_EDGE_DNS", ""),
        ("VPN_EDGE_OIDC_ISSUER", ""),
        ("VPN_EDGE_TRUSTED_PROXIES", ""),
        ("VPN_EDGE_BPFFS", ""),
    ];
    let expected = [
        "dns: 10.96.0.10",
        "oidc_issuer: None",
        "trusted_proxies: []",
        r#"bpffs: "/sys/fs/bpf/vpn-edge""#,
    ];
    assert_parsed("standalone --hostname x", &variables, &expected);
}

#[test]
fn an_error_names_the_variable_that_it_is_about() {
    let line = "standalone --hostname x";
    let note = |line, variables: &[_], option: &str, variable: &str| {
        let expected = format!("{{({option:?}, {variable:?})}}");
        assert_parsed(line, variables, &[&expected]);
    };
    let dns = [("VPN_EDGE_DNS", "10.96")];
    note(line, &dns, "--dns", "VPN_EDGE_DNS");
    let key = [("VPN_EDGE_TLS_KEY", "key.pem"), ("VPN_EDGE_DNS", "1.1.1.1")];
    assert_parsed(line, &key, &["--tls-certificate <FILE>"]);
    let node = [("NODE_NAME", "worker-1")];
    let file = "agent check --allocations file";
    note(file, &node, "--node", "NODE_NAME");
    // It is the option that is wrong here, or nothing is.
    assert_parsed("standalone --dns=x", &dns, &["invalid value 'x'", "{}"]);
    assert_parsed(
        "standalone",
        &[("VPN_EDGE_DNS", "1.1.1.1")],
        &["--hostname <NAME>", "{}"],
    );
}
