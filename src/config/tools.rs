//! `[agents.<id>.tools]`: which programs the command may use, with which arguments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Mode;
use super::cite::{Placed, Report, shown};
use super::fields::{by_rule, choice, list, plain, set, size, span};
use super::file::Value;
use super::part::Part;
use super::rules::paths;
use crate::names::AgentId;
use crate::tools::shape::Shape;
use crate::tools::{Action, Rules, Tool, check_name};

const TOOL_KEYS: &[&str] =
    &["command", "decision", "allow", "ask", "deny", "timeout", "output-limit", "ask-timeout"];
const DECISIONS: [(&str, Action); 3] =
    [("allow", Action::Allow), ("ask", Action::Ask), ("deny", Action::Deny)];

/// Most tools of one agent, and most shapes of one list.
const TOOLS_MAX: usize = 64;
const SHAPES_MAX: usize = 64;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// The table `tools` as written.
#[derive(Clone, Debug, Default)]
pub(super) struct ToolsPart {
    direct: Option<Vec<Placed<PathBuf>>>,
    tools: BTreeMap<String, Placed<Tool>>,
}

impl ToolsPart {
    /// These tools, completed from the defaults; a tool of the same name is replaced whole.
    pub(super) fn over(self, base: Self) -> Self {
        let mut tools = base.tools;
        tools.extend(self.tools);
        Self { direct: self.direct.or(base.direct), tools }
    }

    /// The rules without their places.
    pub(super) fn config(&self) -> Rules {
        let tool = |(name, tool): (&String, &Placed<Tool>)| (name.clone(), tool.value.clone());
        Rules {
            direct: self.direct.iter().flatten().map(|path| path.value.clone()).collect(),
            tools: self.tools.iter().map(tool).collect(),
        }
    }
}

/// Reads the table: `direct`, and a table for each tool.
pub(super) fn read(value: &Value<'_>, report: &mut Report<'_>) -> Option<ToolsPart> {
    const MAY: &str = "tables such as tools.git = { command = [\"/usr/bin/git\"] }";
    let mut table = value.table(report, MAY)?;
    let faults = report.count();
    let mut part =
        ToolsPart { direct: plain(table.read("direct", report, direct)), tools: BTreeMap::new() };
    for (name, value) in table.entries() {
        if name.value == "direct" {
            continue;
        }
        if let Err(why) = check_name(name.value) {
            let may = "1 to 32 letters, digits, dots, +, - and _";
            report.fault(&name.at, format!("{}: {why}", value.path), may);
        }
        if let Some(tool) = tool(&value, report) {
            part.tools.insert(name.value.to_owned(), Placed { value: tool, at: value.at.clone() });
        }
    }
    if part.tools.len() > TOOLS_MAX {
        let may = format!("at most {TOOLS_MAX} tools");
        value.refuse(report, format!("it has {} tools", part.tools.len()), &may);
    }
    (report.count() == faults).then_some(part)
}

