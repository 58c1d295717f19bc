//! `[defaults]` and `[agents.<id>]` as written: every value checked by itself, none required.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::channels;
use super::cite::{At, Placed, Report, shown};
use super::fields::{LIST_MAX, by_rule, choice, count, in_range, list, plain, set, size, span};
use super::file::Value;
use super::rules::{egress, names, paths, quantities};
use super::tools::{self, ToolsPart};
use super::{Access, Egress, Input, Mode, Need, RestartPolicy};
use crate::names::{AgentId, Level};

pub(super) const AGENT_KEYS: &[&str] = &[
    "level",
    "command",
    "mode",
    "task",
    "environment",
    "environment-files",
    "secret-files",
    "limits",
    "restart",
    "egress",
    "common",
    "may-request",
    "read-only-paths",
    "read-write-paths",
    "needs",
    "tools",
];
pub(super) const LIMIT_KEYS: &[&str] = &[
    "cpu",
    "memory",
    "swap",
    "tasks",
    "io-weight",
    "open-files",
    "runtime",
    "tmp",
    "message",
    "disk",
    "files",
];
pub(super) const RESTART_KEYS: &[&str] = &["policy", "delay", "max-delay", "attempts", "window"];
pub(super) const TASK_KEYS: &[&str] = &["timeout", "output-limit", "parallel", "input", "keep"];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// What one table says of an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub level: Option<Level>,
    pub command: Option<Placed<Vec<String>>>,
    pub mode: Option<Mode>,
    pub task: TaskPart,
    /// Where `task` stands, if it does.
    pub task_at: Option<At>,
    pub environment: BTreeMap<String, String>,
    pub environment_files: Option<Vec<Placed<PathBuf>>>,
    pub secret_files: BTreeMap<String, Placed<PathBuf>>,
    pub limits: LimitsPart,
    pub restart: RestartPart,
    pub egress: Option<Egress>,
    pub common: Option<Access>,
    pub may_request: Option<Vec<Placed<AgentId>>>,
    pub read_only_paths: Option<Vec<Placed<PathBuf>>>,
    pub read_write_paths: Option<Vec<Placed<PathBuf>>>,
    pub needs: Option<Vec<Need>>,
    pub tools: Option<Placed<ToolsPart>>,
    /// Keys that were there with a value that was refused: nothing is concluded from their absence.
    pub bad: BTreeSet<&'static str>,
}

/// The table `task` as written.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskPart {
    pub timeout: Option<Duration>,
    pub output_limit: Option<u64>,
    pub parallel: Option<u32>,
    pub input: Option<Input>,
    /// Where `input` stands, if it stands in this very table.
    pub input_at: Option<At>,
    pub keep: Option<u32>,
}

/// The table `limits` as written.
#[derive(Clone, Debug, Default)]
pub(super) struct LimitsPart {
    pub cpu: Option<u64>,
    pub memory: Option<u64>,
    pub swap: Option<u64>,
    pub tasks: Option<u64>,
    pub io_weight: Option<u64>,
    pub open_files: Option<u64>,
    /// The inner none is `"infinity"`.
    pub runtime: Option<Option<Duration>>,
    pub tmp: Option<u64>,
    pub message: Option<u64>,
    /// The inner none is `"infinity"`.
    pub disk: Option<Placed<Option<u64>>>,
    /// The inner none is `"infinity"`.
    pub files: Option<Placed<Option<u64>>>,
}

/// The table `restart` as written.
#[derive(Clone, Debug, Default)]
pub(super) struct RestartPart {
    pub policy: Option<RestartPolicy>,
    pub delay: Option<Placed<Duration>>,
    pub max_delay: Option<Placed<Duration>>,
    pub attempts: Option<u32>,
    pub window: Option<Duration>,
}

