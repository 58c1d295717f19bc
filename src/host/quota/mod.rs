//! How much an agent may keep on disk: the quota of its Unix user, set and read back.
//!
//! The kernel counts a file for its owner, wherever it lies and whatever is done to it: an agent can
//! give no file away. A project, which is the other thing that file systems count by, is an attribute
//! of a file, which its owner may change unless it is in a user namespace; what was there before has
//! none; and it would end at the agent's directory, where `common` and other paths that it may write
//! to do not.
//!
//! Agents of level 0 share a user, so that no quota can tell them apart: the configuration has none.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::CapabilitySet;

use super::sys::{self, Quota};
use crate::config::Access;
use crate::names::{AgentId, Level, shared_dir};
use crate::plan::{Plan, Uids};
use crate::text;

/// What is mounted where.
mod mounts;

use mounts::Mount;
pub use mounts::Mounts;

/// Why an agent is not held to its limits on disk.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// The mounts could not be read.
    #[error("read what is mounted: /proc/self/mountinfo: {0}: mount /proc")]
    Mounts(#[source] io::Error),
    /// The kernel refused.
    #[error("{step} the quota of {user} on {place}: {source}: {remedy}", place = place.display())]
    System {
        /// read or set.
        step: &'static str,
        /// The agent's user.
        user: String,
        /// Where the file system is mounted.
        place: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing there holds a user to a limit.
    #[error("{limits}: {place}, {why}: {remedy}")]
    Unenforced {
        /// In the words of the configuration.
        limits: String,
        /// What the agent may write, and the file system that it is on.
        place: String,
        /// What that does not do.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It is not as planned.
    #[error("{user} may own {is} on {place}, should be {should}: run flockctl apply", place = place.display())]
    Differs {
        /// The agent's user.
        user: String,
        /// Where the file system is mounted.
        place: PathBuf,
        /// What is.
        is: String,
        /// What should be.
        should: String,
    },
}

/// A file system that an agent may write to, by something that lies there.
struct Place<'a> {
    handle: File,
    device: u64,
    path: PathBuf,
    mount: &'a Mount,
    standing: Standing,
}

/// What a file system does about users and their quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Enforced,
    /// It counts, and refuses nothing.
    Counted,
    Without,
    /// The kernel was not let answer.
    Barred,
}

/// What [`ensure`] did, a line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What was changed.
    pub changed: Vec<String>,
    /// Limits that nothing holds.
    pub unenforced: Vec<String>,
}

/// Sets the quotas of these agents as planned, where file systems have quotas, and reads them back.
/// Only a process that may do that does: flockd may not.
///
/// # Errors
/// When the kernel refuses, or reads back something else.
pub fn ensure(plans: &[Plan]) -> Result<Done, QuotaError> {
    let mut done = Done::default();
    if !may_set() {
        return Ok(done);
    }
    let mounts = Mounts::read()?;
    for plan in plans {
        let places = places(&mounts, plan)?;
        let (user, should) = (&plan.user.name, wanted(plan));
        for place in places.iter().filter(|place| place.holds()) {
            if place.read(plan)? != should {
                set(place, plan.user.uid, user, should)?;
                let on = place.mount.point.display();
                done.changed.push(format!("{user} may own {} on {on}", words(should)));
            }
            place.compare(plan)?;
        }
        done.unenforced.extend(unheld(plan, &places).map(|error| error.to_string()));
    }
    Ok(done)
}

/// Whether the quotas of an agent are as planned, where file systems have quotas at all; see
/// [`enforced`].
///
/// # Errors
/// Naming what is and what should be; when it cannot be read.
pub fn check(plan: &Plan) -> Result<(), QuotaError> {
    let mounts = Mounts::read()?;
    let places = places(&mounts, plan)?;
    places.iter().filter(|place| place.holds()).try_for_each(|place| place.compare(plan))
}

/// Whether each file system that the agent may write to holds it to the limits that it has. Anybody
/// may ask.
///
/// # Errors
/// Naming the first that does not.
pub fn enforced(plan: &Plan) -> Result<(), QuotaError> {
    if plan.quota.limits().is_empty() {
        return Ok(());
    }
    let mounts = Mounts::read()?;
    unheld(plan, &places(&mounts, plan)?).map_or(Ok(()), Err)
}

