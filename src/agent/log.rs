//! Lines for the journal: one line each, with the priority that journald reads from its beginning.

use std::io::Write as _;

use crate::text::printable;

/// Something went wrong that a person should see.
pub fn error(text: &str) {
    line(3, text);
}

/// Something is not as it should be, and the agent goes on.
pub fn warning(text: &str) {
    line(4, text);
}

/// What happens, in the ordinary course of things.
pub fn info(text: &str) {
    line(6, text);
}

/// Longest line; the journal splits longer ones in the middle of a character.
const LONGEST: usize = 8 * 1024;

fn line(priority: u8, text: &str) {
    let head: String = text.chars().take(LONGEST).collect();
    // A closed standard output must not end the agent.
    let _ = writeln!(std::io::stdout(), "<{priority}>{}", printable(&head));
}

/// A line of the command's standard error, on ours.
pub fn command(text: &str) {
    let _ = writeln!(std::io::stderr(), "<5>{}", printable(text));
}
