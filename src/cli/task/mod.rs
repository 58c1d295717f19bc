//! `flockctl task`: gives agents something to do, and shows what came of it. One file per verb.

use std::path::Path;

use clap::Subcommand;

use crate::cli::Failure;

/// What a terminal shows while one waits.
mod progress;
/// A result for people and for programs.
mod result;
/// `flockctl task send`: gives agents a task.
pub mod send;

/// `flockctl task …`
#[derive(Subcommand)]
pub enum Task {
    /// Give agents a task.
    Send(send::Send),
}

/// Runs the verb.
///
/// # Errors
/// What the verb says.
pub fn run(task: &Task, file: &Path) -> Result<(), Failure> {
    match task {
        Task::Send(args) => send::run(args, file),
    }
}