/// The first place where an agent has a limit that nothing holds.
fn unheld(plan: &Plan, places: &[Place<'_>]) -> Option<QuotaError> {
    let limits: Vec<_> = plan.quota.limits().iter().map(|key| format!("limits.{key}")).collect();
    let place = places.iter().find(|place| !place.holds()).filter(|_| !limits.is_empty())?;
    let (why, remedy) = place.reason();
    let Mount { point, kind, .. } = place.mount;
    let (path, point) = (place.path.display(), point.display());
    let place = format!("{path} is on {point} ({kind})");
    Some(QuotaError::Unenforced { limits: limits.join(" and "), place, why, remedy })
}

/// How the file system below something stands.
pub struct Found {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type.
    pub kind: String,
    /// Why it holds nobody to a quota, and what to do, unless it does.
    pub missing: Option<(&'static str, &'static str)>,
}

/// How the file system of this path stands; none: there is no such path.
///
/// # Errors
/// When the mounts cannot be read.
pub fn of(path: &Path) -> Result<Option<Found>, QuotaError> {
    let mounts = Mounts::read()?;
    Ok(place(&mounts, path)?.map(|place| Found {
        point: place.mount.point.clone(),
        kind: place.mount.kind.clone(),
        missing: (!place.holds()).then(|| place.reason()),
    }))
}

/// Those of these users that have a quota on the file system of the shared tree.
///
/// # Errors
/// When the kernel refuses.
pub fn held<'a>(
    users: impl Iterator<Item = (&'a AgentId, u32)>,
) -> Result<Vec<(AgentId, u32)>, QuotaError> {
    let mut found = Vec::new();
    if !may_set() {
        return Ok(found);
    }
    let mounts = Mounts::read()?;
    let Some(place) = place(&mounts, &shared_dir())?.filter(Place::holds) else {
        return Ok(found);
    };
    for (id, uid) in users {
        if get(&place, uid, &id.user_name())? != Quota::default() {
            found.push((id.clone(), uid));
        }
    }
    Ok(found)
}

/// Takes away the quota of a user on the file system of the shared tree. Nothing may run as it.
///
/// # Errors
/// When the kernel refuses.
pub fn clear(id: &AgentId, uid: u32) -> Result<(), QuotaError> {
    match place(&Mounts::read()?, &shared_dir())? {
        Some(place) => set(&place, uid, &id.user_name(), Quota::default()),
        None => Ok(()),
    }
}

/// Takes away the quotas of all these users, on every file system of this host that has quotas.
///
/// # Errors
/// When the kernel refuses.
pub fn release(users: &Uids) -> Result<(), QuotaError> {
    let mounts = Mounts::read()?;
    for point in mounts.with_quotas() {
        let Some(place) = place(&mounts, point)?.filter(Place::holds) else { continue };
        for (id, uid) in users {
            if get(&place, *uid, &id.user_name())? != Quota::default() {
                set(&place, *uid, &id.user_name(), Quota::default())?;
            }
        }
    }
    Ok(())
}

/// Whether this process may set quotas. What has the right to is root without a sandbox.
fn may_set() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

impl Place<'_> {
    fn holds(&self) -> bool {
        self.standing == Standing::Enforced
    }

    /// Why it holds nobody to a limit, and what to do.
    fn reason(&self) -> (&'static str, &'static str) {
        let why = match self.standing {
            Standing::Barred => "and quotactl_fd(2) may not be asked about it",
            Standing::Counted => "which counts what users own, and holds none of them to a limit",
            _ => "which holds no user to a limit",
        };
        let remedy = match (self.mount.kind.as_str(), self.standing) {
            (_, Standing::Barred) => "in a container, let the system call through",
            ("ext2" | "ext3" | "ext4", Standing::Counted) => {
                "mount it with usrquota, see fstab(5); until then: quotaon -u"
            }
            // Debian's initrd lacks the module without which such a one is not mounted at boot.
            ("ext2" | "ext3" | "ext4", _) if self.mount.point == Path::new("/") => {
                "give it a file system of its own: mkfs.ext4 -O quota, mounted with usrquota"
            }
            ("ext2" | "ext3" | "ext4", _) => {
                "unmount it, tune2fs -O quota its device, and mount it with usrquota, see fstab(5)"
            }
            ("xfs", _) => "mount it with uquota, see fstab(5); / needs rootflags=uquota",
            ("tmpfs", _) => "mount it with usrquota (Linux 6.6 or later)",
            _ => "keep it on ext4 or xfs, mounted with usrquota",
        };
        (why, remedy)
    }

    fn read(&self, plan: &Plan) -> Result<Quota, QuotaError> {
        get(self, plan.user.uid, &plan.user.name)
    }

    fn compare(&self, plan: &Plan) -> Result<(), QuotaError> {
        let (is, should) = (self.read(plan)?, wanted(plan));
        if is == should {
            return Ok(());
        }
        Err(QuotaError::Differs {
            user: plan.user.name.clone(),
            place: self.mount.point.clone(),
            is: words(is),
            should: words(should),
        })
    }
}

