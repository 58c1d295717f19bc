//! Standard output that a closed pipe ends quietly (`flockctl logs a | head`), and the runtime.

use std::io::{self, Write as _};
use std::os::fd::AsFd;

use crate::cli::Failure;
use crate::control::{ClientError, ErrorCode};
use crate::host::journald;
use crate::journal;
use crate::names::AgentId;

/// Writes bytes as they are.
///
/// # Errors
/// [`Failure::closed`] when nobody reads any more; else what the system says.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| unwritten(&error))
}

/// Why standard output took nothing.
#[must_use]
pub fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::closed(),
        _ => Failure::failed(format!("write to standard output: {error}")),
    }
}

/// Writes one line.
///
/// # Errors
/// See [`bytes`].
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a line that begins with `warning:`; the journal files it as one.
///
/// # Errors
/// See [`bytes`].
pub fn warning(text: &str) -> Result<(), Failure> {
    line(&format!("{}warning: {text}", level(io::stdout(), 4)))
}

/// What sd-daemon(3) puts before a line of this level, where `stream` is the journal itself.
#[must_use]
pub fn level(stream: impl AsFd, number: u8) -> String {
    match journal::is(stream) {
        true => format!("<{number}>"),
        false => String::new(),
    }
}

/// Writes a line of this level about an agent's handle to `stream`.
///
/// # Errors
/// What the stream says.
pub fn of_handle(
    id: &AgentId,
    mut stream: impl AsFd + io::Write,
    number: u8,
    text: &str,
) -> io::Result<()> {
    match journal::is(&stream) && filed(id, number, text) {
        true => Ok(()),
        false => writeln!(stream, "{}{text}", level(&stream, number)),
    }
}

/// Files a line in the journal under the handle's name. By itself journald of systemd 252 finds no
/// unit for one line in thirty of a program that ends right after it, and `journalctl -u` misses it.
/// A unit that root names as the object is shown all the same, see systemd.journal-fields(7).
fn filed(id: &AgentId, number: u8, text: &str) -> bool {
    let fields = [
        ("MESSAGE", text.to_owned()),
        ("PRIORITY", number.to_string()),
        ("SYSLOG_IDENTIFIER", "flockctl".to_owned()),
        ("OBJECT_SYSTEMD_UNIT", id.handle_unit()),
    ];
    journald::send(&fields).is_ok()
}

/// Runs a future to its end on this thread.
///
/// # Errors
/// What the future says, or why there is no runtime.
pub fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("start the runtime: {error}")))?.block_on(work)
}

/// Ends with a clear text unless root runs this.
///
/// # Errors
/// [`Failure::permission`].
pub fn need_root(what: &str) -> Result<(), Failure> {
    match is_root() {
        true => Ok(()),
        false => Err(Failure::permission(format!("{what}: this needs root: run it with sudo"))),
    }
}

/// What flockd's refusal means for the exit status.
#[must_use]
pub fn by_flockd(error: &ClientError) -> Failure {
    match error {
        ClientError::Denied { .. } | ClientError::Answer { code: ErrorCode::Refused, .. } => {
            Failure::permission(error)
        }
        ClientError::Answer { code: ErrorCode::BadRequest, .. } => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

/// An answer that belongs to another question.
#[must_use]
pub fn garbled() -> Failure {
    Failure::failed(
        "talk to flockd: an answer to another question: are flockctl and flockd the same version?",
    )
}

/// Who runs this: with sudo the user before it. Only for what root may claim anyway.
#[must_use]
pub fn real_uid() -> u32 {
    let own = nix::unistd::getuid().as_raw();
    let before = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    if own == 0 { before.unwrap_or(own) } else { own }
}

/// Whether root runs this.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
