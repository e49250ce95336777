//! What a pod's containers share: emptyDirs, Secrets as files, and the node's
//! own folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{SecretVolumeSource, Volume};

use crate::node::Node;

/// What is in Secrets, by their names.
pub type Secrets = BTreeMap<String, BTreeMap<String, ByteString>>;

/// A pod's volumes, each a folder of the node.
pub struct Volumes {
    folder: PathBuf,
    secrets: Vec<(PathBuf, SecretVolumeSource)>,
    /// Of the node, by the volumes' names.
    folders: BTreeMap<String, PathBuf>,
    /// As they are mounted.
    mounted: Secrets,
    /// Numbers the states that Secrets were in.
    updates: u64,
}

impl Volumes {
    pub fn make(volumes: &[Volume], secrets: &Secrets, node: &Node) -> Result<Self> {
        let mut made = Self {
            folder: node.folder.join("volumes"),
            secrets: Vec::new(),
            folders: BTreeMap::new(),
            mounted: Secrets::new(),
            updates: 0,
        };
        for volume in volumes {
            if let Some(host) = &volume.host_path {
                made.folders
                    .insert(volume.name.clone(), host.path.clone().into());
                continue;
            }
            let folder = made.path(&volume.name);
            fs::create_dir_all(&folder)?;
            if let Some(secret) = &volume.secret {
                made.secrets.push((folder, secret.clone()));
            } else if volume.projected.is_some() {
                // An account's token: a Secret by the volume's name, here.
                let secret = SecretVolumeSource {
                    secret_name: Some(volume.name.clone()),
                    ..SecretVolumeSource::default()
                };
                made.secrets.push((folder, secret));
            } else if volume.empty_dir.is_some() {
                node.sh(&format!(
                    "mountpoint -q {0} || mount -t tmpfs -o mode=777 volume {0}",
                    folder.display()
                ))?;
            } else {
                bail!("{}: a kind of volume that is not known here", volume.name);
            }
        }
        made.update(secrets)?;
        Ok(made)
    }

    pub fn path(&self, volume: &str) -> PathBuf {
        let own = self.folders.get(volume);
        own.cloned().unwrap_or_else(|| self.folder.join(volume))
    }

    /// Writes the Secrets' files as a kubelet does: each is a link by way of
    /// one link to a folder, which changes for all of them at once.
    pub fn update(&mut self, secrets: &Secrets) -> Result<()> {
        if self.updates > 0 && self.mounted == *secrets {
            return Ok(());
        }
        self.updates += 1;
        for (folder, source) in &self.secrets {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let Some(data) = secrets.get(name) else {
                bail!("no Secret {name}");
            };
            let mode = source.default_mode.unwrap_or(0o644).cast_unsigned();
            let state = format!("..{}", self.updates);
            write(folder, &state, data, mode).with_context(|| format!("the Secret {name}"))?;
        }
        self.mounted.clone_from(secrets);
        Ok(())
    }
}

fn write(folder: &Path, state: &str, data: &BTreeMap<String, ByteString>, mode: u32) -> Result<()> {
    let current = folder.join("..data");
    let before = fs::read_link(&current).ok();
    fs::create_dir(folder.join(state))?;
    for (name, content) in data {
        let file = folder.join(state).join(name);
        fs::write(&file, &content.0)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), &link)?;
        }
    }
    let unfinished = folder.join("..data_tmp");
    symlink(state, &unfinished)?;
    fs::rename(unfinished, current)?;
    if let Some(before) = before {
        fs::remove_dir_all(folder.join(before))?;
    }
    Ok(())
}
