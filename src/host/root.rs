//! The skeleton that becomes an agent's root directory: made, compared and removed.
//!
//! It is root's, and the agent never writes to it; secrets are copied in, each readable by the
//! agent's user alone. A running agent sees its skeleton change, and loses what is mounted on an
//! object that goes; without a change of its plan nothing is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{self, Dir, FilesError, Handle, Kind, Owner};
use crate::fail::{self, Point};
use crate::names::AgentId;
use crate::plan::{Plan, RootPlan, UserPlan};

/// The largest secret. Keys and tokens are far below it; a mistaken path is not.
const SECRET_MAX: u64 = 1 << 20;
/// The largest file that is compared with a planned text before it is replaced.
const TEXT_MAX: u64 = 4 << 20;

/// Why the skeleton is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// An object could not be made, read or removed.
    #[error("the root directory of agent {agent}: {source}")]
    Files {
        /// Whose.
        agent: AgentId,
        /// The object and the cause.
        source: FilesError,
    },
    /// An operator's secret cannot be taken.
    #[error("the secret of agent {agent}: {source}")]
    Secret {
        /// Whose.
        agent: AgentId,
        /// The file and the cause.
        source: FilesError,
    },
    /// The machine differs from the plan.
    #[error(
        "the root directory of agent {agent}: {what}: start the agent again, or run flockctl apply"
    )]
    Differs {
        /// Whose.
        agent: AgentId,
        /// The object, and in what.
        what: String,
    },
}

/// One object as it should be.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    Link(PathBuf),
    File { content: Vec<u8>, owner: Owner, mode: u32 },
}

/// One thing to do to the skeleton.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing is there.
    Make,
    /// Something else is there: it goes first.
    Replace(String),
    /// A file of the same owner with another content or mode.
    Write,
    /// A directory with another mode.
    Mode(u32),
    /// No plan asks for it.
    Remove,
}

/// Makes the skeleton as planned and gives what was changed, a line each; a skeleton that is right
/// is not written to.
///
/// # Errors
/// When a secret's source is not root's own secret, or the system refuses.
pub fn ensure(plan: &Plan) -> Result<Vec<String>, RootError> {
    let fail = |source| RootError::Files { agent: plan.agent.clone(), source };
    let wanted = wanted(plan)?;
    let dir = open_or_make(&plan.root.dir).map_err(fail)?;
    let mut changed = Vec::new();
    for (path, step) in steps(&dir, &plan.root, &wanted).map_err(fail)? {
        carry_out(&dir, &path, &step, wanted.get(&path)).map_err(fail)?;
        fail::at(Point::RootObjectMade);
        changed.push(step.text(&dir, &path));
    }
    Ok(changed)
}

/// Whether the skeleton is as planned, secrets included. Changes nothing.
///
/// # Errors
/// Naming the first object that differs.
pub fn check(plan: &Plan) -> Result<(), RootError> {
    let agent = || plan.agent.clone();
    let fail = |source| RootError::Files { agent: agent(), source };
    let wanted = wanted(plan)?;
    let Some(dir) = Dir::open_if_there(&plan.root.dir).map_err(fail)? else {
        let what = format!("{} does not exist", plan.root.dir.display());
        return Err(RootError::Differs { agent: agent(), what });
    };
    match steps(&dir, &plan.root, &wanted).map_err(fail)?.first() {
        Some((path, step)) => {
            Err(RootError::Differs { agent: agent(), what: step.text(&dir, path) })
        }
        None => Ok(()),
    }
}

/// Everything in which the skeleton is not as planned, a line each. Changes nothing.
///
/// # Errors
/// When it cannot be read.
pub fn drift(plan: &Plan) -> Result<Vec<String>, RootError> {
    let fail = |source| RootError::Files { agent: plan.agent.clone(), source };
    let wanted = wanted(plan)?;
    let Some(dir) = Dir::open_if_there(&plan.root.dir).map_err(fail)? else {
        return Ok(vec![format!("{} does not exist", plan.root.dir.display())]);
    };
    let steps = steps(&dir, &plan.root, &wanted).map_err(fail)?;
    Ok(steps.iter().map(|(path, step)| step.text(&dir, path)).collect())
}

