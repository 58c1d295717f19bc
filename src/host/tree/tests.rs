//! The tree with its access lists, made, checked and repaired in a real directory.

use super::*;
use crate::host::testing;
use crate::names::AgentId;
use crate::plan::{TreePlan, UserPlan};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};

const GROUPS: Groups = Groups { agents: 4001, operators: 4002 };
const OPERATOR: (u32, &str) = (2000, "2000,4002");
const STRANGER: (u32, &str) = (2001, "2001");

fn plan(id: &str, uid: u32, common: Access) -> Plan {
    let agent = AgentId::parse(id).unwrap();
    let tree = TreePlan { workspace: agent.workspace(), common };
    let level = if uid == 65_536 { Level::Workspace } else { Level::Process };
    let user = UserPlan { name: format!("flock-{id}"), uid };
    Plan { level, user, tree, ..testing::plan(id) }
}

fn three() -> Vec<Plan> {
    vec![
        plan("a", 65_537, Access::ReadOnly),
        plan("b", 65_538, Access::ReadWrite),
        plan("w", 65_536, Access::ReadOnly),
    ]
}

/// Runs a shell command in the tree as a user; says whether it succeeded.
fn can(state: &Path, (uid, groups): (u32, &str), command: &str) -> bool {
    let at = state.join("shared");
    testing::as_user(uid, groups, &format!("cd {} && {{ {command}; }}", at.display()))
}

const A: (u32, &str) = (65_537, "65537,4001");
const B: (u32, &str) = (65_538, "65538,4001");

#[test]
fn everybody_can_do_what_the_table_says_and_no_more() {
    let Some(state) = testing::root_dir("tree_table") else { return };
    let at = state.path();
    ensure_in(at, GROUPS, &three()).unwrap();
    let yes = |who, command: &str| assert!(can(at, who, command), "{who:?} {command}");
    let no = |who, command: &str| assert!(!can(at, who, command), "{who:?} {command}");

    yes(A, "echo mine > agents/a/f && mkdir agents/a/results && echo 1 > agents/a/results/r");
    yes(OPERATOR, "cat agents/a/f agents/a/results/r && ls agents/a");
    no(OPERATOR, "echo x > agents/a/g");
    no(B, "cat agents/a/f");
    no(B, "ls agents/a");
    no(STRANGER, "cat agents/a/f");
    no(STRANGER, "ls common");
    no(A, "ls agents");
    no(A, "ls logs");
    // An agent opens what is its own to everybody, and still nobody gets there.
    yes(A, "chmod 777 agents/a/f agents/a/results");
    no(A, "chmod 777 agents/a");
    no(A, "setfacl -m o::rwx agents/a");
    no(B, "cat agents/a/f");
    no(STRANGER, "cat agents/a/results/r");
    no(A, "mv agents/a agents/x");
    no(A, "rmdir agents/a");

    yes(B, "echo news > common/b.txt && mkdir common/dir && echo x > common/dir/f");
    yes(A, "cat common/b.txt common/dir/f && ls common");
    no(A, "echo x > common/a.txt");
    no(A, "echo x >> common/b.txt");
    yes(OPERATOR, "echo corpus > common/corpus && rm -r common/dir/f");
    yes(A, "cat common/corpus");
    no(B, "rm common/corpus");
    no(B, "mv common/corpus common/c2");

    fs::write(at.join("shared/logs/a.log"), "a line\n").unwrap();
    yes(A, "cat logs/a.log");
    yes(OPERATOR, "cat logs/a.log");
    no(A, "echo forged >> logs/a.log");
    no(A, "rm logs/a.log");
    no(B, "cat logs/a.log");
    no(STRANGER, "cat logs/a.log");
}

fn stamps(at: &Path) -> Vec<(i64, i64)> {
    let paths = ["shared", "shared/agents/a", "shared/common", "shared/logs/a.log"];
    let stamp = |path: &str| fs::metadata(at.join(path)).map(|m| (m.ctime(), m.ctime_nsec()));
    paths.iter().map(|path| stamp(path).unwrap()).collect()
}

#[test]
fn a_tree_that_is_right_is_not_written_to() {
    let Some(state) = testing::root_dir("tree_idempotent") else { return };
    assert!(!ensure_in(state.path(), GROUPS, &three()).unwrap().is_empty());
    let before = stamps(state.path());
    assert_eq!(ensure_in(state.path(), GROUPS, &three()).unwrap(), Vec::<String>::new());
    assert_eq!(stamps(state.path()), before);
    three().iter().for_each(|plan| check_in(state.path(), GROUPS, plan).unwrap());
}

