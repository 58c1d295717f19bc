//! The file system under the state directory: access lists are tried, not looked up.

use std::path::Path;

use super::{Finding, is_root};
use crate::host::acl::{Acl, R, Who, X};
use crate::host::files::Dir;
use crate::names::STATE_DIR;

const SUBJECT: &str = "access lists";

/// Sets and reads back a list on a directory of its own, which is gone afterwards.
pub(super) fn state() -> Finding {
    if is_root() { tried(Path::new(STATE_DIR)) } else { Finding::needs_root(SUBJECT) }
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
