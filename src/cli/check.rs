//! `flockctl check`: the daemon's own loader, and what an operator should know of the result.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::cli::{Failure, out};
use crate::config::{self, AgentConfig, Config, Egress, HostPort};
use crate::names::Level;
use crate::plan;

/// Checks `path` and the files beside it.
///
/// # Errors
/// All faults of all files, exit code 78 (EX_CONFIG).
pub fn run(path: &Path) -> Result<(), Failure> {
    let config = config::load(path).map_err(Failure::config)?;
    out::bytes(summary(&config).as_bytes())?;
    let mut all = warnings(&config).into_iter().chain(missing(&config));
    all.try_for_each(|warning| out::line(&format!("warning: {warning}")))
}

/// The number of agents, and one line for each.
fn summary(config: &Config) -> String {
    let mut out = match config.agents.len() {
        0 => "ok: no agents\n".to_owned(),
        1 => "ok: 1 agent\n".to_owned(),
        number => format!("ok: {number} agents\n"),
    };
    let width = config.agents.keys().map(|id| id.as_str().len()).max().unwrap_or(0);
    for (id, agent) in &config.agents {
        let (number, word) = (agent.level.number(), agent.level.word());
        let egress = egress(&agent.egress);
        out += &format!("  {:width$}  level {number}, {word}; egress: {egress}\n", id.as_str());
    }
    out
}

fn egress(egress: &Egress) -> String {
    match egress {
        Egress::Bus => "the bus only".to_owned(),
        Egress::Unrestricted => "unrestricted".to_owned(),
        Egress::Hosts(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(HostPort::to_string).collect();
            format!("the bus, {}", hosts.join(", "))
        }
    }
}

/// What is allowed and weakens a boundary. The same thing said of several agents is said once.
fn warnings(config: &Config) -> Vec<String> {
    let mut said: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (id, agent) in &config.agents {
        let mut lines = plan::loosened(agent);
        if agent.level == Level::Workspace {
            lines.push("level 0 is no security boundary: agents of it share one user".to_owned());
        }
        for line in lines {
            said.entry(line).or_default().push(id.as_str());
        }
    }
    let mut all: Vec<String> =
        said.into_iter().map(|(line, ids)| format!("{}: {line}", ids.join(", "))).collect();
    if config.host.allow_unenforced_limits {
        all.push(
            "host.unenforced-limits: agents run without the limits that this host lacks".to_owned(),
        );
    }
    let block = config.host.uid_block;
    if block.first <= LOGIN_LAST {
        all.push(format!(
            "host.uid-block {block} overlaps 1000-{LOGIN_LAST}, from which people's accounts are taken"
        ));
    }
    all
}

/// The last id that Debian gives to people and systemd to their home directories.
const LOGIN_LAST: u32 = 60_705;

/// Files of the host that the configuration names and that are not there, or are no program.
fn missing(config: &Config) -> Vec<String> {
    let mut all = Vec::new();
    if !config.agents.is_empty() {
        all.extend(no_program(&config.bus.server).map(|why| format!("bus.server: {why}")));
    }
    for (id, agent) in &config.agents {
        let program = agent.command.first().map(Path::new);
        // What lies in the shared tree is the agent's to put there.
        let program = program.filter(|path| !path.starts_with("/shared"));
        let lines = program.and_then(no_program).into_iter().chain(named(agent));
        all.extend(lines.map(|why| format!("{id}: {why}")));
    }
    all
}

fn named(agent: &AgentConfig) -> impl Iterator<Item = String> {
    let files = agent.environment_files.iter().chain(agent.secret_files.values());
    let paths = files.chain(&agent.read_only_paths).chain(&agent.read_write_paths);
    paths.filter(|path| is_missing(path)).map(|path| format!("{} does not exist", path.display()))
}

/// Whether it is certain that nothing is there; without the right to look it is not.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn no_program(path: &Path) -> Option<String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(file) if file.is_dir() => Some(format!("{shown} is a directory, not a program")),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => {
            Some(format!("{shown} is not executable: chmod +x"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Some(format!("{shown} does not exist"))
        }
        _ => None,
    }
}