/// Reads a table that describes an agent.
pub(super) fn read(value: &Value<'_>, report: &mut Report<'_>) -> Option<Part> {
    let mut table = value.keys(report, AGENT_KEYS)?;
    let t = &mut table;
    let task = t.read("task", report, task);
    let mut part = Part {
        level: plain(t.read("level", report, level)),
        command: t.read("command", report, command),
        mode: plain(t.read("mode", report, |v, r| choice(v, r, &MODES))),
        task_at: task.as_ref().map(|task| task.at.clone()),
        task: plain(task).unwrap_or_default(),
        environment: plain(t.read("environment", report, environment)).unwrap_or_default(),
        environment_files: plain(t.read("environment-files", report, source_list)),
        secret_files: plain(t.read("secret-files", report, secret_files)).unwrap_or_default(),
        limits: plain(t.read("limits", report, limits)).unwrap_or_default(),
        restart: plain(t.read("restart", report, restart)).unwrap_or_default(),
        egress: plain(t.read("egress", report, egress_list)),
        common: plain(t.read("common", report, |v, r| choice(v, r, &ACCESS))),
        may_request: plain(t.read("may-request", report, channels::agents)),
        read_only_paths: plain(t.read("read-only-paths", report, readable)),
        read_write_paths: plain(t.read("read-write-paths", report, writable)),
        needs: plain(t.read("needs", report, needs)),
        tools: t.read("tools", report, tools::read),
        bad: BTreeSet::new(),
    };
    part.bad = table.bad;
    Some(part)
}

fn level(value: &Value<'_>, report: &mut Report<'_>) -> Option<Level> {
    const MAY: &str = "0 (workspace, no security boundary) or 1 (process isolation)";
    let number = value.integer(report, i64::MIN..=i64::MAX, MAY)?;
    let level = Level::from_number(number);
    if level.is_none() {
        let why = match number {
            2 => "level 2 (container) is not in this version of flock".to_owned(),
            3 => "level 3 (microVM) is not in this version of flock".to_owned(),
            _ => format!("there is no level {number}"),
        };
        value.refuse(report, why, MAY);
    }
    level
}

const MODES: [(&str, Mode); 3] =
    [("task", Mode::Task), ("json-lines", Mode::JsonLines), ("service", Mode::Service)];
const INPUTS: [(&str, Input); 2] = [("stdin", Input::Stdin), ("argument", Input::Argument)];
const ACCESS: [(&str, Access); 2] =
    [("read-only", Access::ReadOnly), ("read-write", Access::ReadWrite)];
const POLICIES: [(&str, RestartPolicy); 3] = [
    ("never", RestartPolicy::Never),
    ("on-failure", RestartPolicy::OnFailure),
    ("always", RestartPolicy::Always),
];
const NEEDS: [(&str, Need); 1] = [("jit", Need::Jit)];

