//! A tool's stand-in: `flock-agent` under the tool's name. It asks the broker and passes on what
//! the tool writes; its exit status is the tool's.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::wire::{self, End, Kind, Request};
use super::{DENIED, FAILED};
use crate::text::printable;
use crate::tools::SOCKET_VARIABLE;

/// What the shell reports for a program that a closed pipe ended.
const PIPE_CLOSED: u8 = 128 + 13;

/// The whole program. 126: denied; 124: out of time; 125: flock could not do it.
#[must_use]
pub fn main(name: &str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let end = call(name, arguments).unwrap_or_else(|message| End { status: FAILED, message });
    if let Some(message) = end.message {
        let _ = writeln!(io::stderr(), "flock: {}: {}", printable(name), printable(&message));
    }
    ExitCode::from(end.status)
}

fn call(name: &str, arguments: impl Iterator<Item = OsString>) -> Result<End, Option<String>> {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else {
        return Err(Some(format!(
            "{SOCKET_VARIABLE} is not set: this is a tool of a flock agent, and runs in a task only"
        )));
    };
    let arguments: Result<Vec<String>, _> = arguments.map(OsString::into_string).collect();
    let Ok(arguments) = arguments else {
        let message = Some("denied: an argument is no UTF-8 text".to_owned());
        return Ok(End { status: DENIED, message });
    };
    let failed = |step: &str| {
        let step = step.to_owned();
        move |e: io::Error| Some(format!("{step}: {e}"))
    };
    let folder = std::env::current_dir().map_err(failed("find the working directory"))?;
    let Ok(folder) = folder.into_os_string().into_string() else {
        let message = Some("denied: the working directory's name is no UTF-8 text".to_owned());
        return Ok(End { status: DENIED, message });
    };
    let task = std::env::var("TASK_ID").ok();
    let request = Request { tool: name.to_owned(), arguments, folder, task };
    let mut broker = UnixStream::connect(socket).map_err(failed("reach flock-agent"))?;
    // A refusal can come before all is sent: then the refusal is what counts.
    let sent = wire::send_request(&broker, &request, io::stdin().as_fd());
    loop {
        let frame = wire::read_frame(&mut broker);
        let (kind, bytes) = match (frame, &sent) {
            (Ok(frame), _) => frame,
            (Err(_), Err(e)) => return Err(Some(format!("ask flock-agent: {e}"))),
            (Err(e), Ok(())) => return Err(Some(format!("flock-agent gave no end: {e}"))),
        };
        let written = match kind {
            Kind::Output => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
            Kind::Error => io::stderr().write_all(&bytes),
            Kind::End => {
                return serde_json::from_slice(&bytes)
                    .map_err(|e| Some(format!("flock-agent's last word: {e}")));
            }
        };
        if written.is_err() {
            return Ok(End { status: PIPE_CLOSED, message: None });
        }
    }
}
