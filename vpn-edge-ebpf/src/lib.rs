//! The packet path of vpn-edge, without its kernel parts.
//!
//! Parsing, judging and rewriting are plain functions over the bytes of a
//! frame. They compile for the kernel, where `main.rs` wires them to hooks and
//! maps, and for the host, where they are tested.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod checksum;
pub mod flow;
pub mod forwarding;
pub mod frame;
pub mod guard;
pub mod icmp;
pub mod limit;
pub mod log;
pub mod mac1;
pub mod map_access;
pub mod parse;
pub mod rewrite;
pub mod session;
pub mod steer;
#[cfg(not(target_arch = "bpf"))]
pub mod tables;
