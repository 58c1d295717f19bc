//! What is there where the probe is: lists, each entry in one line, sorted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::wire::Outcome;

/// No list is longer; one that would be ends with a word about it.
const ENTRIES_MAX: usize = 500;
/// So many directories are looked at.
const DIRS_MAX: usize = 4000;

/// How the socket stands in its list that the probe makes for it: a list without it has seen nothing.
pub const OWN_SOCKET: &str = "its own";

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Descriptors that the first instruction finds open.
    Descriptors,
    /// Names of variables.
    Environment,
    /// Mount points and whether they can be written.
    Mounts,
    /// Nodes in /dev.
    Devices,
    /// Directories in which a file can be made.
    Writable,
    /// Sockets in the file system.
    Sockets,
    /// Groups.
    Groups,
    /// System calls that get past the filter.
    Calls,
    /// Sets of capabilities.
    Capabilities,
}

/// Makes the list.
pub(super) fn list(kind: Kind) -> Vec<String> {
    let mut all = match kind {
        Kind::Descriptors => descriptors(),
        Kind::Environment => std::env::vars_os().map(|(n, _)| n.to_string_lossy().into()).collect(),
        Kind::Mounts => mounts(),
        Kind::Devices => walk("/dev").into_iter().filter_map(device).collect(),
        Kind::Writable => walk("/").into_iter().filter_map(writable).collect(),
        Kind::Sockets => sockets(),
        Kind::Groups => groups(),
        Kind::Calls => super::calls::list(),
        Kind::Capabilities => capabilities(),
    };
    all.sort();
    all.dedup();
    if all.len() > ENTRIES_MAX {
        all.truncate(ENTRIES_MAX);
        all.push("… and more".to_owned());
    }
    all
}

/// What each is; the one that reads the list is among them.
fn descriptors() -> Vec<String> {
    let kind = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.to_owned();
        let target = fs::read_link(&path).ok()?;
        let target = target.to_str()?;
        let what = match target {
            t if t.starts_with("/proc/") => return None,
            t if t.starts_with("socket:") => "socket",
            t if t.starts_with("pipe:") => "pipe",
            t if t.starts_with("/dev/") => t,
            t if t.starts_with('/') => "file",
            other => other,
        };
        Some(format!("{number} {what}"))
    };
    entries("/proc/self/fd").into_iter().filter_map(kind).collect()
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let (point, options) = (fields.nth(4)?, fields.next()?);
        let writable = options.split(',').any(|option| option == "rw");
        Some(format!("{point} {}", if writable { "rw" } else { "ro" }))
    };
    text.lines().filter_map(mount).collect()
}

/// Each with how often it is there: in a user namespace all groups of the host are one.
fn groups() -> Vec<String> {
    let mut counts = BTreeMap::new();
    for group in nix::unistd::getgroups().unwrap_or_default() {
        *counts.entry(group.as_raw()).or_insert(0) += 1;
    }
    counts.into_iter().map(|(group, count)| format!("{group} x{count}")).collect()
}

/// Every set and what is in it, as the kernel writes it.
fn capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let sets = status.lines().filter(|line| line.starts_with("Cap"));
    sets.map(|line| line.replace(":\t", " ")).collect()
}

fn entries(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Directories from here on, and what lies in them; not where there are only processes or programs.
fn walk(from: &str) -> Vec<PathBuf> {
    const SKIPPED: [&str; 6] = ["/proc", "/sys", "/usr", "/etc/ssl", "/etc/alternatives", "/lib"];
    let mut found = vec![PathBuf::from(from)];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let real = fs::symlink_metadata(&dir).is_ok_and(|m| m.is_dir());
        if real
            && !SKIPPED.iter().any(|skipped| dir == Path::new(skipped))
            && found.len() < DIRS_MAX
        {
            found.extend(entries(&dir));
        }
    }
    found
}

fn device(path: PathBuf) -> Option<String> {
    let kind = fs::symlink_metadata(&path).ok()?.file_type();
    (kind.is_char_device() || kind.is_block_device()).then(|| path.display().to_string())
}

fn sockets() -> Vec<String> {
    let own = format!("/tmp/.flock-probe-{}", std::process::id());
    let _bound = UnixListener::bind(&own);
    let socket = |path: PathBuf| {
        let kind = fs::symlink_metadata(&path).ok()?.file_type();
        let path = path.display().to_string();
        kind.is_socket().then(|| if path == own { OWN_SOCKET.to_owned() } else { path })
    };
    let found = walk("/").into_iter().filter_map(socket).collect();
    let _ = fs::remove_file(&own);
    found
}

fn writable(path: PathBuf) -> Option<String> {
    let dir = fs::symlink_metadata(&path).ok()?.is_dir();
    let made = dir && files::create(path.to_str()?).outcome == Outcome::Done;
    made.then(|| path.display().to_string())
}
