//! All that the fuzzer keeps, run once more: inputs that reached new code, and
//! those that broke something.

#[path = "../../vpn-edge-ebpf/fuzz/src/invariants.rs"]
mod invariants;

use std::fs;
use std::path::Path;

use vpn_edge_ebpf::guard::Admitted;

use invariants::Way;

/// Runs every input of a folder below `vpn-edge-ebpf/fuzz`, and says where
/// those went that were let in, and by what right.
fn run(folder: &str) -> Vec<Way> {
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
    let went = run("corpus");
    let here = [Admitted::Session, Admitted::Handshake, Admitted::Grace];
    let elsewhere = [Admitted::Session, Admitted::Handshake, Admitted::Relayed];
    let here = here.map(Way::Gateway).into_iter();
    for way in here.chain(elsewhere.map(Way::Node)).chain([Way::Client]) {
        assert!(went.contains(&way), "none went {way:?}");
    }
}

#[test]
fn what_the_fuzzer_once_broke_something_with_breaks_nothing_any_more() {
    run("findings");
}
