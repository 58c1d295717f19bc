//! Programs of the system that flock runs: by absolute path, with a fixed environment.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::text::printable;

/// The longest message of a program that is passed on to a person.
const MESSAGE_MAX: usize = 400;

/// A program and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its absolute path: `PATH` is nobody's to change.
    pub path: &'static str,
    /// What to install when it is missing.
    pub package: &'static str,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not on this host.
    #[error("{path}: no such file: install the package {package}")]
    Missing {
        /// The program.
        path: &'static str,
        /// The package that brings it.
        package: &'static str,
    },
    /// It could not be run.
    #[error("{path}: {source}")]
    Run {
        /// The program.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{path} ended with {status}: {message}")]
    Failed {
        /// The program.
        path: &'static str,
        /// Its exit status.
        status: String,
        /// The exit status as a number, if it ended by itself.
        code: Option<i32>,
        /// What it said, fit for a terminal.
        message: String,
    },
}

impl Program {
    /// Runs the program to its end with `input` on its standard input and gives its output.
    ///
    /// # Errors
    /// When the program is missing, cannot be run, or ends with another status than 0.
    pub(super) fn run(self, arguments: &[&str], input: &str) -> Result<String, CommandError> {
        let output = self.output(arguments, input).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if !Path::new(self.path).exists() => {
                CommandError::Missing { path: self.path, package: self.package }
            }
            _ => CommandError::Run { path: self.path, source },
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(CommandError::Failed {
            path: self.path,
            status: output.status.to_string(),
            code: output.status.code(),
            message: one_line(&output.stderr),
        })
    }

    fn output(self, arguments: &[&str], input: &str) -> io::Result<Output> {
        // Files and not pipes: nft writes word by word, each of which would wake us, and nobody can
        // wait for a reader that waits for him.
        let (said, complained) = (memory("")?, memory("")?);
        let status = Command::new(self.path)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(memory(input)?)
            .stdout(said.try_clone()?)
            .stderr(complained.try_clone()?)
            .status()?;
        Ok(Output { status, stdout: whole(said)?, stderr: whole(complained)? })
    }
}

/// A file in memory that begins with `text`.
fn memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"flock", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn whole(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a program said, on one line and not too long.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<String> =
        text.lines().map(|line| printable(line.trim())).filter(|l| !l.is_empty()).collect();
    let joined = lines.join("; ");
    if joined.is_empty() {
        return "it said nothing".to_owned();
    }
    match joined.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}...", &joined[..end]),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let nowhere = Program { path: "/usr/sbin/flock-no-such", package: "nftables" };
        let error = nowhere.run(&[], "").unwrap_err().to_string();
        assert_eq!(error, "/usr/sbin/flock-no-such: no such file: install the package nftables");
    }

    fn big() -> String {
        "x".repeat(1 << 20)
    }

    #[test]
    fn input_goes_in_and_failure_comes_out_on_one_line() {
        let shell = Program { path: "/bin/sh", package: "dash" };
        assert_eq!(shell.run(&["-c", "tr a b; echo $PATH | wc -w"], "aaa\n").unwrap(), "bbb\n1\n");
        let error = shell.run(&["-c", "printf 'a\\n\\033[31mb\\n' >&2; exit 3"], "").unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh ended with exit status: 3: a; \\u{1b}[31mb");
        // More output than a pipe holds, before the input is read.
        let chatty = shell.run(&["-c", "head -c 200000 /dev/zero; cat"], &big()).unwrap();
        assert_eq!(chatty.len(), 200_000 + big().len());
        // A program that reads nothing is judged by its status, not by the broken pipe.
        assert_eq!(shell.run(&["-c", "exec 0<&-; echo done"], &big()).unwrap(), "done\n");
    }
}
