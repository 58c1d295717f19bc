//! What the tests of `host` share. They need root; without it they say that they did not run.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// With this variable set a test that cannot run fails instead: the lab sets it.
const NO_SKIP: &str = "FLOCK_TEST_NO_SKIP";

/// Whether the test can run here; says so if not.
pub fn needs_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os(NO_SKIP).is_none(), "{test} needs root");
    eprintln!("SKIPPED {test}: it needs root");
    false
}

/// A directory that root alone controls, all the way from `/`, which `/tmp` is not.
pub fn root_dir(test: &str) -> Option<tempfile::TempDir> {
    needs_root(test).then(|| {
        let dir = tempfile::Builder::new().prefix("flock-test-").tempdir_in("/run").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        dir
    })
}

/// Gives this thread its own `/etc` and an empty `/var/lib`; the host's are not touched.
pub fn private_etc(test: &str) -> Option<tempfile::TempDir> {
    let dir = root_dir(test)?;
    let copy = dir.path().join("etc");
    std::fs::create_dir(&copy).unwrap();
    for file in ["passwd", "group", "shadow", "gshadow", "nsswitch.conf", "login.defs"] {
        std::fs::copy(Path::new("/etc").join(file), copy.join(file)).unwrap();
    }
    let no: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(no, "/", no, MsFlags::MS_REC | MsFlags::MS_PRIVATE, no).unwrap();
    mount(Some(&copy), "/etc", no, MsFlags::MS_BIND, no).unwrap();
    mount(Some("none"), "/var/lib", Some("tmpfs"), MsFlags::empty(), no).unwrap();
    Some(dir)
}
