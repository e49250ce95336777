//! The invariants, and the messages that the suites build: both files are
//! part of the package `tests` too.

mod invariants;
#[path = "../../../tests/src/message.rs"]
pub mod message;

pub use invariants::check;