/// A program and its arguments.
pub(super) fn command(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<String>> {
    const MAY: &str = "a program and its arguments: [\"/usr/bin/python3\", \"/opt/a.py\"]";
    let words = list(value, report, MAY, |v, r| {
        by_rule(v, r, "text on one line; a longer script goes into a file", |text| {
            names::plain_text(text).map(|()| text.to_owned())
        })
    })?;
    let Some(program) = words.first() else {
        value.refuse(report, "it is empty", MAY);
        return None;
    };
    if let Err(why) = paths::absolute(&program.value) {
        let message = format!("{}[0]: {} is refused: {why}", value.path, shown(&program.value));
        report.fault(&program.at, message, "the program's absolute path, such as /usr/bin/python3");
        return None;
    }
    Some(words.into_iter().map(|word| word.value).collect())
}

fn task(value: &Value<'_>, report: &mut Report<'_>) -> Option<TaskPart> {
    let mut t = value.keys(report, TASK_KEYS)?;
    let input = t.read("input", report, |v, r| choice(v, r, &INPUTS));
    Some(TaskPart {
        timeout: plain(span(&mut t, "timeout", report, SECOND..=30 * DAY)),
        output_limit: size(&mut t, "output-limit", report, KIB..=1024 * MIB),
        parallel: count(&mut t, "parallel", report, 1..=1024),
        input_at: input.as_ref().map(|input| input.at.clone()),
        input: plain(input),
        keep: count(&mut t, "keep", report, 1..=100_000),
    })
}

fn limits(value: &Value<'_>, report: &mut Report<'_>) -> Option<LimitsPart> {
    let mut t = value.keys(report, LIMIT_KEYS)?;
    let cpu = |v: &Value<'_>, r: &mut Report<'_>| {
        by_rule(v, r, "1% to 100000% of one core: 50% is half a core", quantities::percent)
    };
    Some(LimitsPart {
        cpu: plain(t.read("cpu", report, cpu)),
        memory: size(&mut t, "memory", report, 16 * MIB..=16 * TIB),
        swap: size(&mut t, "swap", report, 0..=16 * TIB),
        tasks: count(&mut t, "tasks", report, 4..=4_194_304),
        io_weight: count(&mut t, "io-weight", report, 1..=10_000),
        open_files: count(&mut t, "open-files", report, 64..=1_048_576),
        runtime: plain(t.read("runtime", report, runtime)),
        tmp: size(&mut t, "tmp", report, MIB..=TIB),
        message: size(&mut t, "message", report, KIB..=MIB),
        disk: t.read("disk", report, disk),
        files: t.read("files", report, files),
    })
}

/// The inner none is without a limit.
fn disk(value: &Value<'_>, report: &mut Report<'_>) -> Option<Option<u64>> {
    by_rule(value, report, "a size from 1MiB to 16TiB, or \"infinity\"", |text| match text {
        "infinity" => Ok(None),
        text => in_range(quantities::size(text)?, &(MIB..=16 * TIB)).map(Some),
    })
}

/// The inner none is without a limit.
fn files(value: &Value<'_>, report: &mut Report<'_>) -> Option<Option<u64>> {
    const MAY: &str = "a whole number from 64 to 4294967295, or \"infinity\"";
    if value.is_integer() {
        return value.integer(report, 64..=4_294_967_295, MAY)?.try_into().ok().map(Some);
    }
    by_rule(value, report, MAY, |text| match text {
        "infinity" => Ok(None),
        _ => Err("it is not known".to_owned()),
    })
}

/// The inner none is "for ever".
fn runtime(value: &Value<'_>, report: &mut Report<'_>) -> Option<Option<Duration>> {
    by_rule(value, report, "a duration from 1s to 3650d, or \"infinity\"", |text| match text {
        "infinity" => Ok(None),
        text => in_range(quantities::duration(text)?, &(SECOND..=3650 * DAY)).map(Some),
    })
}

fn restart(value: &Value<'_>, report: &mut Report<'_>) -> Option<RestartPart> {
    let mut t = value.keys(report, RESTART_KEYS)?;
    let pause = Duration::from_millis(100)..=DAY;
    Some(RestartPart {
        policy: plain(t.read("policy", report, |v, r| choice(v, r, &POLICIES))),
        delay: span(&mut t, "delay", report, pause.clone()),
        max_delay: span(&mut t, "max-delay", report, pause),
        attempts: count(&mut t, "attempts", report, 1..=10_000),
        window: plain(span(&mut t, "window", report, SECOND..=30 * DAY)),
    })
}

/// Names and values of variables. The values are never shown: people put secrets here.
fn environment(value: &Value<'_>, report: &mut Report<'_>) -> Option<BTreeMap<String, String>> {
    const MAY: &str = "a table: { NAME = \"value\" }";
    let table = value.table(report, MAY)?;
    let faults = report.count();
    let mut variables = BTreeMap::new();
    for (name, value) in table.entries() {
        report.hide(&value.at);
        if let Err(why) = names::variable(name.value) {
            let may = "letters, digits and _, no digit in front";
            report.fault(&name.at, format!("{}: {why}", value.path), may);
        }
        let Some(text) = value.text(report, "\"text\"") else { continue };
        if let Err(why) = names::plain_text(text) {
            value.refuse(report, format!("the value is refused: {why}"), "text on one line");
        }
        variables.insert(name.value.to_owned(), text.to_owned());
    }
    bounded(value, report, variables.len())?;
    (report.count() == faults).then_some(variables)
}

/// Secrets: the name in the agent, and the file on the host.
fn secret_files(
    value: &Value<'_>,
    report: &mut Report<'_>,
) -> Option<BTreeMap<String, Placed<PathBuf>>> {
    let table = value.table(report, "a table: { openai = \"/etc/flock/secrets/openai\" }")?;
    let faults = report.count();
    let mut secrets = BTreeMap::new();
    for (name, value) in table.entries() {
        if let Err(why) = names::secret(name.value) {
            let may = "1 to 64 letters, digits, dots, - and _, no dot in front";
            report.fault(&name.at, format!("{}: {why}", value.path), may);
        }
        if let Some(path) = source(&value, report) {
            let at = value.at.clone();
            secrets.insert(name.value.to_owned(), Placed { value: path, at });
        }
    }
    bounded(value, report, secrets.len())?;
    (report.count() == faults).then_some(secrets)
}

fn bounded(value: &Value<'_>, report: &mut Report<'_>, entries: usize) -> Option<()> {
    if entries > LIST_MAX {
        let may = format!("at most {LIST_MAX} entries");
        value.refuse(report, format!("it has {entries} entries"), &may);
        return None;
    }
    Some(())
}

fn source_list(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<PathBuf>>> {
    set(value, report, "a list of absolute paths", source)
}

/// A file that root reads for the agent.
fn source(value: &Value<'_>, report: &mut Report<'_>) -> Option<PathBuf> {
    path(value, report, "an absolute path, such as /etc/flock/secrets/openai", paths::source)
}

fn readable(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<PathBuf>>> {
    set(value, report, "a list of absolute paths", |v, r| {
        path(v, r, "an absolute path, such as /opt/model", paths::readable)
    })
}

fn writable(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<PathBuf>>> {
    set(value, report, "a list of absolute paths", |v, r| {
        path(v, r, "an absolute path, such as /srv/data", paths::writable)
    })
}

/// A path that obeys a rule, and still does after the symbolic links that lie there today.
pub(super) fn path(
    value: &Value<'_>,
    report: &mut Report<'_>,
    may: &str,
    rule: fn(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    let resolve = report.resolve();
    by_rule(value, report, may, |text| {
        let path = paths::absolute(text)?;
        rule(&path)?;
        match resolve(&path) {
            Some(real) if real != path => match rule(&real) {
                Ok(()) => Ok(path),
                Err(why) => Err(format!("it leads to {}: {why}", shown(&real.to_string_lossy()))),
            },
            _ => Ok(path),
        }
    })
}

fn egress_list(value: &Value<'_>, report: &mut Report<'_>) -> Option<Egress> {
    const MAY: &str = "\"bus\", \"unrestricted\" or a list such as [\"api.example.com:443\"]";
    if !value.is_array() {
        return by_rule(value, report, MAY, |text| match text {
            "bus" => Ok(Egress::Bus),
            "unrestricted" => Ok(Egress::Unrestricted),
            _ => Err("it is not known".to_owned()),
        });
    }
    let may = "host:port, such as api.example.com:443, 192.0.2.1:443 or [2001:db8::1]:443";
    let hosts = set(value, report, MAY, |v, r| by_rule(v, r, may, egress::host_port))?;
    let hosts: Vec<_> = hosts.into_iter().map(|host| host.value).collect();
    // An empty list allows nothing more; it never means "no rule".
    Some(if hosts.is_empty() { Egress::Bus } else { Egress::Hosts(hosts) })
}

fn needs(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Need>> {
    let needs = set(value, report, "a list such as [\"jit\"]", |v, r| choice(v, r, &NEEDS))?;
    Some(needs.into_iter().map(|need| need.value).collect())
}
