//! What the command says besides its result, as lines of the journal: each with a prefix that the
//! command cannot choose, and not more of them than the journal takes.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::time::{Instant, timeout_at};

use super::log;

/// The longest line that is passed on whole.
const LINE: usize = 4 * 1024;
/// The journal takes 10,000 lines of an agent in this time (`LogRateLimitBurst=` of its unit) and then
/// loses whatever comes, flock-agent's own lines too.
const WINDOW: Duration = Duration::from_secs(30);
/// What all commands of an agent may take of that.
const LINES: u32 = 6000;

/// How many lines may still be passed on.
#[derive(Debug)]
pub struct Budget {
    prefix: String,
    most: u32,
    left: u32,
    until: Instant,
    dropped: u64,
}

impl Budget {
    /// A share of the agent's lines, for one of `parallel` commands. Each line begins with `prefix`.
    #[must_use]
    pub fn new(prefix: String, parallel: u32) -> Self {
        let most = (LINES / parallel.max(1)).max(5);
        Self { prefix, most, left: most, until: Instant::now() + WINDOW, dropped: 0 }
    }

    /// Passes a line on, or counts it.
    pub fn pass(&mut self, text: &str) {
        if Instant::now() >= self.until {
            self.settle();
        }
        if self.left > 0 {
            self.left -= 1;
            log::command(&format!("{}: {}", self.prefix, text.trim_end()));
        } else {
            self.dropped += 1;
        }
    }

    /// Says what was left out, and begins anew.
    pub fn settle(&mut self) {
        if self.dropped > 0 {
            let (prefix, n) = (&self.prefix, self.dropped);
            log::warning(&format!("{prefix}: {n} lines of its output were left out here"));
        }
        (self.left, self.dropped, self.until) = (self.most, 0, Instant::now() + WINDOW);
    }
}

/// Passes a stream on, line by line, to its end.
pub async fn relay(from: impl AsyncRead + Unpin, mut budget: Budget) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let room = LINE.saturating_sub(line.len()) as u64;
        let mut bounded = (&mut reader).take(room);
        let read = bounded.read_until(b'\n', &mut line);
        // What was read before the time was over stays in `line`.
        match timeout_at(budget.until, read).await {
            Err(_) => budget.settle(),
            Ok(Ok(n)) if n > 0 => {
                budget.pass(&String::from_utf8_lossy(&line));
                line.clear();
            }
            Ok(_) => break,
        }
    }
    if !line.is_empty() {
        budget.pass(&String::from_utf8_lossy(&line));
    }
    budget.settle();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_the_next_window_is_open_again() {
        let mut budget = Budget::new("task t".to_owned(), 1000);
        for n in 0..100 {
            budget.pass(&n.to_string());
        }
        assert_eq!((budget.left, budget.dropped), (0, 94));
        budget.until = Instant::now();
        budget.pass("late");
        assert_eq!((budget.left, budget.dropped), (5, 0));
    }
}
