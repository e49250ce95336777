//! Builds the eBPF programs, so that the binary carries them.

use std::path::{Path, PathBuf};

#[path = "../xtask/src/build_ebpf.rs"]
mod build_ebpf;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace");
    for source in ["vpn-edge-ebpf", "vpn-edge-common", "xtask/src/build_ebpf.rs", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // OUT_DIR is <target>/<profile>/build/<package>/out. One folder for all
    // profiles, as the programs have one profile and core takes a while.
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR lies in the target folder")
        .join("ebpf");
    match build_ebpf::build(root, &target) {
        Ok(programs) => {
            println!("cargo::rustc-env=VPN_EDGE_EBPF={}", programs.join("vpn-edge-ebpf").display());
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
