//! Debian's kernels: found, downloaded and unpacked, but never installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A kernel and its modules, unpacked.
pub struct Kernel {
    /// What `uname -r` says, as `6.1.0-56-cloud-amd64`.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series (`6.1`) that the package lists know, from
    /// the cache if it is there.
    ///
    /// # Errors
    ///
    /// When the lists have none of the series, or it cannot be fetched.
    pub fn newest(series: &str) -> Result<Self> {
        let cache = cache()?;
        let package = listed(series)?;
        if let Some(kernel) = package
            .as_ref()
            .and_then(|package| Self::at(&cache, package))
        {
            return Ok(kernel);
        }
        // Point releases vanish from the archive, so an old list names files
        // that are gone.
        if let Some(package) = &package
            && fetch(&cache, package).is_ok()
        {
            return Self::at(&cache, package).context("a kernel package without a kernel");
        }
        output(Command::new("apt-get").args(["--yes", "update"]))?;
        let package = listed(series)?
            .with_context(|| format!("Debian's package lists have no cloud kernel {series}"))?;
        fetch(&cache, &package)?;
        Self::at(&cache, &package).context("a kernel package without a kernel")
    }

    fn at(cache: &Path, package: &str) -> Option<Self> {
        let release = package
            .strip_prefix("linux-image-")?
            .strip_suffix("-unsigned")?;
        let kernel = Self {
            release: release.to_owned(),
            folder: cache.join(package),
        };
        kernel.image().exists().then_some(kernel)
    }

    pub fn image(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The folder `lib/modules/<release>`.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("vpn-edge/kernels");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// The newest package of the series by the numbers in its name.
fn listed(series: &str) -> Result<Option<String>> {
    let prefix = format!("linux-image-{series}.");
    let names = output(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
    Ok(names
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64-unsigned"))
        .max_by_key(|name| numbers(name))
        .map(str::to_owned))
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn fetch(cache: &Path, package: &str) -> Result<()> {
    // Whole or not at all: a run that is cut short leaves no half a kernel.
    let scratch = tempfile::tempdir_in(cache)?;
    output(
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(&scratch),
    )?;
    let archive = fs::read_dir(&scratch)?
        .next()
        .with_context(|| format!("apt-get downloaded nothing for {package}"))??
        .path();
    let folder = scratch.path().join(package);
    output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(&folder),
    )?;
    let release = Kernel::at(scratch.path(), package)
        .with_context(|| format!("{package} has no kernel in it"))?
        .release;
    // The package leaves this to its installation.
    output(
        Command::new("depmod")
            .arg("--basedir")
            .arg(&folder)
            .arg(release),
    )?;
    let target = cache.join(package);
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::rename(folder, target)?;
    Ok(())
}

/// What the command printed; its failure is an error with what it complained.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => bail!("cannot run {name}: {error}"),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        complaint.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