/// Removes the skeleton of an agent that does not run any more. Missing is no error.
///
/// # Errors
/// When something is still mounted in it, or the system refuses.
pub fn remove(agent: &AgentId) -> Result<(), RootError> {
    remove_at(&agent.root_dir()).map_err(|source| RootError::Files { agent: agent.clone(), source })
}

fn remove_at(path: &Path) -> Result<(), FilesError> {
    let (above, name) = split(path)?;
    match Dir::open_if_there(above)? {
        Some(roots) => roots.remove(name),
        None => Ok(()),
    }
}

fn split(path: &Path) -> Result<(&Path, &Path), FilesError> {
    match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => Ok((above, Path::new(name))),
        _ => Err(FilesError::Name { path: path.into() }),
    }
}

/// Opens the skeleton; makes it and the directory of all skeletons if they are missing.
fn open_or_make(path: &Path) -> Result<Dir, FilesError> {
    let (above, name) = split(path)?;
    let roots = match Dir::open_if_there(above)? {
        Some(roots) => roots,
        None => make_open_dir(above, 0o711)?,
    };
    match roots.sub(name)? {
        Some(dir) => Ok(dir),
        None => make_open_dir(path, 0o755),
    }
}

fn make_open_dir(path: &Path, mode: u32) -> Result<Dir, FilesError> {
    let (above, name) = split(path)?;
    let above = Dir::open(above)?;
    above.make_dir(name)?;
    if let Some(handle) = above.handle(name)? {
        handle.set_mode(mode)?;
    }
    Dir::open(path)
}

/// Every object of the skeleton, by its relative path: parents come before what is in them.
fn wanted(plan: &Plan) -> Result<BTreeMap<PathBuf, Entry>, RootError> {
    let RootPlan { dirs, links, files, secrets, .. } = &plan.root;
    let UserPlan { uid, .. } = plan.user;
    let mut wanted = BTreeMap::new();
    let mut put = |path: &Path, entry| {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            wanted.entry(above.to_owned()).or_insert(Entry::Dir);
        }
        wanted.insert(path.to_owned(), entry);
    };
    dirs.iter().for_each(|path| put(path, Entry::Dir));
    links.iter().for_each(|(path, target)| put(path, Entry::Link(target.clone())));
    for (path, text) in files {
        let content = text.clone().into_bytes();
        put(path, Entry::File { content, owner: Owner::ROOT, mode: 0o444 });
    }
    for secret in secrets {
        let content = files::read_secret(&secret.source, SECRET_MAX)
            .map_err(|source| RootError::Secret { agent: plan.agent.clone(), source })?;
        let owner = Owner { uid, gid: uid };
        put(&secret.path, Entry::File { content, owner, mode: 0o400 });
    }
    Ok(wanted)
}

/// What has to be done to the skeleton, in an order in which it can be done.
fn steps(
    dir: &Dir,
    plan: &RootPlan,
    wanted: &BTreeMap<PathBuf, Entry>,
) -> Result<Vec<(PathBuf, Step)>, FilesError> {
    let mut steps = Vec::new();
    stale(
        dir,
        Path::new(""),
        &|path| wanted.contains_key(path) || is_mount_point(plan, path),
        &mut steps,
    )?;
    let mut replaced: Vec<&Path> = Vec::new();
    for (path, entry) in wanted {
        // What is below an object that goes is gone with it.
        let gone = replaced.iter().any(|above| path.starts_with(above));
        let step = if gone { Some(Step::Make) } else { compare(dir, path, entry)? };
        if matches!(step, Some(Step::Make | Step::Replace(_))) {
            replaced.push(path);
        }
        steps.extend(step.map(|step| (path.clone(), step)));
    }
    Ok(steps)
}

