//! Builds the kernel's programs with a nested cargo.
//!
//! vpn-edge's build script includes this file, so it stands alone: std only,
//! and no path into the rest of xtask.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

/// The compiler of Debian's `rustc-web`, for machines whose own toolchain came
/// without the library's source.
const DEBIAN: &str = "/usr";

pub struct Toolchain {
    cargo: OsString,
    rustc: OsString,
    debian: bool,
}

/// For a build script in `<workspace>/<package>`: builds the programs, makes
/// cargo run the script again when they change, and says where they lie.
pub fn from_build_script() -> Result<PathBuf, String> {
    let variable = |name| env::var_os(name).ok_or(format!("cargo does not set {name}"));
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = package.parent().ok_or("the package lies in no workspace")?;
    for source in [
        "vpn-edge-ebpf/Cargo.toml",
        "vpn-edge-ebpf/src",
        "vpn-edge-common",
        "xtask/src/build_ebpf.rs",
        "Cargo.lock",
    ] {
        // Relative to the package, and so to the clone that is built: clones that
        // share a target directory would otherwise take each other's programs.
        println!("cargo::rerun-if-changed=../{source}");
    }
    // OUT_DIR is <target>/<profile>/build/<package>/out. One folder serves all
    // profiles: the programs have but one, and core takes a while.
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is too short")?;
    build(root, &target.join("ebpf"))
}

/// Builds every program of vpn-edge-ebpf, and says in which folder they lie.
///
/// `target_dir` must not be the outer cargo's own, which is locked while its
/// build scripts run.
pub fn build(workspace_root: &Path, target_dir: &Path) -> Result<PathBuf, String> {
    let mut cargo = cargo("build", workspace_root, target_dir)?;
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run {}: {error}", cargo.get_program().display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "building the eBPF programs failed:\n{}",
            stderr.trim_end()
        ));
    }
    Ok(target_dir.join(TARGET).join("release"))
}

/// The nested cargo, about to build the programs or to check them (`verb`).
pub fn cargo(verb: &str, workspace_root: &Path, target_dir: &Path) -> Result<Command, String> {
    let toolchain = toolchain()?;
    let linker = linker()?;
    let mut cargo = Command::new(&toolchain.cargo);
    // What an outer cargo tells its build scripts or wrappers is not meant for
    // this build, and would rebuild it whenever the caller changes.
    for (name, _) in env::vars_os() {
        if outer_cargo(&name) {
            cargo.env_remove(name);
        }
    }
    if toolchain.debian {
        cargo
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("LD_LIBRARY_PATH");
    }
    cargo
        .args([
            verb,
            "--bins",
            "--release",
            "--target",
            TARGET,
            "-Zbuild-std=core",
        ])
        .arg("--manifest-path")
        .arg(workspace_root.join("vpn-edge-ebpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        // In parts, the compiler makes programs that the kernel refuses.
        .env("CARGO_INCREMENTAL", "0")
        // build-std is unstable: allowed here, and for this process alone.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags());
    Ok(cargo)
}

fn rustflags() -> String {
    [
        // aya-ebpf chooses the kernel's register names by it.
        &format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        // BTF is made from debug information.
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // 32-bit arithmetic and jumps, in every kernel since 5.1.
        "-Ctarget-cpu=v3",
        // The default scheduler moves loads away from their bounds checks and
        // runs out of the 512-byte stack.
        "-Clink-arg=--llvm-args=-pre-RA-sched=source",
    ]
    .join("\x1f")
}

fn outer_cargo(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    const PREFIXES: [&str; 6] = [
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "DEP_",
    ];
    const NAMES: [&str; 15] = [
        "CARGO_BUILD_TARGET",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "TARGET",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The toolchain in use if it has the library's source, else Debian's.
pub fn toolchain() -> Result<Toolchain, String> {
    let own = Toolchain {
        cargo: env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        rustc: env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
        debian: false,
    };
    let sysroot = Command::new(&own.rustc)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("cannot run {}: {error}", own.rustc.display()))?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout);
    if has_source(Path::new(sysroot.trim())) {
        return Ok(own);
    }
    let debian = Path::new(DEBIAN);
    let [cargo, rustc] = ["bin/cargo", "bin/rustc"].map(|file| debian.join(file));
    if has_source(debian) && cargo.exists() && rustc.exists() {
        return Ok(Toolchain {
            cargo: cargo.into(),
            rustc: rustc.into(),
            debian: true,
        });
    }
    Err("the library's source is missing: run `cargo xtask setup`, or `rustup component add rust-src`".into())
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

/// bpf-linker, on PATH or where `cargo install` puts it.
pub fn linker() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or_else(|| "bpf-linker is missing: run `cargo xtask setup`".into())
}
