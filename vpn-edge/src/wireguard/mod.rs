//! WireGuard's keys and the client's configuration file.

pub mod config;
pub mod keys;

pub use config::ClientConfig;
pub use keys::{ClientKey, KeyError, Keys, PrivateKey, PublicKey};
