//! How a task ended, and what its result says of it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::bounds::Cut;
use crate::bus::message::{OUTPUT_IN_MESSAGE, Status, TaskResult, Usage};

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// The output, at most as long as the limit.
    pub output: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
    /// What was used up, if that can be told.
    pub usage: Option<Usage>,
}

/// Why a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended by itself.
    Exited(ExitStatus),
    /// The command answered, and says whether it failed and perhaps why.
    Answered {
        /// Whether it failed.
        failed: bool,
        /// Why, in its own words.
        reason: Option<String>,
    },
    /// It was cut short.
    Cut(Cut),
    /// The command ended while it had this task and perhaps others; nobody can say whose fault it was.
    Lost(String),
}

impl Outcome {
    /// An outcome without output.
    #[must_use]
    pub fn bare(end: End) -> Self {
        Self { end, output: Vec::new(), truncated: false, usage: None }
    }

    /// Why the task has to go back to the bus, if it has no result.
    #[must_use]
    pub fn back(&self) -> Option<&str> {
        match &self.end {
            End::Lost(why) => Some(why),
            End::Cut(Cut::Stopped) => Some("the agent stops"),
            End::Exited(_) | End::Answered { .. } | End::Cut(_) => None,
        }
    }

    /// Fills in the result.
    pub fn describe(self, result: &mut TaskResult) {
        result.truncated = self.truncated;
        result.usage = self.usage;
        match self.end {
            End::Exited(status) => exited(result, status),
            End::Answered { failed, reason } => {
                result.status = if failed { Status::Failed } else { Status::Done };
                let unsaid = failed.then(|| "the command says that it failed".to_owned());
                result.reason = reason.or(unsaid);
            }
            End::Cut(cut) => {
                let (status, why) = match cut {
                    Cut::TimedOut(limit) => {
                        (Status::Timeout, format!("killed after {} s", limit.as_secs()))
                    }
                    Cut::Expired => (Status::Expired, "killed at its deadline".to_owned()),
                    Cut::Cancelled => (Status::Cancelled, "cancelled while it ran".to_owned()),
                    // These have no result.
                    Cut::Stopped => return,
                };
                (result.status, result.reason) = (status, Some(why));
            }
            End::Lost(_) => return,
        }
        let (output, replaced) = text(self.output, self.truncated);
        result.output = output;
        if replaced {
            also(result, "its output is no UTF-8: what could not be read was replaced");
        }
    }
}

fn exited(result: &mut TaskResult, status: ExitStatus) {
    (result.exit, result.signal) = (status.code(), status.signal());
    if !status.success() {
        result.status = Status::Failed;
        result.reason = Some(match status.signal() {
            Some(9) => "killed (signal 9): was its memory limit reached?".to_owned(),
            Some(n) => format!("ended by signal {n}"),
            None => format!("exit status {}", status.code().unwrap_or_default()),
        });
    }
}

/// Output as text, and whether characters had to be replaced. One that the limit cut in two is left
/// out and does not count.
fn text(mut output: Vec<u8>, truncated: bool) -> (String, bool) {
    if let (true, Err(e)) = (truncated, std::str::from_utf8(&output))
        && e.error_len().is_none()
    {
        output.truncate(e.valid_up_to());
    }
    match String::from_utf8(output) {
        Ok(text) => (text, false),
        Err(e) => (String::from_utf8_lossy(e.as_bytes()).into_owned(), true),
    }
}

/// Adds to the reason what people should know besides.
pub fn also(result: &mut TaskResult, more: &str) {
    result.reason = Some(match result.reason.take() {
        Some(reason) => format!("{reason}; {more}"),
        None => more.to_owned(),
    });
}

/// Cuts the output to what fits into a message; the file has all of it.
pub fn shorten(result: &mut TaskResult) {
    if result.output.len() > OUTPUT_IN_MESSAGE {
        let mut cut = OUTPUT_IN_MESSAGE;
        while !result.output.is_char_boundary(cut) {
            cut -= 1;
        }
        result.output.truncate(cut);
        result.truncated = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::message;

    fn blank() -> TaskResult {
        message::parse(br#"{"task":"t"}"#).unwrap()
    }

    fn described(end: End, output: &[u8], truncated: bool) -> TaskResult {
        let mut result = blank();
        Outcome { end, output: output.to_vec(), truncated, usage: None }.describe(&mut result);
        result
    }

    fn done() -> End {
        End::Exited(ExitStatus::from_raw(0))
    }

    #[test]
    fn output_that_is_no_text_is_replaced_and_said() {
        let result = described(done(), b"a\xffb", false);
        assert_eq!((result.status, result.output.as_str()), (Status::Done, "a\u{fffd}b"));
        assert!(result.reason.unwrap().contains("UTF-8"));
        // Cut by the limit in the middle of a character: nobody's fault.
        let result = described(done(), "aé".as_bytes().split_last().unwrap().1, true);
        assert_eq!((result.output.as_str(), result.reason), ("a", None));
        let result = described(done(), "aé".as_bytes().split_last().unwrap().1, false);
        assert!(result.reason.is_some(), "the command itself ended in the middle of a character");
    }

    #[test]
    fn each_end_has_its_status_and_reason() {
        let limit = Cut::TimedOut(std::time::Duration::from_secs(7));
        for (end, status, reason) in [
            (done(), Status::Done, None),
            (End::Exited(ExitStatus::from_raw(0x300)), Status::Failed, Some("exit status 3")),
            (End::Cut(limit), Status::Timeout, Some("killed after 7 s")),
            (End::Cut(Cut::Expired), Status::Expired, Some("killed at its deadline")),
            (End::Cut(Cut::Cancelled), Status::Cancelled, Some("cancelled while it ran")),
            (End::Answered { failed: true, reason: Some("no".into()) }, Status::Failed, Some("no")),
        ] {
            let result = described(end, b"x", false);
            assert_eq!((result.status, result.reason.as_deref()), (status, reason));
            assert_eq!(result.output, "x");
        }
        assert!(Outcome::bare(End::Lost("it crashed".into())).back().is_some());
        assert!(Outcome::bare(End::Cut(Cut::Stopped)).back().is_some());
        assert!(Outcome::bare(done()).back().is_none());
    }

    #[test]
    fn a_long_output_is_cut_between_characters() {
        let mut result = blank();
        result.output = "漢".repeat(OUTPUT_IN_MESSAGE);
        shorten(&mut result);
        assert!(result.truncated && result.output.len() <= OUTPUT_IN_MESSAGE);
        assert!(message::encode(&result).is_ok());
    }
}
