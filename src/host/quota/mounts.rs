//! What is mounted where, as the kernel tells this process.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::QuotaError;

/// Those whose quotas the kernel answers for by quotactl(2).
const KINDS: [&str; 7] = ["ext2", "ext3", "ext4", "xfs", "tmpfs", "f2fs", "jfs"];

/// Everything that is mounted.
pub struct Mounts(Vec<Mount>);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where.
    pub point: PathBuf,
    /// Names the file system: two mounts of it have the same.
    pub device: String,
    /// `ext4`, `tmpfs`, …
    pub kind: String,
    /// Whether it is the whole file system, not a part that is bound there.
    whole: bool,
}

impl Mounts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn read() -> Result<Self, QuotaError> {
        let text = std::fs::read("/proc/self/mountinfo").map_err(QuotaError::Mounts)?;
        Ok(Self::parse(&text))
    }

    /// One line each; see proc_pid_mountinfo(5). What is mounted later lies above.
    fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The mount that a path without links lies on; where the same file system is mounted as a whole,
    /// that mount, because people know it by that.
    pub(super) fn of(&self, path: &Path) -> Option<&Mount> {
        let over = |mount: &&Mount| path.starts_with(&mount.point);
        let length = |mount: &Mount| mount.point.components().count();
        // The last of those that are as deep: it hides the others.
        let mount = self.0.iter().filter(over).max_by_key(|mount| length(mount))?;
        let same = self.0.iter().filter(|other| other.whole && other.device == mount.device);
        Some(same.min_by_key(|mount| length(mount)).unwrap_or(mount))
    }

    /// Where the kinds of file systems are mounted that can have quotas. The others are left alone:
    /// one of the network may answer never.
    pub(super) fn with_quotas(&self) -> impl Iterator<Item = &Path> {
        let can = |mount: &&Mount| KINDS.contains(&mount.kind.as_str());
        self.0.iter().filter(can).map(|mount| mount.point.as_path())
    }

    /// What is mounted below a path.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = &Path> {
        let points = self.0.iter().map(|mount| mount.point.as_path());
        points.filter(move |point| *point != path && point.starts_with(path))
    }
}

fn mount(line: &[u8]) -> Option<Mount> {
    let line = line.split(|byte| *byte == b' ').collect::<Vec<_>>();
    // Any number of fields stands before the dash.
    let dash = line.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        device: text(line.get(2)?),
        whole: *line.get(3)? == b"/",
        point: OsString::from_vec(plain(line.get(4)?)).into(),
        kind: text(line.get(dash + 1)?),
    })
}

/// A blank, a tab, a line's end and a backslash come as `\040` and the like.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| byte == b'\\');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:5 / /proc rw - proc proc rw
31 21 8:2 / /srv rw,relatime shared:2 - xfs /dev/sdb rw
32 31 8:3 / /srv/a\\040b rw master:1 propagate_from:2 - ext4 /dev/sdc rw
33 21 8:2 /sub /var/lib/flock rw - xfs /dev/sdb rw
34 31 0:40 / /srv rw - tmpfs none rw
broken
";

    #[test]
    fn a_path_lies_on_the_deepest_mount_and_the_latest() {
        let mounts = Mounts::parse(TEXT);
        let of = |path: &str| {
            let mount = mounts.of(Path::new(path)).unwrap();
            format!("{} {}", mount.point.display(), mount.kind)
        };
        assert_eq!(of("/home/x"), "/ ext4");
        assert_eq!(of("/srv/a b/c"), "/srv/a b ext4");
        assert_eq!(of("/srv/a"), "/srv tmpfs");
        assert_eq!(of("/srvx"), "/ ext4");
        // A part of what is mounted as a whole elsewhere.
        assert_eq!(of("/var/lib/flock/shared"), "/srv xfs");
    }

    #[test]
    fn what_is_mounted_below_counts_too() {
        let mounts = Mounts::parse(TEXT);
        let below = |path: &str| mounts.below(Path::new(path)).count();
        assert_eq!(below("/srv"), 1);
        assert_eq!(below("/var/lib"), 1);
        assert_eq!(below("/var/lib/flock"), 0);
    }

    #[test]
    fn only_what_can_have_quotas_is_asked() {
        let mounts = Mounts::parse(TEXT);
        assert!(mounts.with_quotas().all(|point| point != Path::new("/proc")));
        assert_eq!(mounts.with_quotas().count(), 5);
    }

    #[test]
    fn escapes_become_what_they_stand_for() {
        assert_eq!(plain(b"a\\040b\\134\\011"), b"a b\\\t");
        assert_eq!(plain(b"\\9x\\"), b"\\9x\\");
    }
}
