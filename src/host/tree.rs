//! The shared tree: who may read and write what in it.
//!
//! | object | owner, mode | agents | operators |
//! | --- | --- | --- | --- |
//! | `agents/` | root 0711 | pass through | pass through |
//! | `agents/<id>/` | root 0700 | its own agent: all | read |
//! | `common/` | root 0700, sticky | all read; some write | all |
//! | `logs/` | root 0711 | pass through | pass through |
//! | `logs/<id>.log` | root 0600 | its own agent: read | read |
//!
//! Everything is root's: an agent that owned its directory could open it to others. Lists are set
//! on these few objects alone and hand themselves down to what is made below; nothing walks.

use std::path::{Path, PathBuf};

use super::acl::{Acl, AclError, R, W, Who, X};
use super::files::{Dir, FilesError, Handle, Kind, Owner};
use super::users::{self, UsersError};
use crate::config::Access;
use crate::names::{AGENT_GROUP, Level, OPERATOR_GROUP, STATE_DIR};
use crate::plan::Plan;

const RWX: u32 = R | W | X;
/// The sticky bit: in a directory that several write to, each removes only what is its own.
const STICKY: u32 = 0o1000;

/// Why the tree is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An object could not be opened, or is not what it should be.
    #[error("the shared tree: {0}")]
    Files(#[from] FilesError),
    /// A group is missing.
    #[error("the shared tree: {0}")]
    Users(#[from] UsersError),
    /// An access list could not be read or written.
    #[error("the shared tree: {step} the access list of {path}: {source}: {remedy}", path = path.display())]
    Acl {
        /// read or write.
        step: &'static str,
        /// The object.
        path: PathBuf,
        /// What the system said.
        source: AclError,
        /// What to do.
        remedy: &'static str,
    },
    /// The machine differs from the plan.
    #[error("the shared tree: {0}: run flockctl apply")]
    Differs(String),
}

/// The groups of this host that the lists name.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// `flock-agents`: every agent's user.
    pub agents: u32,
    /// `flock`: those who may read results and put files into `common`.
    pub operators: u32,
}

impl Groups {
    /// Asks the user database.
    ///
    /// # Errors
    /// When one of the groups is missing.
    pub fn of_this_host() -> Result<Self, UsersError> {
        Ok(Self { agents: users::gid(AGENT_GROUP)?, operators: users::gid(OPERATOR_GROUP)? })
    }
}

/// One object as it should be. Owned by root, always.
struct Object {
    /// Below the state directory.
    path: PathBuf,
    kind: Kind,
    /// Set-user-id, set-group-id and sticky.
    special: u32,
    access: Acl,
    default: Acl,
    users: Judged,
}

/// Which entries of users are compared. With one agent's plan the others' rights are not known.
enum Judged {
    All,
    Only(u32),
    None,
}

/// Makes the tree as all these plans together ask for, and gives what was changed, a line each.
/// Reads first: a tree that is right is not written to. Pass the plans of all agents, or those
/// left out lose their right to write `common`.
///
/// # Errors
/// When something else stands in an object's place, or the system refuses.
pub fn ensure(plans: &[Plan]) -> Result<Vec<String>, TreeError> {
    ensure_in(Path::new(STATE_DIR), Groups::of_this_host()?, plans)
}

/// Whether the tree gives one agent what its plan says, and nothing more. Changes nothing.
///
/// # Errors
/// Naming the object, what is, and what should be.
pub fn check(plan: &Plan) -> Result<(), TreeError> {
    check_in(Path::new(STATE_DIR), Groups::of_this_host()?, plan)
}

/// Makes the log file of one agent, if it is missing, with the access list that `ensure` gives it.
///
/// # Errors
/// When something else stands in its place, or the system refuses.
pub fn ensure_log(plan: &Plan) -> Result<(), TreeError> {
    let state = Dir::open(Path::new(STATE_DIR))?;
    ensure_object(&state, &log(Groups::of_this_host()?, plan), &mut Vec::new())
}

fn ensure_in(state: &Path, groups: Groups, plans: &[Plan]) -> Result<Vec<String>, TreeError> {
    let state = Dir::open(state)?;
    let mut changed = Vec::new();
    for object in objects(groups, plans, Scope::All) {
        ensure_object(&state, &object, &mut changed)?;
    }
    Ok(changed)
}

fn ensure_object(state: &Dir, object: &Object, changed: &mut Vec<String>) -> Result<(), TreeError> {
    let made = make(state, object)?;
    let handle = look(state, object)?;
    if made {
        changed.push(format!("made {}", handle.path().display()));
    }
    for difference in differences(object, &handle)? {
        let text = difference.text(object, &handle);
        repair(object, &handle, &difference)?;
        // A new object has to be given its rights; only an old one had lost them.
        if !made {
            changed.push(format!("repaired {text}"));
        }
    }
    Ok(())
}

