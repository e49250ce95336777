//! Packets through the programs in the kernel.
//!
//! Each case is a packet in, a verdict, and, where the packet is steered, the
//! whole packet out. The expected packets are built afresh, with checksums by
//! etherparse, and never by the code under test. Reasons are told by the
//! counters, of which a dropped packet moves exactly one.

mod back;
mod costs;
mod egress;
mod errors;
mod events;
mod extensions;
mod hairpin;
mod handshakes;
mod log;
mod node;
mod nodes;
mod onward;
mod order;
mod own;
mod publishing;
mod rates;
mod sessions;
mod strange_errors;
mod table;
mod verifier;
