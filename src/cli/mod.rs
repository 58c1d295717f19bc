//! `flockctl`: one file per verb.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::names::{AgentId, CONFIG_FILE};

/// `flockctl completions`: the completion script of one shell.
mod completions;
/// Documented exit codes, and the error that carries one.
pub mod exit;
/// `flockctl man`: the manual pages of flockctl.
mod man;

pub use exit::Failure;

/// Runs many AI agents on one server, each behind a boundary that is measured.
#[derive(Parser)]
#[command(name = "flockctl", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Another configuration file; agents.d beside it is read too.
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIG_FILE)]
    pub config: PathBuf,
}

/// Everything that flockctl can do.
#[derive(Subcommand)]
pub enum Verb {
    /// Check the configuration with the daemon's own loader.
    Check,
    /// Write flockctl's manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; it must be there.
        dir: PathBuf,
    },
    /// Print the completion script of a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Some agents, or all of them.
#[derive(Args)]
pub struct Agents {
    /// The agents; none means all of them.
    #[arg(value_name = "AGENT")]
    pub agents: Vec<AgentId>,
}

/// Parses the command line and runs the verb.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = run(&cli);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.verb {
        Verb::Check => Err(Failure::usage("not yet")),
        Verb::Man { dir } => man::run(dir),
        Verb::Completions { shell } => completions::run(*shell),
    }
}
