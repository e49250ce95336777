//! Namespaces for one thread, gone with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// A mount namespace with a bpffs of its own, and a network namespace.
///
/// Both are the calling thread's. Pins and interfaces end with the thread.
pub struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    /// Moves the calling thread into fresh namespaces.
    ///
    /// # Errors
    ///
    /// When the thread may not: it takes root.
    pub fn enter() -> Result<Self> {
        let none: Option<&str> = None;
        let folder = tempfile::tempdir()?;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("cannot make namespaces: run as root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none)?;
        mount(
            Some("bpf"),
            folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .context("cannot mount a bpffs")?;
        Ok(Self { folder })
    }

    /// A folder on the sandbox's bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        Path::new(self.folder.path()).join("vpn-edge")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The folder is removed outside this namespace too, which a mount
        // would keep it from.
        let _ = nix::mount::umount(self.folder.path());
    }
}
