//! A container's root, and the command in it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Container, SecurityContext};

use super::volumes::Volumes;
use crate::node::{Node, program};

/// Makes a root like that of an image, in a mount namespace of its own.
/// Arguments: the root's place, `vpn-edge`, and whether it is privileged.
const ROOT: &str = r#"
mount -t tmpfs -o mode=755 root "$1"
cd "$1"
mkdir app dev etc proc root run sys tmp usr var
ln -s ../run var/run
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib32 lib64; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$name"
    elif [ -d "/$name" ]; then
        mkdir "$name"
        mount --bind "/$name" "$name"
        mount -o remount,bind,ro "$name"
    fi
done
for name in alternatives ld.so.cache ld.so.conf ld.so.conf.d passwd group; do
    [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc
done
touch app/vpn-edge
mount --bind "$2" app/vpn-edge
mount -t tmpfs -o mode=755 dev dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount -t sysfs -o ro sys sys
if ! $3; then
    for path in sys bus fs irq; do
        mount --bind "proc/$path" "proc/$path"
        mount -o remount,bind,ro "proc/$path"
    done
fi
"#;

/// A command that runs as in the container.
pub fn command(
    node: &Node,
    container: &Container,
    words: &[String],
    volumes: &Volumes,
) -> Result<Command> {
    let nothing = SecurityContext::default();
    let security = container.security_context.as_ref().unwrap_or(&nothing);
    // The image's own user is another.
    ensure!(
        security.run_as_user == Some(0),
        "{}: only root runs here",
        container.name
    );
    let privileged = security.privileged == Some(true);
    let mut script = ROOT.to_owned();
    for mount in container.volume_mounts.iter().flatten() {
        let from = quoted(&volumes.path(&mount.name).display().to_string());
        // Below the root: the paths begin with a slash.
        let to = quoted(&format!(".{}", mount.mount_path));
        script += &format!("mkdir -p {to}\nmount --bind {from} {to}\n");
        if mount.read_only == Some(true) {
            script += &format!("mount -o remount,bind,ro {to}\n");
        }
    }
    if security.read_only_root_filesystem == Some(true) {
        script += "mount -o remount,ro \"$1\"\n";
    }
    script += "exec chroot \"$1\" env -i PATH=/app:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root";
    for variable in container.env.iter().flatten() {
        let value = variable.value.as_deref().unwrap_or_default();
        script += &format!(" {}", quoted(&format!("{}={value}", variable.name)));
    }
    if !privileged {
        script += &format!(" setpriv {}", quoted_all(&confinement(security)?));
    }
    script += &format!(" {}\n", quoted_all(words));

    let place = node.folder.join("root");
    std::fs::create_dir_all(&place)?;
    let mut command = node.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
    command.args([Path::new("sh"), &place, &program("vpn-edge")?]);
    command.arg(privileged.to_string());
    Ok(command)
}

/// What `setpriv` is to take away.
fn confinement(security: &SecurityContext) -> Result<Vec<String>> {
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let drop = capabilities.drop.unwrap_or_default();
    // A runtime's own set is not known here.
    ensure!(drop == ["ALL"], "capabilities that are not all dropped");
    let mut kept = "-all".to_owned();
    for capability in capabilities.add.iter().flatten() {
        kept += &format!(",+{}", capability.to_lowercase());
    }
    let mut options = vec![
        format!("--bounding-set={kept}"),
        "--inh-caps=-all".to_owned(),
        "--ambient-caps=-all".to_owned(),
        "--clear-groups".to_owned(),
    ];
    if security.allow_privilege_escalation == Some(false) {
        options.push("--no-new-privs".to_owned());
    }
    options.push("--".to_owned());
    Ok(options)
}

fn quoted_all(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
