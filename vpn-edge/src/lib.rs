pub mod domain;
pub mod registry;
pub mod wireguard;