#[test]
fn what_was_changed_by_hand_is_named_and_repaired() {
    let Some(state) = testing::root_dir("tree_repair") else { return };
    let at = state.path();
    ensure_in(at, GROUPS, &three()).unwrap();
    let changes = [
        ("setfacl -m u:65538:r shared/agents/a", "access list is u::rwx,u:65537:rwx,u:65538:r--"),
        ("setfacl -d -m o::r shared/agents/a", "default access list is"),
        ("setfacl -b shared/agents/a", "access list is u::rwx,g::---,o::---"),
        ("setfacl -k shared/agents/a", "default access list is none"),
        ("setfacl -x u:65537 shared/agents/a", "shared/agents/a"),
        ("chmod 750 shared/agents/a", "m::r-x"),
        ("chmod 777 shared/agents", "access list is u::rwx,g::rwx,o::rwx"),
        ("setfacl -d -m u::rwx shared/agents", "should be none"),
        ("chmod g+s shared/agents", "special bits should be 0000"),
        ("chmod -t shared/common", "special bits should be 1000"),
        ("setfacl -m u:65537:rwx shared/common", "shared/common"),
        ("chmod 644 shared/logs/a.log", "shared/logs/a.log"),
        ("rm shared/logs/a.log", "does not exist"),
        ("rmdir shared/agents/a", "does not exist"),
    ];
    for (command, why) in changes {
        let plan = &three()[0];
        check_in(at, GROUPS, plan).unwrap();
        testing::sh(&format!("cd {} && {command}", at.display()));
        let error = check_in(at, GROUPS, plan).unwrap_err().to_string();
        assert!(error.contains(why) && error.ends_with("run flockctl apply"), "{error}");
        assert!(!ensure_in(at, GROUPS, &three()).unwrap().is_empty(), "{command}");
        check_in(at, GROUPS, plan).unwrap();
    }
}

#[test]
fn what_is_planted_or_another_s_is_refused_and_left_alone() {
    let Some(state) = testing::root_dir("tree_planted") else { return };
    let (at, outside) = (state.path(), testing::root_dir("tree_planted").unwrap());
    ensure_in(at, GROUPS, &three()).unwrap();
    let agent = at.join("shared/agents/a");
    let refused = |why: &str| {
        let error = ensure_in(at, GROUPS, &three()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(check_in(at, GROUPS, &three()[0]).is_err());
    };
    fs::remove_dir(&agent).unwrap();
    symlink(outside.path(), &agent).unwrap();
    refused("it is a symbolic link, should be a directory");
    fs::remove_file(&agent).unwrap();
    fs::write(&agent, "").unwrap();
    refused("it is a file, should be a directory");
    fs::remove_file(&agent).unwrap();
    fs::create_dir(&agent).unwrap();
    chown(&agent, Some(65_537), None).unwrap();
    refused("should belong to root:root");
    chown(&agent, Some(0), None).unwrap();
    let log = at.join("shared/logs/a.log");
    fs::hard_link(&log, at.join("second")).unwrap();
    refused("it has 2 names");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let (access, default) = acl_of(outside.path());
    assert_eq!((access, default), (Acl::of_mode(0o755), Acl::NONE));
}

fn acl_of(path: &Path) -> (Acl, Acl) {
    let slash = Dir::open(Path::new("/")).unwrap();
    let handle = slash.handle(path.strip_prefix("/").unwrap()).unwrap().unwrap();
    Acl::read(&handle).unwrap()
}

#[test]
fn one_agent_s_check_does_not_judge_the_others() {
    let Some(state) = testing::root_dir("tree_one") else { return };
    let at = state.path();
    let mut plans = three();
    ensure_in(at, GROUPS, &plans).unwrap();
    // Losing the right to write is enforced, and noticed before.
    plans[1].tree.common = Access::ReadOnly;
    assert!(check_in(at, GROUPS, &plans[1]).is_err());
    assert_eq!(ensure_in(at, GROUPS, &plans).unwrap().len(), 1);
    assert!(!can(at, B, "echo x > common/new"));
    // Two agents of level 0 share a user: one may write, the other's check still passes.
    plans.push(plan("v", 65_536, Access::ReadWrite));
    ensure_in(at, GROUPS, &plans).unwrap();
    plans.iter().for_each(|plan| check_in(at, GROUPS, plan).unwrap());
}
