#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    vpn_edge_fuzz::check(input);
});
