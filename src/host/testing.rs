//! What the tests of `host` share. They need root; without it they say that they did not run.

use std::collections::BTreeMap;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::command::Program;
use crate::config::{Access, Egress};
use crate::names::{AgentId, Level};
use crate::plan::{Plan, RootPlan, TreePlan, UnitPlan, UserPlan};

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

/// Runs a shell command as root; panics when it fails.
pub fn sh(command: &str) {
    output(command);
}

/// What a shell command prints as root; panics when it fails.
pub fn output(command: &str) -> String {
    SHELL.run(&["-c", command], "").unwrap()
}

/// Runs a shell command as another user with these groups; says whether it succeeded.
pub fn as_user(uid: u32, groups: &str, command: &str) -> bool {
    let id = uid.to_string();
    let arguments = ["--reuid", &id, "--regid", &id, "--groups", groups, "sh", "-c", command];
    match SETPRIV.run(&arguments, "") {
        Ok(_) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains("setpriv:"), "the test itself is broken: {text}");
            false
        }
    }
}

const SHELL: Program = Program { path: "/bin/sh", package: "dash" };
const SETPRIV: Program = Program { path: "/usr/bin/setpriv", package: "util-linux" };

/// A plan that asks for nothing; tests change the part that they are about.
pub fn plan(id: &str) -> Plan {
    let agent = AgentId::parse(id).unwrap();
    Plan {
        level: Level::Process,
        user: UserPlan { name: agent.user_name(), uid: 65_537 },
        tree: TreePlan { workspace: agent.workspace(), common: Access::ReadOnly },
        quota: crate::plan::QuotaPlan::default(),
        root: RootPlan {
            dir: agent.root_dir(),
            dirs: Vec::new(),
            links: Vec::new(),
            files: BTreeMap::new(),
            secrets: Vec::new(),
            binds: Vec::new(),
        },
        egress: Egress::Bus,
        bus_port: 14_222,
        bus: crate::plan::BusPlan::default(),
        unit: UnitPlan { name: agent.agent_unit(), slice: agent.slice(), properties: Vec::new() },
        tools: None,
        loosened: Vec::new(),
        agent,
    }
}
