//! How much work the programs are to the verifier, and what it leaves of them.

use lab::sandbox::Sandbox;
use vpn_edge::datapath::{Datapath, LogLevel};
use vpn_edge_common::program;

/// What the kernel looks at before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;

/// Instructions of a function that writes a log message, and more.
const MESSAGE: u32 = 400;

/// Loads the programs, and says of each how many instructions the kernel keeps.
fn load(level: LogLevel) -> Vec<u32> {
    let sandbox = Sandbox::enter().unwrap();
    let mut datapath = Datapath::open_logging(&sandbox.bpffs(), level).unwrap();
    let xdp = datapath.xdp();
    assert_eq!(xdp, program::INGRESS_FRAGS, "this kernel has fragments");
    let programs = [xdp, program::INGRESS_TC, program::EGRESS];
    let kept = programs.map(|name| {
        let program = datapath.ebpf().program(name).unwrap();
        let info = program.info().unwrap();
        let verified = info.verified_instruction_count().unwrap();
        let kept = info.size_translated().unwrap() / 8;
        println!("{name} at {level:?}: {verified} instructions verified, {kept} kept");
        // Linux 6.1 prunes less, and looks at a third of what it may.
        assert!(verified <= LIMIT / 2, "{name} at {level:?}: {verified}");
        kept
    });
    kept.into()
}

#[test]
fn the_verifier_takes_the_programs_with_room_to_spare_and_leaves_no_log_that_is_off() {
    let (off, warn, all) = (
        load(LogLevel::Off),
        load(LogLevel::Warn),
        load(LogLevel::Trace),
    );
    // As many messages as each program has.
    let messages = [(1, 7), (1, 5), (0, 2)];
    for (at, (of_warn, of_all)) in messages.into_iter().enumerate() {
        assert!(warn[at] >= off[at] + of_warn * MESSAGE, "{at}");
        assert!(all[at] >= off[at] + of_all * MESSAGE, "{at}");
    }
}
