//! Documented exit codes, and the error that carries one.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::cli::out;
use crate::names::AgentId;

/// Why a command ended, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of flockctl.
    pub code: u8,
    /// What is printed after `flockctl: `; may have several lines.
    pub message: String,
}

impl Failure {
    /// 1: the command was understood and could not be carried out.
    pub fn failed(cause: impl Display) -> Self {
        Self { code: 1, message: cause.to_string() }
    }

    /// 2: the command line is wrong.
    pub fn usage(cause: impl Display) -> Self {
        Self { code: 2, message: cause.to_string() }
    }

    /// 3: the machine differs from the plan.
    pub fn differs(cause: impl Display) -> Self {
        Self { code: 3, message: cause.to_string() }
    }

    /// 78, `CONFIG` for systemd: the configuration is not valid; the message cites every fault.
    pub fn config(cause: impl Display) -> Self {
        Self { code: 78, message: cause.to_string() }
    }

    /// 77, `NOPERM`: this needs root, or the group `flock`.
    pub fn permission(cause: impl Display) -> Self {
        Self { code: 77, message: cause.to_string() }
    }

    /// 0: nobody reads the output any more (`| head`), which is no fault.
    #[must_use]
    pub fn closed() -> Self {
        Self { code: 0, message: String::new() }
    }

    /// Prints the message to standard error and gives the exit code; `handle` is the agent whose
    /// handle runs this.
    #[must_use]
    pub fn report(&self, handle: Option<&AgentId>) -> ExitCode {
        let mut head = "flockctl: ";
        for line in self.message.lines() {
            let text = format!("{head}{line}");
            // Where nobody hears it, the exit status still says it.
            let _ = match handle {
                Some(id) => out::of_handle(id, io::stderr(), 3, &text),
                None => writeln!(io::stderr(), "{}{text}", out::level(io::stderr(), 3)),
            };
            head = "";
        }
        ExitCode::from(self.code)
    }
}
