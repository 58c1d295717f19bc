//! `flockctl completions SHELL`: the completion script of one shell, made for the package.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Failure};

/// Prints the script to standard output.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(shell: Shell) -> Result<(), Failure> {
    // Into memory first: the generator panics when its writer fails, on a closed pipe for one.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flockctl", &mut script);
    std::io::stdout().write_all(&script).map_err(|cause| {
        Failure::failed(format!("print the completions: standard output: {cause}"))
    })
}
