//! How much work the programs are to the verifier.

use lab::sandbox::Sandbox;
use vpn_edge::datapath::Datapath;
use vpn_edge_common::program;

/// What the kernel looks at before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;

#[test]
fn the_verifier_takes_the_programs_with_room_to_spare() {
    let sandbox = Sandbox::enter().unwrap();
    let mut datapath = Datapath::open(&sandbox.bpffs()).unwrap();
    let xdp = datapath.xdp();
    assert_eq!(xdp, program::INGRESS_FRAGS, "this kernel has fragments");
    for name in [xdp, program::INGRESS_TC, program::EGRESS] {
        let program = datapath.ebpf().program(name).unwrap();
        let info = program.info().unwrap();
        let verified = info.verified_instruction_count().unwrap();
        println!("{name}: {verified} instructions verified");
        // Linux 6.1 prunes less, and looks at a third of what it may.
        assert!(verified <= LIMIT / 2, "{name}: {verified}");
    }
}
