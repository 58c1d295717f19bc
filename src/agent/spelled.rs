//! `flock-agent spelled …`: becomes the command that its words spell (see [`crate::spelled`]).

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use crate::agent::log;
use crate::spelled as words;

/// What systemd says of a program that cannot be started; it is not tried again.
const CANNOT_START: u8 = 203;

/// Returns only when the command could not be started.
pub fn main(spelled: &[OsString]) -> ExitCode {
    let words: Option<Vec<_>> = spelled.iter().map(|word| words::read(word)).collect();
    match words.as_deref() {
        Some([program, arguments @ ..]) => {
            let error = Command::new(program).args(arguments).exec();
            log::error(&format!("start {}: {error}", program.display()));
        }
        _ => log::error("start the command: its words are not spelled as flock spells them"),
    }
    ExitCode::from(CANNOT_START)
}
