//! Sessions as read from this node's maps.

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use vpn_edge_common::Allocation;

use crate::datapath::{MapError, Reader};
use crate::domain::Tenant;
use crate::sessions::{
    EdgeSession, EdgeSessions, Session, SessionError, SessionQuery, Sessions, query,
};

/// The sessions of a machine that is the only edge.
///
/// A query is a few system calls that do not block.
pub struct LocalSessions(Reader);

impl LocalSessions {
    /// Reads the maps pinned under `root`.
    ///
    /// # Errors
    ///
    /// [`MapError::NotPinned`] if there are none.
    pub fn open(root: &Path) -> Result<Self, MapError> {
        Ok(Self(Reader::open(root)?))
    }

    fn allocation(&self, port: u16, query: SessionQuery) -> Option<Allocation> {
        let allocation = self.0.allocation(port)?;
        let theirs = (allocation.tenant, allocation.generation);
        (theirs == (*query.tenant.as_bytes(), query.generation)).then_some(allocation)
    }
}

impl EdgeSessions for LocalSessions {
    fn seen(&self, port: u16, query: SessionQuery) -> Result<Option<EdgeSession>, SessionError> {
        let Some(before) = self.allocation(port, query) else {
            return Ok(None);
        };
        let times = self.0.session_times(before.slot)?;
        let counters = self.0.counters(before.slot)?;
        // If the slot changed its tenant meanwhile, the values are another tenant's.
        let after = self.allocation(port, query);
        let after = after.filter(|after| after.slot == before.slot);
        Ok(after.map(|after| EdgeSession::new(after.mode, times, &counters)))
    }
}

#[async_trait]
impl Sessions for LocalSessions {
    async fn session(&self, tenant: &Tenant) -> Result<Session, SessionError> {
        let Some((port, query)) = query(tenant) else {
            return Ok(Session::none());
        };
        let seen = self.seen(port, query)?;
        Ok(Session::of(seen.as_slice(), Timestamp::now(), true))
    }
}
