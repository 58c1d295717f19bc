//! `flockctl task`: gives agents something to do, and shows what came of it. One file per verb.

use std::path::Path;

use clap::Subcommand;

use crate::cli::Failure;

/// `flockctl task list`: what the tasks are doing.
pub mod list;
/// `flockctl task cancel`, `retry` and `dead`.
pub mod manage;
/// What a terminal shows while one waits.
mod progress;
/// A result for people and for programs.
pub(super) mod result;
/// `flockctl task send`: gives agents a task.
pub mod send;
/// `flockctl task show`: everything about one task.
pub mod show;
/// A record in words for people.
pub(super) mod words;

/// `flockctl task …`
#[derive(Subcommand)]
pub enum Task {
    /// Give agents a task.
    Send(send::Send),
    /// Show what the tasks are doing, the newest first.
    List(list::List),
    /// Show everything about one task.
    Show(show::Show),
    /// End tasks, or see that they do not begin.
    Cancel(manage::Cancel),
    /// Have an ended task done once more.
    Retry(manage::Retry),
    /// Show the tasks of the shared queue that were given up.
    Dead(manage::Dead),
}

/// Runs the verb.
///
/// # Errors
/// What the verb says.
pub fn run(task: &Task, file: &Path) -> Result<(), Failure> {
    match task {
        Task::Send(args) => send::run(args, file),
        Task::List(args) => list::run(args),
        Task::Show(args) => show::run(args),
        Task::Cancel(args) => manage::cancel(args),
        Task::Retry(args) => manage::retry(args),
        Task::Dead(args) => manage::dead(args),
    }
}
