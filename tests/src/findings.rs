//! All that the fuzzer keeps, run once more: inputs that reached new code, and
//! those that broke something.

#[path = "../../vpn-edge-ebpf/fuzz/src/invariants.rs"]
mod invariants;

use std::fs;
use std::path::Path;

use vpn_edge_ebpf::guard::Admitted;

/// Runs every input of a folder below `vpn-edge-ebpf/fuzz`, and says by what
/// right the steered ones were let in.
fn run(folder: &str) -> Vec<Admitted> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vpn-edge-ebpf/fuzz");
    let files = fs::read_dir(fuzz.join(folder)).unwrap();
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|path| path.extension().is_none_or(|extension| extension != "md"))
        .filter_map(|path| {
            // Captured unless it fails, and then the last line tells the culprit.
            println!("{}", path.display());
            invariants::check(&fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn what_reached_new_code_in_the_fuzzer_breaks_nothing() {
    let steered = run("corpus");
    for admitted in [Admitted::Session, Admitted::Handshake, Admitted::Grace] {
        assert!(
            steered.contains(&admitted),
            "none was let in by {admitted:?}"
        );
    }
}

#[test]
fn what_the_fuzzer_once_broke_something_with_breaks_nothing_any_more() {
    run("findings");
}
