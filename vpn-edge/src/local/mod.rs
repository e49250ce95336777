//! The implementation for one machine: SQLite files, network namespaces, local maps.

pub mod audit;
pub mod netns;
mod sessions;
pub mod sqlite;
pub mod veth;

pub use audit::SqliteLog;
pub use netns::NetnsGateways;
pub use sessions::LocalSessions;
pub use sqlite::SqliteRegistry;