fn direct(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<PathBuf>>> {
    const MAY: &str = "a list of programs such as [\"/bin/sh\", \"/usr/bin/env\"]";
    set(value, report, MAY, |v, r| {
        by_rule(v, r, "a program's absolute path, such as /bin/sh", paths::absolute)
    })
}

fn tool(value: &Value<'_>, report: &mut Report<'_>) -> Option<Tool> {
    let mut t = value.keys(report, TOOL_KEYS)?;
    let command = t.read("command", report, super::part::command);
    if command.is_none() && !t.bad.contains("command") {
        let may = "command = [\"/usr/bin/program\"]";
        value.refuse(report, "it has no command", may);
    }
    let decision = t.read("decision", report, |v, r| choice(v, r, &DECISIONS));
    let deny = t.read("deny", report, shapes);
    let ask = t.read("ask", report, shapes);
    let allow = t.read("allow", report, shapes);
    let timeout = span(&mut t, "timeout", report, SECOND..=DAY);
    let output_limit = size(&mut t, "output-limit", report, KIB..=64 * MIB);
    let ask_timeout = span(&mut t, "ask-timeout", report, SECOND..=DAY);
    if let (Some(deny), None, None, None) = (&deny, &decision, &ask, &allow)
        && !t.bad.iter().any(|key| ["decision", "ask", "allow"].contains(key))
    {
        let message = format!("{}.deny alone allows nothing", value.path);
        report.fault(&deny.at, message, "allow = [...] beside it, or decision = \"allow\"");
    }
    let shaped = deny.is_some() || ask.is_some() || allow.is_some();
    let rest = plain(decision).unwrap_or(if shaped { Action::Deny } else { Action::Allow });
    let seconds = |span: Option<Placed<Duration>>, default| {
        plain(span).map_or(default, |s| s.as_secs().max(1))
    };
    Some(Tool {
        command: plain(command)?,
        deny: plain(deny).unwrap_or_default(),
        ask: plain(ask).unwrap_or_default(),
        allow: plain(allow).unwrap_or_default(),
        rest,
        timeout: seconds(timeout, 60),
        output_limit: output_limit.unwrap_or(64 * KIB),
        ask_timeout: seconds(ask_timeout, 600),
    })
}

/// A list of shapes, each a list of patterns.
fn shapes(value: &Value<'_>, report: &mut Report<'_>) -> Option<Vec<Shape>> {
    const MAY: &str = "a list of argument lists such as [[\"status\"], [\"log\", \"**\"]]";
    let shapes = list(value, report, MAY, |value, report| {
        let words =
            list(value, report, "the arguments, such as [\"push\", \"origin\", \"*\"]", |v, r| {
                v.text(r, "one argument; * in it stands for any characters").map(str::to_owned)
            })?;
        let places: Vec<_> = words.iter().map(|word| word.at.clone()).collect();
        let texts: Vec<_> = words.into_iter().map(|word| word.value).collect();
        let stood: Vec<_> = texts.iter().map(|text| shown(text)).collect();
        match Shape::new(texts) {
            Ok(shape) => Some(shape),
            Err((at, why)) => {
                let message = format!("{}[{at}]: {} is refused: {why}", value.path, stood[at]);
                let may = "words; * for any characters, ** or -** as the last word for the rest";
                report.fault(&places[at], message, may);
                None
            }
        }
    })?;
    if shapes.len() > SHAPES_MAX {
        let may = format!("at most {SHAPES_MAX} shapes");
        value.refuse(report, format!("it has {} entries", shapes.len()), &may);
        return None;
    }
    Some(shapes.into_iter().map(|shape| shape.value).collect())
}

/// The rules over tools and other values: `flock-agent` must be there to decide, and the agent must
/// see a tool's program and not be able to change it.
pub(super) fn across(id: &AgentId, part: &Part, report: &mut Report<'_>) {
    let Some(tools) = &part.tools else { return };
    if part.mode == Some(Mode::Service) {
        let message = format!("agents.{id}.tools has no effect in mode \"service\"");
        report.fault(&tools.at, message, "mode = \"task\" or \"json-lines\", or no tools here");
        return;
    }
    let unsure = ["read-only-paths", "read-write-paths", "common"];
    if unsure.iter().any(|key| part.bad.contains(key)) {
        return;
    }
    for direct in tools.value.direct.iter().flatten() {
        program(id, part, "direct", &direct.value, &direct.at, report);
    }
    for (name, tool) in &tools.value.tools {
        let path = Path::new(tool.value.command.first().map_or("", String::as_str));
        program(id, part, &format!("{name}.command"), path, &tool.at, report);
    }
}

fn program(
    id: &AgentId,
    part: &Part,
    key: &str,
    path: &Path,
    at: &super::cite::At,
    report: &mut Report<'_>,
) {
    let (stood, what) = (shown(&path.to_string_lossy()), format!("agents.{id}.tools.{key}"));
    let mut written = part.read_write_paths.iter().flatten();
    if path.starts_with("/shared") || written.any(|given| path.starts_with(&given.value)) {
        let message = format!("{what}: agents can change {stood}");
        report.fault(at, message, "a program that no agent can write");
        return;
    }
    let mut given = part.read_only_paths.iter().flatten();
    if !paths::visible(path, id) && !given.any(|given| path.starts_with(&given.value)) {
        let message = format!("{what}: the agent does not see {stood}");
        let may = "a program below /usr, or in a directory that read-only-paths names";
        report.fault(at, message, may);
    }
}
