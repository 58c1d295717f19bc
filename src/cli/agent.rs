//! `flockctl agent add` and `remove`: one agent's file in `agents.d`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nix::unistd::Group;

use crate::audit::What;
use crate::cli::{Failure, apply, audit, out};
use crate::config::{self, edit};
use crate::fail::{self, Point};
use crate::host::units::{Systemd, UnitError};
use crate::host::users::Ledger;
use crate::names::{AgentId, CONFIG_FILE, OPERATOR_GROUP, shared_dir};
use crate::steps::lock::Lock;
use crate::text::printable;

/// Adds and removes agents.
#[derive(Subcommand)]
pub enum Agent {
    /// Add an agent: writes its file into agents.d.
    Add(Add),
    /// Remove an agent's file from agents.d; its data stays.
    Remove(Remove),
}

/// A new agent. What is not said comes from [defaults].
#[derive(Args)]
pub struct Add {
    /// The agent's id: 1 to 25 of a-z, 0-9 and -.
    #[arg(value_name = "AGENT")]
    pub id: AgentId,
    /// 0: a workspace, no security boundary; 1: process isolation.
    #[arg(long)]
    pub level: Option<i64>,
    /// "task": the command runs once for each task; "service": it is a bus client itself.
    #[arg(long)]
    pub mode: Option<String>,
    /// Where it may connect to: bus, unrestricted, or HOST:PORT[,HOST:PORT...].
    #[arg(long, value_delimiter = ',')]
    pub egress: Vec<String>,
    /// The program and its arguments; everything after this belongs to it.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "PROGRAM")]
    pub command: Vec<String>,
}

/// An agent that is not wanted any more.
#[derive(Args)]
pub struct Remove {
    /// The agent.
    #[arg(value_name = "AGENT")]
    pub id: AgentId,
    /// Stop it first, if it runs.
    #[arg(long)]
    pub stop: bool,
}

/// Adds or removes an agent.
///
/// # Errors
/// When the configuration with the new agent is not valid, its file exists, or the agent runs.
pub fn run(verb: &Agent, file: &Path) -> Result<(), Failure> {
    if file == Path::new(CONFIG_FILE) {
        out::need_root("change the configuration")?;
    }
    match verb {
        Agent::Add(add) => self::add(add, file),
        Agent::Remove(remove) => self::remove(remove, file),
    }
}

fn add(add: &Add, main: &Path) -> Result<(), Failure> {
    let id = &add.id;
    let path = edit::file_of(main, id);
    let text = text_of(add);
    let mut files = config::read(main).map_err(Failure::config)?;
    if let Some((_, there)) = files.iter().find(|(there, _)| *there == path) {
        return resume_add(main, id, path, *there == text);
    }
    files.push((path.clone(), text.clone()));
    config::parse_here(&files)
        .map_err(|faults| Failure::config(format!("agent {id} is not added: {faults}")))?;
    let readers = readers(main)?;
    let lock = lock(main)?;
    edit::sweep(&path).map_err(Failure::failed)?;
    note(main, What::AgentAdd, id, &path);
    fail::at(Point::AddNoted);
    edit::create(&path, &text, readers).map_err(Failure::failed)?;
    drop(lock);
    out::line(&format!("wrote {}", path.display()))?;
    if applied(main)? {
        out::line(&format!("next: flockctl start {id}"))
    } else {
        out::line(&format!("next: flockctl apply && flockctl start {id}"))
    }
}

/// The file is there. If it is the one that was asked for, an add before may have been broken off:
/// then what it left undone is done. Else nothing is.
fn resume_add(main: &Path, id: &AgentId, path: PathBuf, same: bool) -> Result<(), Failure> {
    let taken = || Failure::failed(edit::EditError::Exists(path));
    if !same || !is_live(main) {
        return Err(taken());
    }
    let config = config::load(main).map_err(Failure::config)?;
    let done = apply::make(&config)?;
    if done.changes.is_empty() {
        return Err(taken());
    }
    apply::tell(&config, &done)?;
    out::line(&format!("{id} was there already, added halfway; next: flockctl start {id}"))
}

/// One at a time changes the files of the installed configuration.
fn lock(main: &Path) -> Result<Option<Lock>, Failure> {
    let installed = main == Path::new(CONFIG_FILE);
    installed.then(Lock::config).transpose().map_err(Failure::failed)
}

/// A configuration in another place is nobody's but its owner's.
fn note(main: &Path, what: What, id: &AgentId, path: &Path) {
    if main == Path::new(CONFIG_FILE) {
        audit::note(what, id.as_str(), &path.display().to_string());
    }
}

/// A configuration in another place is only edited; one that is installed is made true as well.
fn applied(main: &Path) -> Result<bool, Failure> {
    let here = is_live(main);
    if here {
        apply::run(main)?;
    }
    Ok(here)
}

/// Whether this configuration is the one that this machine is made after.
fn is_live(main: &Path) -> bool {
    main == Path::new(CONFIG_FILE) && booted_with_systemd()
}

/// A host that was not booted with systemd runs no agents.
fn booted_with_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Who may read what is written: the operators, where flock is installed.
fn readers(main: &Path) -> Result<Option<u32>, Failure> {
    if main != Path::new(CONFIG_FILE) {
        return Ok(None);
    }
    match Group::from_name(OPERATOR_GROUP) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        Ok(None) => Err(Failure::failed(format!(
            "look up the group {OPERATOR_GROUP}: there is none: install the package ai-flock"
        ))),
        Err(error) => Err(Failure::failed(format!("look up the group {OPERATOR_GROUP}: {error}"))),
    }
}

