//! One machine: its SQLite files, its network namespaces, its own maps.

pub mod audit;
pub mod netns;
mod sessions;
pub mod sqlite;
pub mod veth;

pub use audit::SqliteLog;
pub use netns::NetnsGateways;
pub use sessions::LocalSessions;
pub use sqlite::SqliteRegistry;
