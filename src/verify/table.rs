//! The matrix for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::checks::{Area, Vantage};
use super::matrix::{Cell, Matrix, Measured};
use super::verdict::Verdict;
use crate::probe::wire::Outcome;
use crate::text::printable;

/// More agents would not fit side by side.
const GRID_MAX: usize = 16;
/// So many faults of one agent are shown in full; `--json` has them all.
const FAULTS_MAX: usize = 20;

/// A colour of the terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colour {
    Plain,
    Green,
    Yellow,
    Red,
    Dim,
}

impl Colour {
    fn of(verdict: Option<Verdict>) -> Self {
        match verdict {
            Some(Verdict::Blocked | Verdict::Contained) => Self::Green,
            Some(Verdict::Violation) => Self::Red,
            Some(Verdict::Unknown) => Self::Yellow,
            Some(Verdict::NotPromised | Verdict::NotHere) | None => Self::Dim,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[1;31m",
            Self::Dim => "\x1b[2m",
        }
    }
}

type Text = (String, Colour);

/// The whole report. Nothing of it is long, and no text in it steers the terminal.
#[must_use]
pub fn render(matrix: &Matrix, colour: bool) -> String {
    let mut out = columns(&summary(matrix), colour);
    if (2..=GRID_MAX).contains(&matrix.agents.len()) {
        out.push_str("\nagent (row) against agent (column)\n");
        out.push_str(&columns(&grid(matrix), colour));
    }
    faults(&mut out, matrix, colour);
    open(&mut out, matrix);
    out.push('\n');
    for agent in matrix.all() {
        let (line, shade) = verdict_line(agent);
        let _ = writeln!(out, "{}", paint(&line, shade, colour));
    }
    let _ = writeln!(
        out,
        "\nmeasured {} agents in {}.{} s; what the table means: man flock",
        matrix.agents.len(),
        matrix.millis / 1000,
        matrix.millis % 1000 / 100
    );
    out
}

/// One row for each agent, one column for each area that was looked at.
fn summary(matrix: &Matrix) -> Vec<Vec<Text>> {
    let looked = |area: &Area| matrix.all().any(|a| a.worst(Some(*area)).is_some());
    let areas: Vec<Area> = Area::ALL.into_iter().filter(looked).collect();
    let head = ["AGENT".to_owned(), "LEVEL".to_owned()].into_iter();
    let head = head.chain(areas.iter().map(|area| area.word().to_uppercase()));
    let mut rows = vec![head.map(|text| (text, Colour::Plain)).collect::<Vec<_>>()];
    for agent in matrix.all() {
        let name = (agent.name(), Colour::Plain);
        let mut row = vec![name, (agent.level.to_string(), Colour::Plain)];
        row.extend(areas.iter().map(|area| count(agent, *area)));
        rows.push(row);
    }
    rows
}

/// `24`; `3 of 24 FAILED`; `2 of 24 unknown`; a dash where nothing is promised.
fn count(agent: &Measured, area: Area) -> Text {
    let of = |verdict| agent.count(Some(area), verdict);
    let good = of(Verdict::Blocked) + of(Verdict::Contained);
    let (bad, unknown) = (of(Verdict::Violation), of(Verdict::Unknown));
    let all = good + bad + unknown;
    let shade = Colour::of(agent.worst(Some(area)).filter(|_| all > 0).map(|worst| match worst {
        Verdict::NotPromised | Verdict::NotHere => Verdict::Blocked,
        worst => worst,
    }));
    let text = match (all, bad, unknown) {
        (0, ..) => "-".to_owned(),
        (_, 0, 0) => format!("{good} held"),
        (_, 0, _) => format!("{unknown} of {all} unknown"),
        _ => format!("{bad} of {all} BROKEN"),
    };
    (text, shade)
}

fn grid(matrix: &Matrix) -> Vec<Vec<Text>> {
    let names = || matrix.agents.iter().map(|a| (a.agent.to_string(), Colour::Plain));
    let mut rows = vec![std::iter::once((String::new(), Colour::Plain)).chain(names()).collect()];
    for agent in &matrix.agents {
        let mut row: Vec<Text> = vec![(agent.agent.to_string(), Colour::Plain)];
        for target in &matrix.agents {
            row.push(if target.agent == agent.agent {
                (".".to_owned(), Colour::Dim)
            } else {
                let worst = agent.against(target.agent.as_str());
                (worst.map_or("unknown", Verdict::word).to_owned(), Colour::of(worst))
            });
        }
        rows.push(row);
    }
    rows
}

fn faults(out: &mut String, matrix: &Matrix, colour: bool) {
    for agent in matrix.all() {
        if let Some(fault) = &agent.fault {
            let line = format!("{}: not measured: {}", agent.name(), printable(fault));
            let _ = writeln!(out, "\n{}", paint(&line, Colour::Yellow, colour));
        }
        let bad: Vec<&Cell> = agent.cells.iter().filter(|c| !c.verdict.is_good()).collect();
        if bad.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{}:", agent.name());
        for cell in bad.iter().take(FAULTS_MAX) {
            let line = format!("  {:9}  {}", cell.verdict.word(), describe(cell));
            let _ = writeln!(out, "{}", paint(&line, Colour::of(Some(cell.verdict)), colour));
            let _ = writeln!(
                out,
                "             measured: {}; control: {}",
                printable(&cell.evidence),
                printable(&cell.control)
            );
        }
        if bad.len() > FAULTS_MAX {
            let _ = writeln!(out, "  and {} more: --json shows them", bad.len() - FAULTS_MAX);
        }
    }
}

/// `read another agent's file (agent-2, agent-3)`
fn describe(cell: &Cell) -> String {
    let few: Vec<String> = cell.targets.iter().take(4).map(|t| printable(t)).collect();
    let more = match cell.targets.len() {
        n if n > 4 => format!(" and {} more", n - 4),
        _ => String::new(),
    };
    let alone = match cell.vantage {
        Vantage::Sandbox => "",
        Vantage::User => ", by its user alone",
    };
    format!("{} [{}] ({}{more}{alone})", cell.check.words, cell.check.id, few.join(", "))
}

/// What is open because nobody promised that it is closed.
fn open(out: &mut String, matrix: &Matrix) {
    let mut lines: BTreeMap<(Option<u8>, String), Vec<&str>> = BTreeMap::new();
    let lowered = |agent: &Measured| agent.lowered.then_some(agent.level);
    for agent in matrix.all() {
        let open = |c: &&Cell| {
            c.verdict == Verdict::NotPromised
                && c.measured == Some(Outcome::Done)
                && c.vantage == Vantage::Sandbox
        };
        for cell in agent.cells.iter().filter(open) {
            let line = format!("{}: {}", cell.check.words, cell.why_not.unwrap_or_default());
            let agents = lines.entry((lowered(agent), line)).or_default();
            if agents.last() != Some(&agent.agent.as_str()) {
                agents.push(agent.agent.as_str());
            }
        }
    }
    if lines.is_empty() {
        return;
    }
    out.push_str("\nopen, and not promised to be closed\n");
    for ((level, line), agents) in lines {
        let at = level.map(|level| format!(" at level {level}")).unwrap_or_default();
        let count = matrix.all().filter(|agent| lowered(agent) == level).count();
        let who = match agents.len() == count {
            true => "all agents".to_owned(),
            false if agents.len() > 4 => format!("{} agents", agents.len()),
            false => agents.join(", "),
        };
        let _ = writeln!(out, "  {who}{at}: {line}");
    }
}

/// One line for each agent, with the honest word for its level.
fn verdict_line(agent: &Measured) -> Text {
    let of = |verdict| agent.count(None, verdict);
    let (held, broken) = (of(Verdict::Blocked) + of(Verdict::Contained), of(Verdict::Violation));
    let unknown = of(Verdict::Unknown);
    let idle = if agent.runs || agent.lowered { "" } else { ", it does not run now" };
    let what = match (agent.is_good(), broken) {
        (true, _) => format!("every promise was measured and held: {held}"),
        (false, 0) => format!("not everything could be measured: {unknown} unknown, {held} held"),
        (false, _) => format!("BROKEN: {broken} promises did not hold, {held} held"),
    };
    let shade = match (agent.is_good(), broken) {
        (true, _) => Colour::Green,
        (false, 0) => Colour::Yellow,
        (false, _) => Colour::Red,
    };
    (format!("{}: level {}, {}: {what}{idle}", agent.agent, agent.level, agent.boundary), shade)
}

/// Aligned columns; colours do not count.
fn columns(rows: &[Vec<Text>], colour: bool) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, (text, _)) in row.iter().enumerate() {
            let width = text.chars().count();
            match widths.get_mut(index) {
                Some(old) => *old = width.max(*old),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((text, shade), width) in row.iter().zip(&widths) {
            let blanks = " ".repeat(width - text.chars().count() + 2);
            let _ = write!(line, "{}{blanks}", paint(text, *shade, colour));
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn paint(text: &str, shade: Colour, colour: bool) -> String {
    match (colour, shade) {
        (false, _) | (_, Colour::Plain) => text.to_owned(),
        _ => format!("{}{text}\x1b[0m", shade.code()),
    }
}
