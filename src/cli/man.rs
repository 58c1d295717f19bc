//! `flockctl man DIR`: flockctl's own manual pages, made from its command line for the package.

use std::path::Path;

use clap::CommandFactory;

use super::{Cli, Failure};

/// Writes `flockctl.1` and one page per visible verb into `dir`.
///
/// # Errors
/// When `dir` is no directory or cannot be written.
pub fn run(dir: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|cause| {
        let dir = dir.display();
        Failure::failed(format!("write the manual pages: {dir}: {cause}: name a directory"))
    })
}
