//! The matrix as one HTML page that needs nothing else: no script, no font, no picture.

use std::fmt::Write as _;

use super::checks::{Area, Vantage};
use super::matrix::{Cell, Matrix, Measured};
use super::verdict::Verdict;
use crate::text::printable;

/// The look. Colours are never the only sign: every cell has its word as well.
const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1c2430;background:#fff}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p.sub{color:#5a6675;margin:.2rem 0 1.5rem}\
table{border-collapse:collapse;font-size:.86rem}th,td{padding:.35rem .6rem;border:1px solid #d8dee6;text-align:left}\
thead th{background:#f3f5f8;position:sticky;top:0}td.n{text-align:center}\
.blocked,.contained{background:#e2f4e6;color:#14532d}.violation{background:#b42318;color:#fff;font-weight:700}\
.unknown{background:#fdf0c8;color:#6b4a00}.not-promised{background:#eef0f3;color:#5a6675}.not-here{color:#8b95a3}\
.self{background:#fafbfc;color:#c3cad3}details{margin:.6rem 0}summary{cursor:pointer;font-weight:600;padding:.3rem 0}\
code{font-size:.84em;word-break:break-word}.wrap{overflow-x:auto}.line{margin:.25rem 0;padding:.4rem .7rem;border-radius:.3rem}";

/// The whole page. Every text in it is escaped, whoever it came from.
#[must_use]
pub fn render(matrix: &Matrix) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>flock verify</title>\
         <style>{STYLE}</style></head><body>\n<h1>What each agent was kept from</h1>\n\
         <p class=\"sub\">Measured {} in {}.{} s, each attempt with a control. A promise that could \
         not be measured counts as unknown, never as blocked.</p>\n",
        escape(&matrix.began),
        matrix.millis / 1000,
        matrix.millis % 1000 / 100
    );
    for agent in matrix.all() {
        line(&mut out, agent);
    }
    areas(&mut out, matrix);
    if matrix.agents.len() > 1 {
        grid(&mut out, matrix);
    }
    out.push_str("<h2>Every check</h2>\n");
    for agent in matrix.all() {
        detail(&mut out, agent);
    }
    out.push_str("</body></html>\n");
    out
}

/// Text inside an element or an attribute in quotes.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Blocked => "blocked",
        Verdict::Contained => "contained",
        Verdict::NotHere => "not-here",
        Verdict::NotPromised => "not-promised",
        Verdict::Unknown => "unknown",
        Verdict::Violation => "violation",
    }
}

fn line(out: &mut String, agent: &Measured) {
    let of = |verdict| agent.count(None, verdict);
    let held = of(Verdict::Blocked) + of(Verdict::Contained);
    let (broken, unknown) = (of(Verdict::Violation), of(Verdict::Unknown));
    let (kind, what) = match (agent.is_good(), broken) {
        (true, _) => ("blocked", format!("every promise was measured and held: {held}")),
        (false, 0) => ("unknown", format!("{unknown} promises could not be measured, {held} held")),
        (false, _) => ("violation", format!("{broken} promises did not hold, {held} held")),
    };
    let fault = agent.fault.as_deref().map(|f| format!(" ({f})")).unwrap_or_default();
    let _ = writeln!(
        out,
        "<p class=\"line {kind}\"><b>{}</b>: level {}, {}: {what}{}</p>",
        escape(&agent.name()),
        agent.level,
        escape(agent.boundary),
        escape(&fault)
    );
}

fn areas(out: &mut String, matrix: &Matrix) {
    let looked = |area: &Area| matrix.all().any(|a| a.worst(Some(*area)).is_some());
    let areas: Vec<Area> = Area::ALL.into_iter().filter(looked).collect();
    out.push_str("<h2>Agent × resource</h2>\n<div class=\"wrap\"><table><thead><tr><th>agent</th>");
    for area in &areas {
        let _ = write!(out, "<th>{}</th>", area.word());
    }
    out.push_str("</tr></thead><tbody>\n");
    for agent in matrix.all() {
        let _ = write!(out, "<tr><th>{}</th>", escape(&agent.name()));
        for area in &areas {
            area_cell(out, agent, *area);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

fn area_cell(out: &mut String, agent: &Measured, area: Area) {
    let of = |verdict| agent.count(Some(area), verdict);
    let good = of(Verdict::Blocked) + of(Verdict::Contained);
    let (bad, unknown) = (of(Verdict::Violation), of(Verdict::Unknown));
    let (kind, text) = match (good + bad + unknown, bad, unknown) {
        (0, ..) => ("not-promised", "nothing promised".to_owned()),
        (_, 0, 0) => ("blocked", format!("{good} held")),
        (all, 0, _) => ("unknown", format!("{unknown} of {all} unknown")),
        (all, ..) => ("violation", format!("{bad} of {all} broken")),
    };
    let _ = write!(out, "<td class=\"n {kind}\">{text}</td>");
}

fn grid(out: &mut String, matrix: &Matrix) {
    out.push_str(
        "<h2>Agent (row) × agent (column)</h2>\n<div class=\"wrap\"><table><thead><tr><th></th>",
    );
    for agent in &matrix.agents {
        let _ = write!(out, "<th>{}</th>", escape(agent.agent.as_str()));
    }
    out.push_str("</tr></thead><tbody>\n");
    for agent in &matrix.agents {
        let _ = write!(out, "<tr><th>{}</th>", escape(agent.agent.as_str()));
        for target in &matrix.agents {
            if target.agent == agent.agent {
                out.push_str("<td class=\"n self\">·</td>");
                continue;
            }
            let worst = agent.against(target.agent.as_str()).unwrap_or(Verdict::Unknown);
            let _ = write!(out, "<td class=\"n {}\">{}</td>", class(worst), worst.word());
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

fn detail(out: &mut String, agent: &Measured) {
    let opened = if agent.is_good() { "" } else { " open" };
    let _ = writeln!(
        out,
        "<details{opened}><summary>{}</summary><div class=\"wrap\"><table><thead><tr><th>verdict</th>\
         <th>what was tried</th><th>against</th><th>stopped by</th><th>measured</th><th>control</th>\
         </tr></thead><tbody>",
        escape(&agent.name())
    );
    for cell in &agent.cells {
        row(out, cell);
    }
    out.push_str("</tbody></table></div></details>\n");
}

fn row(out: &mut String, cell: &Cell) {
    let alone = match cell.vantage {
        Vantage::Sandbox => "",
        Vantage::User => " (by its user alone)",
    };
    let why = cell.why_not.map(|why| format!(": {why}")).unwrap_or_default();
    let targets: Vec<&str> = cell.targets.iter().take(12).map(String::as_str).collect();
    let more = match cell.targets.len() {
        n if n > 12 => format!(" and {} more", n - 12),
        _ => String::new(),
    };
    let _ = writeln!(
        out,
        "<tr><td class=\"{}\">{}{}</td><td>{}{alone}<br><code>{}</code></td><td>{}{more}</td>\
         <td>{}</td><td><code>{}</code></td><td>{}</td></tr>",
        class(cell.verdict),
        cell.verdict.word(),
        escape(&why),
        escape(cell.check.words),
        escape(cell.check.id),
        escape(&targets.join(", ")),
        cell.layer.map_or("", |layer| layer.word()),
        escape(&cell.evidence),
        escape(&cell.control)
    );
}
