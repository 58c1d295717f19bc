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
use crate::fail::{self, Point};
use crate::names::{AGENT_GROUP, AgentId, Level, OPERATOR_GROUP, STATE_DIR};
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

/// Everything in which the tree is not what all these plans together ask for, and whose it is; what
/// is everybody's has no name. Changes nothing.
///
/// # Errors
/// When a group is missing, or the state directory cannot be opened.
pub fn drift(plans: &[Plan]) -> Result<Vec<(Option<AgentId>, String)>, TreeError> {
    let state = Dir::open(Path::new(STATE_DIR))?;
    let mut found = Vec::new();
    for object in objects(Groups::of_this_host()?, plans, Scope::All) {
        let lines = match look(&state, &object) {
            Err(error) => vec![error.to_string()],
            Ok(handle) => {
                let all = differences(&object, &handle)?;
                all.iter().map(|difference| difference.text(&object, &handle)).collect()
            }
        };
        // `agents/<id>` and `logs/<id>.log`.
        let stem = object.path.file_stem().and_then(|stem| stem.to_str());
        let own = object.path.components().count() == 3;
        let agent = stem.filter(|_| own).and_then(|stem| AgentId::parse(stem).ok());
        found.extend(lines.into_iter().map(|line| (agent.clone(), line)));
    }
    Ok(found)
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
        fail::at(Point::TreeObjectMade);
    }
    for difference in differences(object, &handle)? {
        let text = difference.text(object, &handle);
        repair(object, &handle, &difference)?;
        fail::at(Point::TreeObjectListed);
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
mod tests;
