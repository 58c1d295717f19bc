//! What both forms of the matrix owe to whoever reads them.

use std::collections::BTreeSet;

use super::checks::{Vantage, find};
use super::matrix::{Cell, Matrix, Measured};
use super::verdict::{Layer, Verdict};
use super::{page, table};
use crate::names::{AgentId, Level};
use crate::probe::wire::Outcome;

const HOSTILE: &str = "</td><script>alert(1)</script>\x1b]0;x\x07\u{202e}\"'&\n\u{9b}31m";

fn cell(verdict: Verdict, target: &str, evidence: &str) -> Cell {
    let promised = verdict != Verdict::NotPromised;
    Cell {
        check: find("file.read").unwrap(),
        vantage: Vantage::Sandbox,
        targets: vec![target.to_owned()],
        promised,
        why_not: (!promised).then_some("level 0 does not promise it"),
        verdict,
        layer: Some(Layer::Mount),
        measured: Some(Outcome::Done),
        errno: 2,
        evidence: evidence.to_owned(),
        control: HOSTILE.to_owned(),
    }
}

fn matrix(verdicts: &[Verdict]) -> Matrix {
    let agent = |name: &str, other: &str| {
        let mut agent = Measured::new(&AgentId::parse(name).unwrap(), Level::Process, true);
        agent.cells = verdicts.iter().map(|v| cell(*v, other, HOSTILE)).collect();
        agent.cells.push(cell(Verdict::Violation, HOSTILE, "x"));
        agent.fault = Some(HOSTILE.to_owned());
        agent
    };
    Matrix {
        began: "2026-01-01T00:00:00Z".to_owned(),
        millis: 1234,
        agents: vec![agent("a", "b"), agent("b", "a")],
        lower: Vec::new(),
    }
}

const ALL: [Verdict; 6] = [
    Verdict::Blocked,
    Verdict::Contained,
    Verdict::NotHere,
    Verdict::NotPromised,
    Verdict::Unknown,
    Verdict::Violation,
];

#[test]
fn no_text_of_an_agent_reaches_a_terminal_or_a_browser() {
    let matrix = matrix(&ALL);
    let plain = table::render(&matrix, false);
    let odd = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
    assert_eq!(plain.chars().find(odd), None, "{plain}");
    let coloured = table::render(&matrix, true);
    let codes: BTreeSet<&str> =
        coloured.split('\x1b').skip(1).map(|rest| rest.split_once('m').unwrap().0).collect();
    assert!(codes.is_subset(&BTreeSet::from(["[0", "[32", "[33", "[1;31", "[2"])), "{codes:?}");
    let page = page::render(&matrix);
    assert_eq!(page.chars().find(odd), None);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
    for tag in ["td", "tr", "table", "details", "p", "th"] {
        let count = |form: String| page.matches(&form).count();
        let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
        assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
    }
}

#[test]
fn only_what_is_whole_is_called_good() {
    for verdict in ALL {
        let mut matrix = matrix(&[Verdict::Blocked, verdict]);
        for agent in &mut matrix.agents {
            agent.cells.pop();
            agent.fault = None;
        }
        assert_eq!(matrix.is_good(), verdict.is_good(), "{verdict:?}");
        matrix.agents[0].fault = Some("no report".to_owned());
        assert!(!matrix.is_good());
    }
    // Nothing measured is not good.
    let empty = Matrix { began: String::new(), millis: 0, agents: Vec::new(), lower: Vec::new() };
    assert!(!empty.is_good());
    let mut nothing = matrix(&[]);
    nothing.agents.iter_mut().for_each(|a| {
        a.cells.clear();
        a.fault = None;
    });
    assert!(!nothing.is_good());
}

#[test]
fn columns_stand_under_their_heads() {
    let text = table::render(&matrix(&[Verdict::Blocked]), false);
    let lines: Vec<&str> = text.lines().take(3).collect();
    let at = lines[0].find("FILES").unwrap();
    for line in &lines[1..] {
        assert!(line[..at].ends_with("  ") && line[at..].starts_with("1 of 2"), "{text}");
    }
}
