//! The file system under the state directory: access lists are tried, not looked up.

use std::path::Path;

use super::{Finding, is_root};
use crate::config::Config;
use crate::host::acl::{Acl, R, Who, X};
use crate::host::files::Dir;
use crate::host::quota;
use crate::names::{STATE_DIR, shared_dir};

const SUBJECT: &str = "access lists";

/// Sets and reads back a list on a directory of its own, which is gone afterwards.
pub(super) fn state() -> Finding {
    if is_root() { tried(Path::new(STATE_DIR)) } else { Finding::needs_root(SUBJECT) }
}

/// Whether the file system of the shared tree holds users to quotas, and whether one has to.
pub(super) fn quotas(config: &Config) -> Finding {
    let limited = |limits: &crate::config::Limits| limits.disk.is_some() || limits.files.is_some();
    let needed = config.agents.values().any(|agent| limited(&agent.limits));
    of_quotas(&shared_dir(), needed, config.host.allow_unenforced_limits)
}

fn of_quotas(tree: &Path, needed: bool, allowed: bool) -> Finding {
    const SUBJECT: &str = "disk quotas";
    const LOOK: &str = "systemd-tmpfiles --create, or install ai-flock again";
    let found = match quota::of(tree) {
        Ok(Some(found)) => found,
        Ok(None) => return Finding::warn(SUBJECT, format!("{} is missing", tree.display()), LOOK),
        Err(error) => return Finding::warn(SUBJECT, error.to_string(), LOOK),
    };
    let (point, kind) = (found.point.display(), found.kind);
    let on = format!("{} is on {point} ({kind})", tree.display());
    match (found.missing, needed, allowed) {
        (None, ..) => Finding::ok(SUBJECT, format!("{on}, which holds users to quotas")),
        (Some((why, _)), false, _) => {
            Finding::ok(SUBJECT, format!("{on}, {why}; no agent has limits.disk or limits.files"))
        }
        (Some((why, remedy)), true, true) => Finding::warn(SUBJECT, format!("{on}, {why}"), remedy),
        (Some((why, remedy)), true, false) => Finding::fail(
            SUBJECT,
            format!("{on}, {why}: agents with limits.disk or limits.files do not start"),
            remedy,
        ),
    }
}

fn tried(state: &Path) -> Finding {
    let dir = match Dir::open(state) {
        Ok(dir) => dir,
        Err(error) => {
            let remedy = "systemd-tmpfiles --create, or install ai-flock again";
            return Finding::fail(SUBJECT, error.to_string(), remedy);
        }
    };
    let name = format!(".doctor-{}", uuid::Uuid::now_v7().simple());
    let name = Path::new(&name);
    let result = set_and_get(&dir, name);
    let removed = dir.remove(name);
    match result.and(removed.map_err(|error| error.to_string())) {
        Ok(()) => Finding::ok(SUBJECT, format!("{} keeps them", state.display())),
        Err(cause) => Finding::fail(
            SUBJECT,
            format!("{}: {cause}", state.display()),
            "keep it on ext4, xfs, btrfs or tmpfs, mounted without noacl",
        ),
    }
}

fn set_and_get(dir: &Dir, name: &Path) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    dir.make_dir(name).map_err(|e| text(&e))?;
    let handle = dir.handle(name).map_err(|e| text(&e))?.ok_or("it vanished")?;
    let list = Acl::of_mode(0o700).with(Who::User(65_536), R | X);
    list.write(&handle, 0).map_err(|e| text(&e))?;
    list.write_default(&handle).map_err(|e| text(&e))?;
    let found = Acl::read(&handle).map_err(|e| text(&e))?;
    if found == (list.clone(), list) {
        return Ok(());
    }
    Err(format!("a list came back as {} and {}", found.0, found.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::Verdict;
    use crate::host::testing;
    use nix::mount::{MsFlags, mount};

    #[test]
    fn a_quota_is_missed_only_by_agents_that_have_one() {
        // The kernel has no quotas for this file system.
        let verdict = |needed, allowed| of_quotas(Path::new("/proc"), needed, allowed).verdict;
        assert_eq!(verdict(false, false), Verdict::Ok);
        assert_eq!(verdict(true, false), Verdict::Fail);
        assert_eq!(verdict(true, true), Verdict::Warn);
        assert_eq!(of_quotas(Path::new("/missing"), false, false).verdict, Verdict::Warn);
    }

    #[test]
    fn lists_are_tried_on_the_file_system_itself() {
        let Some(temp) = testing::private_etc("doctor_storage") else { return };
        assert_eq!(tried(temp.path()).verdict, Verdict::Ok);
        assert!(
            !std::fs::read_dir(temp.path())
                .unwrap()
                .flatten()
                .any(|entry| { entry.file_name().to_string_lossy().starts_with(".doctor") })
        );
        // A file system that keeps none.
        let bare = temp.path().join("bare");
        std::fs::create_dir(&bare).unwrap();
        let no: Option<&str> = None;
        mount(Some("none"), &bare, Some("ramfs"), MsFlags::empty(), no).unwrap();
        let finding = tried(&bare);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert_eq!(std::fs::read_dir(&bare).unwrap().count(), 0);
        nix::mount::umount(&bare).unwrap();
        assert_eq!(tried(&temp.path().join("missing")).verdict, Verdict::Fail);
    }
}
