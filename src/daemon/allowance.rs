//! How much an agent may make flockd write into the journal.
//!
//! journald limits flockd as a whole; without this a chatty agent could silence what flockd says of
//! all others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::names::AgentId;

/// Lines of one agent within [`WINDOW`].
const LINES: u32 = 20;
/// The window.
const WINDOW: Duration = Duration::from_secs(30);

/// The lines that each agent has used up.
#[derive(Debug, Default)]
pub struct Allowance {
    used: BTreeMap<AgentId, Used>,
}

#[derive(Debug)]
struct Used {
    since: Instant,
    lines: u32,
}

/// What may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The line.
    Write,
    /// The line, and before it how many were left out.
    WriteAfter(u32),
    /// Nothing.
    LeaveOut,
}

impl Allowance {
    /// Counts one line of the agent.
    pub fn ask(&mut self, agent: &AgentId, now: Instant) -> Verdict {
        let fresh = || Used { since: now, lines: 0 };
        let used = self.used.entry(agent.clone()).or_insert_with(fresh);
        let mut verdict = Verdict::Write;
        if now.duration_since(used.since) >= WINDOW {
            if let left_out @ 1.. = used.lines.saturating_sub(LINES) {
                verdict = Verdict::WriteAfter(left_out);
            }
            *used = fresh();
        }
        used.lines = used.lines.saturating_add(1);
        if used.lines > LINES { Verdict::LeaveOut } else { verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_agent_is_cut_and_counted_and_harms_nobody_else() {
        let (a, b) = (AgentId::parse("a").unwrap(), AgentId::parse("b").unwrap());
        let mut allowance = Allowance::default();
        let begin = Instant::now();
        let written = (0..1000).filter(|_| allowance.ask(&a, begin) == Verdict::Write).count();
        assert_eq!(written, 20);
        assert_eq!(allowance.ask(&b, begin), Verdict::Write);
        assert_eq!(allowance.ask(&a, begin + WINDOW), Verdict::WriteAfter(980));
        assert_eq!(allowance.ask(&a, begin + WINDOW), Verdict::Write);
    }
}
