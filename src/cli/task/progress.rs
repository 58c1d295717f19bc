//! What a terminal shows while one waits for results.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::names::AgentId;
use crate::text::span;

/// A line on a terminal's standard error while one waits.
pub(super) struct Progress {
    begun: Instant,
    all: usize,
    done: usize,
    /// Agents that say they have begun.
    at_work: Vec<AgentId>,
    shown: bool,
}

impl Progress {
    pub(super) fn new(all: usize) -> Self {
        Self {
            begun: Instant::now(),
            all,
            done: 0,
            at_work: Vec::new(),
            shown: io::stderr().is_terminal(),
        }
    }

    /// An agent has begun.
    pub(super) fn begun(&mut self, agent: &AgentId) {
        if !self.at_work.contains(agent) {
            self.at_work.push(agent.clone());
        }
    }

    /// A result has come.
    pub(super) fn one_more(&mut self) {
        self.done += 1;
    }

    /// Waits and shows how long already.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tokio::pin!(work);
        loop {
            tokio::select! {
                value = &mut work => {
                    self.write(&" ".repeat(79), "\r");
                    return value;
                }
                _ = tick.tick() => self.write(&self.line(), ""),
            }
        }
    }

    fn line(&self) -> String {
        let age = span(self.begun.elapsed().as_secs());
        let state = match self.at_work.as_slice() {
            [] => "queued".to_owned(),
            [agent] => format!("{agent} has begun"),
            several => format!("{} agents have begun", several.len()),
        };
        format!("{} of {} results, waiting {age}: {state} …", self.done, self.all)
    }

    /// Blanks and a carriage return need no terminal capability.
    fn write(&self, text: &str, end: &str) {
        if self.shown {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r{text}{end}").and_then(|()| stderr.flush());
        }
    }
}
