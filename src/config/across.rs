//! Rules over several values of an agent, and over several agents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cite::{At, Placed, Report, shown};
use super::part::Part;
use super::rules::paths;
use super::tools;
use super::{AgentConfig, Input, Mode, TASK_WORD};
use crate::names::{AgentId, Level, UidBlock};

/// The rules within one agent, defaults merged in. Only a `whole` configuration can lack a key.
pub(super) fn agent(id: &AgentId, at: &At, part: &Part, whole: bool, report: &mut Report<'_>) {
    if whole && part.command.is_none() && !part.bad.contains("command") {
        let may = "command = [\"/usr/bin/program\", \"argument\"] here or in [defaults]";
        report.fault(at, format!("agent {id} has no command"), may);
    }
    if let (Some(at), Some(Mode::Service)) = (&part.task_at, part.mode) {
        let may = "mode = \"task\", or no task here";
        report.fault(at, format!("agents.{id}.task has no effect in mode \"service\""), may);
    }
    if let (Some(delay), Some(max)) = (&part.restart.delay, &part.restart.max_delay)
        && delay.value > max.value
    {
        let why = format!("it is shorter than restart.delay, {}", report.cite(&delay.at));
        report.fault(&max.at, format!("restart.max-delay: {why}"), "delay or more");
    }
    text_of_the_task(part, report);
    quota(id, part, report);
    both_lists(part, report);
    program(id, part, report);
    tools::across(id, part, report);
}

/// `{task}` stands where a text can be put in its place, and `input` where it means something.
fn text_of_the_task(part: &Part, report: &mut Report<'_>) {
    let mode = part.mode.unwrap_or(Mode::Task);
    if mode == Mode::Service || part.bad.contains("mode") || part.bad.contains("task") {
        return;
    }
    if let (Some(at), Mode::JsonLines) = (&part.task.input_at, mode) {
        let message = "task.input has no effect in mode \"json-lines\"";
        report.fault(at, message, "mode = \"task\", or no input here");
    }
    let Some(command) = &part.command else { return };
    let argument = mode == Mode::Task && part.task.input == Some(Input::Argument);
    for word in command.value.iter().filter(|word| word.contains(TASK_WORD)) {
        let (message, may) = if !argument {
            let why = "the text of a task is not put there";
            let may = "mode = \"task\" with task.input = \"argument\"";
            (format!("command: {TASK_WORD} stands in it, but {why}"), may)
        } else if word != TASK_WORD {
            // A text inside a script would be run as a part of it.
            let why = format!("{TASK_WORD} is only a part of the word {}", shown(word));
            (format!("command: {why}"), "\"{task}\" as a word of its own")
        } else {
            continue;
        };
        report.fault(&command.at, message, may);
        return;
    }
}

/// The kernel counts files by their owner, and agents of level 0 have the same one.
fn quota(id: &AgentId, part: &Part, report: &mut Report<'_>) {
    if part.level != Some(Level::Workspace) {
        return;
    }
    for (key, limit) in [("disk", &part.limits.disk), ("files", &part.limits.files)] {
        if let Some(Placed { value: Some(_), at }) = limit {
            let why = format!("agent {id} has level 0, where all agents share one user");
            let may = format!("level = 1 for {id}, or {key} = \"infinity\" in its limits");
            report.fault(at, format!("limits.{key}: {why}: it would hold none of them"), may);
        }
    }
}

/// No path is read-only and writable at once.
fn both_lists(part: &Part, report: &mut Report<'_>) {
    let read_only: BTreeMap<&Path, &At> =
        part.read_only_paths.iter().flatten().map(|p| (p.value.as_path(), &p.at)).collect();
    for path in part.read_write_paths.iter().flatten() {
        if let Some(other) = read_only.get(path.value.as_path()) {
            let other = report.cite(other);
            let stood = shown(&path.value.to_string_lossy());
            let message = format!("read-write-paths: {stood} is in read-only-paths too, {other}");
            report.fault(&path.at, message, "in one of the two lists");
        }
    }
}

/// The program lies where the agent can see it.
fn program(id: &AgentId, part: &Part, report: &mut Report<'_>) {
    let unsure = ["command", "read-only-paths", "read-write-paths"];
    let Some(command) = &part.command else { return };
    if unsure.iter().any(|key| part.bad.contains(key)) {
        return;
    }
    let program = Path::new(command.value.first().map_or("", String::as_str));
    let mut given = part.read_only_paths.iter().chain(&part.read_write_paths).flatten();
    if paths::visible(program, id) || given.any(|path| program.starts_with(&path.value)) {
        return;
    }
    let message = format!("command: the agent does not see {}", shown(&program.to_string_lossy()));
    let may = match program.parent().filter(|folder| paths::readable(folder).is_ok()) {
        Some(folder) => {
            let folder = shown(&folder.to_string_lossy());
            format!("a program below /usr, or read-only-paths = [{folder}]")
        }
        None => "a program below /usr, or in a directory that read-only-paths names".to_owned(),
    };
    report.fault(&command.at, message, may);
}

/// What root reads for an agent, and the program of the bus, are not in any agent's hands.
pub(super) fn sources(
    agents: &[(AgentId, Part)],
    server: Option<&Placed<PathBuf>>,
    report: &mut Report<'_>,
) {
    let writable: BTreeMap<&Path, &AgentId> = agents
        .iter()
        .flat_map(|(id, part)| {
            part.read_write_paths.iter().flatten().map(move |path| (path.value.as_path(), id))
        })
        .collect();
    let files = agents.iter().flat_map(|(_, part)| {
        part.environment_files.iter().flatten().chain(part.secret_files.values())
    });
    for file in files.chain(server) {
        let owner = file.value.ancestors().find_map(|above| writable.get_key_value(above));
        if let Some((path, id)) = owner {
            let (stood, path) = (file.value.to_string_lossy(), path.to_string_lossy());
            let why = format!("agent {id} may write {}", shown(&path));
            let message = format!("flock itself uses {}, but {why}", shown(&stood));
            report.fault(&file.at, message, "a place that no agent may write");
        }
    }
}

/// Every agent of level 1 and above needs a user id of its own.
pub(super) fn users(
    block: UidBlock,
    places: &[At],
    agents: &BTreeMap<AgentId, AgentConfig>,
    report: &mut Report<'_>,
) {
    // The first id of the block is the shared user's.
    let room = usize::try_from(block.last - block.first).unwrap_or(usize::MAX);
    let own_user = |(agent, _): &(&AgentConfig, &At)| agent.level >= Level::Process;
    if let Some((_, at)) = agents.values().zip(places).filter(own_user).nth(room) {
        let message = format!("there are more than {room} agents with a user of their own");
        report.fault(at, message, format!("a larger host.uid-block than {block}"));
    }
}
