//! Standard output that a closed pipe ends quietly (`flockctl logs a | head`), and the runtime.

use std::io::{self, Write as _};
use std::os::fd::AsFd;

use crate::cli::Failure;
use crate::control::{ClientError, ErrorCode};
use crate::journal;

/// Writes bytes as they are.
///
/// # Errors
/// [`Failure::closed`] when nobody reads any more; else what the system says.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::closed()),
        Err(error) => Err(Failure::failed(format!("write to standard output: {error}"))),
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

/// Whether root runs this.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
