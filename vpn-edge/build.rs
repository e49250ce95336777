//! Builds the eBPF programs, so that the binary carries them.

#[path = "../xtask/src/build_ebpf.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod build_ebpf;

fn main() -> Result<(), String> {
    let programs = build_ebpf::from_build_script()?;
    for (variable, object) in [("VPN_EDGE_EBPF", "vpn-edge-ebpf"), ("PASS_EBPF", "pass")] {
        println!(
            "cargo::rustc-env={variable}={}",
            programs.join(object).display()
        );
    }
    Ok(())
}
