//! Builds the eBPF programs that benchmarks measure against.

#[path = "../xtask/src/build_ebpf.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod build_ebpf;

fn main() -> Result<(), String> {
    let programs = build_ebpf::from_build_script()?;
    println!(
        "cargo::rustc-env=BENCH_EBPF={}",
        programs.join("baselines").display()
    );
    Ok(())
}
