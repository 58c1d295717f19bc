//! `flock-agent confine [PROGRAM...] -- COMMAND...`: gives up the right to execute anything but the
//! command, the named programs and `flock-agent` itself, then becomes the command.
//!
//! The kernel's Landlock holds this, for the command and all that it starts, for good. What it does
//! not hold: code that a program maps itself (an interpreter's script, a library, a program that the
//! loader is given, memory without a file).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use landlock::{
    AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

use super::{FAILED, program};

/// Why the command was not started.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("start the command: flock-agent confine [PROGRAM...] -- COMMAND...")]
    Usage,
    #[error("start the command {}: {cause}", path.display())]
    Program { path: PathBuf, cause: io::Error },
    #[error(
        "confine the command: {0}: tool rules need a kernel with Landlock (CONFIG_SECURITY_LANDLOCK, \
         and landlock among the lsm= of its command line)"
    )]
    Landlock(#[from] RulesetError),
    #[error("confine the command: the kernel does it only in part")]
    Part,
    #[error("confine the command: open {}: {cause}", path.display())]
    Rule { path: PathBuf, cause: landlock::PathFdError },
}

/// Becomes the command, or says why not.
#[must_use]
pub fn main(words: &[OsString]) -> ExitCode {
    let Err(error) = start(words);
    eprintln!("flock-agent: {error}");
    let code = match &error {
        Error::Program { cause, .. } if cause.kind() == io::ErrorKind::NotFound => 127,
        Error::Program { .. } => 126,
        _ => FAILED,
    };
    ExitCode::from(code)
}

/// Whether this kernel can confine.
#[must_use]
pub fn is_possible() -> bool {
    ruleset().is_ok()
}

fn start(words: &[OsString]) -> Result<std::convert::Infallible, Error> {
    let at = words.iter().position(|word| word == "--").ok_or(Error::Usage)?;
    let (direct, command) = (&words[..at], &words[at + 1..]);
    let (program, arguments) = command.split_first().ok_or(Error::Usage)?;
    let path = Path::new(program);
    let failed = |cause| Error::Program { path: path.to_owned(), cause };
    let mut executable = program::files(path).map_err(failed)?;
    for other in direct {
        // One that is not there cannot be started either way.
        executable.extend(program::files(Path::new(other)).unwrap_or_default());
    }
    let own = std::env::current_exe().map_err(failed)?;
    executable.extend(program::files(&own).map_err(failed)?);
    confine(&executable)?;
    Err(failed(Command::new(program).args(arguments).exec()))
}

fn ruleset() -> Result<landlock::RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Execute)?
        .create()
}

/// From here on only these files can be executed.
fn confine(executable: &BTreeSet<PathBuf>) -> Result<(), Error> {
    let mut rules = ruleset()?;
    for path in executable {
        let file = PathFd::new(path).map_err(|cause| Error::Rule { path: path.clone(), cause })?;
        rules = rules.add_rule(PathBeneath::new(file, AccessFs::Execute))?;
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(Error::Part),
    }
}