/// Whether PID 1 makes this path in the skeleton to mount something on it or below it.
fn is_mount_point(plan: &RootPlan, path: &Path) -> bool {
    let target = |target: &Path| target.strip_prefix("/").unwrap_or(target).starts_with(path);
    plan.binds.iter().any(|bind| target(&bind.target))
}

/// What stands in the skeleton and nobody asks for.
fn stale(
    dir: &Dir,
    below: &Path,
    known: &impl Fn(&Path) -> bool,
    steps: &mut Vec<(PathBuf, Step)>,
) -> Result<(), FilesError> {
    for name in dir.names()? {
        let path = below.join(&name);
        if !known(&path) {
            steps.push((path, Step::Remove));
        } else if let Some(handle) = dir.handle(&name)?
            && handle.kind() == Kind::Dir
            && let Some(sub) = dir.sub(&name)?
        {
            stale(&sub, &path, known, steps)?;
        }
    }
    Ok(())
}

/// The step that makes one object right, if it is not.
fn compare(dir: &Dir, path: &Path, entry: &Entry) -> Result<Option<Step>, FilesError> {
    let Some(handle) = dir.handle(path)? else { return Ok(Some(Step::Make)) };
    let (kind, owner) = match entry {
        Entry::Dir => (Kind::Dir, Owner::ROOT),
        Entry::Link(_) => (Kind::Link, Owner::ROOT),
        Entry::File { owner, .. } => (Kind::File, *owner),
    };
    if let Err(error) = handle.expect(kind, owner) {
        return match error {
            // An agent that changed its level has another user; the secret is made anew for it.
            FilesError::Kind { .. } | FilesError::Owner { .. } | FilesError::Links { .. } => {
                Ok(Some(Step::Replace(error.to_string())))
            }
            other => Err(other),
        };
    }
    same_kind(dir, path, entry, &handle)
}

fn same_kind(
    dir: &Dir,
    path: &Path,
    entry: &Entry,
    handle: &Handle,
) -> Result<Option<Step>, FilesError> {
    Ok(match entry {
        Entry::Dir if handle.mode() != 0o755 => Some(Step::Mode(handle.mode())),
        Entry::Dir => None,
        Entry::Link(target) => match dir.read_link(path)? {
            Some(found) if found == *target => None,
            _ => Some(Step::Replace(format!("should lead to {}", target.display()))),
        },
        Entry::File { content, owner, mode } => {
            let found = match dir.read(path, *owner, TEXT_MAX) {
                Err(FilesError::Size { .. }) => None,
                other => other?,
            };
            let same = found.as_ref() == Some(content) && handle.mode() == *mode;
            (!same).then_some(Step::Write)
        }
    })
}

fn carry_out(dir: &Dir, path: &Path, step: &Step, entry: Option<&Entry>) -> Result<(), FilesError> {
    match (step, entry) {
        (Step::Remove, _) | (_, None) => return dir.remove(path),
        (Step::Replace(_), _) => dir.remove(path)?,
        (Step::Mode(_), _) => {
            return dir.handle(path)?.map_or(Ok(()), |handle| handle.set_mode(0o755));
        }
        (Step::Make | Step::Write, _) => {}
    }
    match entry {
        Some(Entry::Dir) => {
            dir.make_dir(path)?;
            dir.handle(path)?.map_or(Ok(()), |handle| handle.set_mode(0o755))
        }
        Some(Entry::Link(target)) => dir.make_link(path, target),
        Some(Entry::File { content, owner, mode }) => dir.write(path, content, *owner, *mode),
        None => Ok(()),
    }
}

impl Step {
    fn text(&self, dir: &Dir, path: &Path) -> String {
        let at = dir.path().join(path);
        match self {
            Self::Make => format!("{} does not exist", at.display()),
            Self::Replace(why) => format!("{}: {why}", at.display()),
            Self::Write => format!("{}: its content or mode is not the planned one", at.display()),
            Self::Mode(mode) => format!("{}: its mode is {mode:04o}, should be 0755", at.display()),
            Self::Remove => format!("{}: no plan asks for it", at.display()),
        }
    }
}

#[cfg(test)]
mod tests;