/// The file: what was asked for, and what else may stand there.
fn text_of(add: &Add) -> String {
    let quoted = |text: &String| toml::Value::String(text.clone()).to_string();
    let list = |texts: &[String]| texts.iter().map(quoted).collect::<Vec<_>>().join(", ");
    let mut out = format!(
        "# Made by flockctl agent add. What does not stand here comes from [defaults] of the main\n\
         # file. Check changes with: flockctl check\n\n[agents.{}]\n",
        add.id
    );
    if let Some(level) = add.level {
        let _ = writeln!(out, "level = {level}");
    }
    if !add.command.is_empty() {
        let _ = writeln!(out, "command = [{}]", list(&add.command));
    }
    if let Some(mode) = &add.mode {
        let _ = writeln!(out, "mode = {}", quoted(mode));
    }
    let _ = match &add.egress[..] {
        [] => Ok(()),
        [word] if word == "bus" || word == "unrestricted" => writeln!(out, "egress = {word:?}"),
        hosts => writeln!(out, "egress = [{}]", list(hosts)),
    };
    out + TEMPLATE
}

/// The keys that people want next.
const TEMPLATE: &str = "\
# limits = { cpu = \"50%\", memory = \"256MiB\", tasks = 50 }
# environment = { NAME = \"value\" }                         # not for secrets
# secret-files = { name = \"/etc/flock/secrets/name\" }      # the agent reads /etc/secrets/name
# read-only-paths = [\"/opt/model\"]
# read-write-paths = [\"/srv/data\"]
# needs = [\"jit\"]                                          # Node.js, Java
";

fn remove(remove: &Remove, main: &Path) -> Result<(), Failure> {
    let id = &remove.id;
    let files = config::read(main).map_err(Failure::config)?;
    let path = match own_file(&files, id) {
        Err(unknown) if !config::places(&files).contains_key(id) => {
            return resume_remove(main, id, unknown);
        }
        found => found?,
    };
    note(main, What::AgentRemove, id, &path);
    fail::at(Point::RemoveNoted);
    leave_systemd(id, remove.stop)?;
    let lock = lock(main)?;
    edit::sweep(&path).map_err(Failure::failed)?;
    edit::remove(&path).map_err(Failure::failed)?;
    drop(lock);
    out::line(&format!("removed {}", path.display()))?;
    stays(id)?;
    if !applied(main)? {
        out::line("next: flockctl apply takes its bus identity away")?;
    }
    Ok(())
}

/// The agent is in no file. If it was one of this host's, a removal before may have been broken off:
/// then what it left undone is done. Else nothing is.
fn resume_remove(main: &Path, id: &AgentId, unknown: Failure) -> Result<(), Failure> {
    let known = is_live(main) && Ledger::load().is_ok_and(|all| all.uids().contains_key(id));
    if !known {
        return Err(unknown);
    }
    let config = config::load(main).map_err(Failure::config)?;
    let done = apply::make(&config)?;
    if done.changes.is_empty() {
        return Err(unknown);
    }
    apply::tell(&config, &done)?;
    out::line(&format!("{id} was removed already, halfway; now it is wholly"))?;
    stays(id)
}

/// What is left of a removed agent, and how it goes.
fn stays(id: &AgentId) -> Result<(), Failure> {
    let data = shared_dir().join("agents").join(id.as_str());
    let log = shared_dir().join("logs").join(format!("{id}.log"));
    let stays = [
        format!("its data stays: rm -r {}", data.display()),
        format!("its log stays: rm {}", log.display()),
        format!("its user {} stays, so that nobody else is given its files", id.user_name()),
    ];
    stays.iter().try_for_each(|line| out::line(line))
}

/// The file that defines this agent and no other.
fn own_file(files: &[(PathBuf, String)], id: &AgentId) -> Result<PathBuf, Failure> {
    let places = config::places(files);
    let Some(place) = places.get(id) else {
        let known: Vec<&str> = places.keys().map(AgentId::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Failure::failed(format!("no agent {id} is configured; there are: {known}")));
    };
    let main = files.first().is_some_and(|(path, _)| *path == place.path);
    let shared = places.values().filter(|other| other.path == place.path).count() > 1;
    if main || shared {
        return Err(Failure::failed(format!(
            "remove {id}: {} holds more than this agent: delete its tables there, from line {} on, \
             then run flockctl apply",
            printable(&place.path.to_string_lossy()),
            place.line
        )));
    }
    Ok(place.path.clone())
}

/// Sees to it that nothing of the agent runs or starts at boot.
fn leave_systemd(id: &AgentId, stop: bool) -> Result<(), Failure> {
    if !booted_with_systemd() {
        return Ok(());
    }
    let (unit, handle) = (id.agent_unit(), id.handle_unit());
    let fail = |error: UnitError| Failure::failed(format!("remove {id}: {error}"));
    out::wait(async {
        let systemd = Systemd::connect().await.map_err(fail)?;
        let rows = systemd.rows(&[&unit, &handle]).await.map_err(fail)?;
        let runs = rows.iter().any(|row| !matches!(row.active.as_str(), "inactive" | "failed"));
        if runs && !stop {
            return Err(Failure::failed(format!(
                "remove {id}: it is running: stop it first (flockctl stop {id}), or use --stop"
            )));
        }
        if runs {
            systemd.stop(&handle).await.map_err(fail)?;
            systemd.stop(&unit).await.map_err(fail)?;
        }
        fail::at(Point::RemoveStopped);
        // Enabled, its handle would fail at every boot.
        systemd.disable(std::slice::from_ref(&handle)).await.map_err(fail)?;
        // A handle that failed would be shown for as long as the host is up.
        systemd.reset_failed(&handle).await.map_err(fail)?;
        systemd.reset_failed(&unit).await.map_err(fail)
    })
}