/// The kernel counts space in KiB.
fn wanted(plan: &Plan) -> Quota {
    Quota { space: plan.quota.bytes.unwrap_or(0) / 1024, files: plan.quota.files.unwrap_or(0) }
}

fn words(quota: Quota) -> String {
    match (quota.space, quota.files) {
        (0, 0) => "as much as fits".to_owned(),
        (space, 0) => text::bytes(space.saturating_mul(1024)),
        (0, files) => format!("{files} files"),
        (space, files) => format!("{} and {files} files", text::bytes(space.saturating_mul(1024))),
    }
}

fn get(place: &Place<'_>, uid: u32, user: &str) -> Result<Quota, QuotaError> {
    match sys::quota(&place.handle, uid) {
        // XFS has no entry for a user that never had a file there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Quota::default()),
        other => other.map_err(|source| refused("read", place, user, source)),
    }
}

fn set(place: &Place<'_>, uid: u32, user: &str, quota: Quota) -> Result<(), QuotaError> {
    sys::set_quota(&place.handle, uid, quota).map_err(|source| refused("set", place, user, source))
}

fn refused(step: &'static str, place: &Place<'_>, user: &str, source: io::Error) -> QuotaError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM) => "this needs root; in a container, let quotactl_fd(2) through",
        _ => "see dmesg for trouble with this file system",
    };
    let place = place.mount.point.clone();
    QuotaError::System { step, user: user.to_owned(), place, source, remedy }
}

/// Every file system that the agent may write to, once each: those of what is bound into its root
/// for writing, and those that are mounted below. What is not there yet is left out.
fn places<'a>(mounts: &'a Mounts, plan: &Plan) -> Result<Vec<Place<'a>>, QuotaError> {
    let mut found: Vec<Place<'a>> = Vec::new();
    if plan.level == Level::Workspace {
        return Ok(found);
    }
    let binds = plan.root.binds.iter().filter(|bind| bind.access == Access::ReadWrite);
    for source in binds.map(|bind| &bind.source) {
        let below = mounts.below(source).map(Path::to_path_buf);
        for path in [source.clone()].into_iter().chain(below) {
            if let Some(place) = place(mounts, &path)?
                && found.iter().all(|other| other.device != place.device)
            {
                found.push(place);
            }
        }
    }
    Ok(found)
}

fn place<'a>(mounts: &'a Mounts, path: &Path) -> Result<Option<Place<'a>>, QuotaError> {
    let Ok(handle) = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    let handle = File::from(handle);
    let device = handle.metadata().map_err(QuotaError::Mounts)?.dev();
    let real = std::fs::canonicalize(path).map_err(QuotaError::Mounts)?;
    let nowhere = || io::Error::other(format!("{} is on no mount", real.display()));
    let mount = mounts.of(&real).ok_or_else(|| QuotaError::Mounts(nowhere()))?;
    let standing = match sys::quota_state(&handle) {
        Ok(found) if found.enforced => Standing::Enforced,
        Ok(found) if found.counted => Standing::Counted,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Standing::Barred,
        Ok(_) | Err(_) => Standing::Without,
    };
    Ok(Some(Place { handle, device, path: path.to_path_buf(), mount, standing }))
}

#[cfg(test)]
mod tests;