fn check_in(state: &Path, groups: Groups, plan: &Plan) -> Result<(), TreeError> {
    let state = Dir::open(state)?;
    for object in objects(groups, std::slice::from_ref(plan), Scope::OneAgent) {
        let handle = look(&state, &object)?;
        if let Some(difference) = differences(&object, &handle)?.first() {
            return Err(TreeError::Differs(difference.text(&object, &handle)));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    All,
    OneAgent,
}

/// Every object of these plans, parents first.
fn objects(groups: Groups, plans: &[Plan], scope: Scope) -> Vec<Object> {
    let plain = |path: &str, mode| Object {
        path: path.into(),
        kind: Kind::Dir,
        special: 0,
        access: Acl::of_mode(mode),
        default: Acl::NONE,
        users: Judged::All,
    };
    let mut all = vec![
        plain("shared", 0o755),
        plain("shared/agents", 0o711),
        plain("shared/logs", 0o711),
        common(groups, plans, scope),
    ];
    for plan in plans {
        all.push(workspace(groups, plan));
        all.push(log(groups, plan));
    }
    all
}

/// What all agents read, some write, and operators fill.
fn common(groups: Groups, plans: &[Plan], scope: Scope) -> Object {
    let default = Acl::of_mode(0o700)
        .with(Who::Group(groups.agents), R | X)
        .with(Who::Group(groups.operators), RWX);
    let writers = plans.iter().filter(|plan| plan.tree.common == Access::ReadWrite);
    let access = writers.fold(default.clone(), |acl, plan| acl.with(Who::User(plan.user.uid), RWX));
    let users = match (scope, plans) {
        // The user of level 0 is shared: another agent may well have given it the right to write.
        (Scope::OneAgent, [plan])
            if plan.level == Level::Workspace && plan.tree.common == Access::ReadOnly =>
        {
            Judged::None
        }
        (Scope::OneAgent, [plan]) => Judged::Only(plan.user.uid),
        _ => Judged::All,
    };
    Object {
        path: "shared/common".into(),
        kind: Kind::Dir,
        special: STICKY,
        access,
        default,
        users,
    }
}

/// The directory that the agent writes to and operators read.
fn workspace(groups: Groups, plan: &Plan) -> Object {
    let access = Acl::of_mode(0o700)
        .with(Who::User(plan.user.uid), RWX)
        .with(Who::Group(groups.operators), R | X);
    Object {
        path: Path::new("shared/agents").join(plan.agent.as_str()),
        kind: Kind::Dir,
        special: 0,
        default: access.clone(),
        access,
        users: Judged::All,
    }
}

/// What flockd writes, and the agent may read.
fn log(groups: Groups, plan: &Plan) -> Object {
    Object {
        path: Path::new("shared/logs").join(format!("{}.log", plan.agent)),
        kind: Kind::File,
        special: 0,
        access: Acl::of_mode(0o600)
            .with(Who::User(plan.user.uid), R)
            .with(Who::Group(groups.operators), R),
        default: Acl::NONE,
        users: Judged::All,
    }
}

/// Makes a missing object, closed to everybody but root until its list is written.
fn make(state: &Dir, object: &Object) -> Result<bool, TreeError> {
    match object.kind {
        Kind::Dir => Ok(state.make_dir(&object.path)?),
        _ if state.handle(&object.path)?.is_none() => {
            state.write(&object.path, b"", Owner::ROOT, 0o600)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn look(state: &Dir, object: &Object) -> Result<Handle, TreeError> {
    let path = state.path().join(&object.path);
    let missing = || TreeError::Differs(format!("{} does not exist", path.display()));
    let handle = state.handle(&object.path)?.ok_or_else(missing)?;
    handle.expect(object.kind, Owner::ROOT)?;
    Ok(handle)
}

/// In what an object differs.
enum Difference {
    Special,
    Access(Acl),
    Default(Acl),
}

impl Difference {
    fn text(&self, object: &Object, handle: &Handle) -> String {
        let path = handle.path().display();
        match self {
            Self::Special => format!(
                "{path}: its mode is {:04o}, its special bits should be {:04o}",
                handle.mode(),
                object.special
            ),
            Self::Access(is) => {
                format!("{path}: its access list is {is}, should be {}", object.access)
            }
            Self::Default(is) => {
                format!("{path}: its default access list is {is}, should be {}", object.default)
            }
        }
    }
}

fn differences(object: &Object, handle: &Handle) -> Result<Vec<Difference>, TreeError> {
    let (mut access, default) = Acl::read(handle).map_err(|e| acl_error("read", handle, e))?;
    access = match object.users {
        Judged::All => access,
        Judged::Only(only) => access.only_users(|uid| uid == only),
        Judged::None => access.only_users(|_| false),
    };
    let mut found = Vec::new();
    if handle.mode() & 0o7000 != object.special {
        found.push(Difference::Special);
    }
    if access != object.access {
        found.push(Difference::Access(access));
    }
    if default != object.default {
        found.push(Difference::Default(default));
    }
    Ok(found)
}

fn repair(object: &Object, handle: &Handle, difference: &Difference) -> Result<(), TreeError> {
    match difference {
        // The other bits as they are: they are the access list's, which comes next.
        Difference::Special => Ok(handle.set_mode(handle.mode() & 0o777 | object.special)?),
        Difference::Access(_) => {
            object.access.write(handle, object.special).map_err(|e| acl_error("write", handle, e))
        }
        Difference::Default(_) => {
            object.default.write_default(handle).map_err(|e| acl_error("write", handle, e))
        }
    }
}

fn acl_error(step: &'static str, handle: &Handle, source: AclError) -> TreeError {
    let remedy = match source.0.kind() {
        std::io::ErrorKind::Unsupported => {
            "this file system has no POSIX ACLs: keep /var/lib/flock on ext4, xfs or btrfs"
        }
        std::io::ErrorKind::PermissionDenied => "this needs root",
        _ => "see dmesg for trouble with this file system",
    };
    TreeError::Acl { step, path: handle.path().into(), source, remedy }
}

#[cfg(test)]
mod tests {
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
            (
                "setfacl -m u:65538:r shared/agents/a",
                "access list is u::rwx,u:65537:rwx,u:65538:r--",
            ),
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
}
