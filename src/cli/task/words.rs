//! A record in words for people: outcome, times, what was used up.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::history::{State, Summary};
use crate::names::AgentId;
use crate::text::{printable, span};

/// So much of a task's text, or of a reason, stands in a table.
const HEAD: usize = 48;

/// Who has the task; the shared queue while nobody does.
pub(in crate::cli) fn holder(agent: Option<&AgentId>) -> String {
    agent.map_or_else(|| "(queue)".to_owned(), ToString::to_string)
}

/// `exit status 3`, `signal 9`, the reason if there is one; empty when all is said by the state.
pub(in crate::cli) fn why(reason: Option<&str>, exit: Option<i32>, signal: Option<i32>) -> String {
    match (reason, exit, signal) {
        (Some(reason), ..) => printable(reason),
        (None, _, Some(signal)) => format!("signal {signal}"),
        (None, Some(status), None) if status != 0 => format!("exit status {status}"),
        _ => String::new(),
    }
}

/// A point in time in the zone of whoever reads it.
pub(in crate::cli) fn time(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%F %T").to_string()
}

/// Seconds with a tenth below a minute, then minutes and hours.
pub(in crate::cli) fn duration(micros: u64) -> String {
    match micros / 1_000_000 {
        seconds @ ..60 => format!("{seconds}.{}s", micros / 100_000 % 10),
        seconds => span(seconds),
    }
}

/// How long from one time to another; a dash where one is not known.
pub(in crate::cli) fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let micros = from.zip(to).map(|(from, to)| to.as_microsecond() - from.as_microsecond());
    micros.map_or_else(|| "-".to_owned(), |m| duration(u64::try_from(m).unwrap_or_default()))
}

/// One line of text that fits into a table.
pub(in crate::cli) fn short(text: &str) -> String {
    let shown = printable(text.trim());
    match shown.char_indices().nth(HEAD) {
        None => shown,
        Some((end, _)) => format!("{}…", &shown[..end]),
    }
}

/// The last column: why it ended so, else what was to be done.
pub(in crate::cli) fn remark(task: &Summary) -> String {
    let why = why(task.reason.as_deref(), task.exit, task.signal);
    match (task.state, why.is_empty()) {
        (State::Done, _) | (_, true) => short(&task.head),
        _ => short(&why),
    }
}

/// A table without lines, as `status` has it.
pub(in crate::cli) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// The table as text; every line ends with a line break.
pub(in crate::cli) fn render(mut table: Table) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding(if index == 0 { (0, 1) } else { (1, 1) });
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_reasons_read_well() {
        assert_eq!((duration(0), duration(1_950_000)), ("0.0s".into(), "1.9s".into()));
        assert_eq!(duration(61_000_000), "1min 1s");
        assert_eq!(between(Some(Timestamp::UNIX_EPOCH), None), "-");
        assert_eq!(between(Some(Timestamp::MAX), Some(Timestamp::MIN)), "0.0s");
        assert_eq!(why(None, Some(0), None), "");
        assert_eq!(why(None, Some(3), None), "exit status 3");
        assert_eq!(why(Some("a\x1b[2J"), Some(3), None), "a\\u{1b}[2J");
    }

    #[test]
    fn a_long_or_hostile_text_cannot_break_the_table() {
        let shown = short(&format!("\x1b]0;x\x07{}", "é".repeat(200)));
        assert!(shown.ends_with('…') && shown.chars().count() == HEAD + 1, "{shown}");
        assert!(!shown.contains(char::is_control), "{shown}");
    }
}
