//! Builds the eBPF programs, so that the binary carries them.

#[path = "../xtask/src/build_ebpf.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod build_ebpf;

fn main() -> Result<(), String> {
    let programs = build_ebpf::from_build_script()?;
    let object = programs.join("vpn-edge-ebpf");
    println!("cargo::rustc-env=VPN_EDGE_EBPF={}", object.display());
    Ok(())
}
