//! `flockctl verify`: the boundary measured, agent against agent.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::{Failure, out};
use crate::config::{self, Config};
use crate::names::AgentId;
use crate::text::printable_json;
use crate::verify::matrix::Matrix;
use crate::verify::{self, page, table};

/// The command line of `verify`.
#[derive(Args)]
#[command(after_help = "Exit status: 0 when every promise was measured and held; 1 otherwise.")]
pub struct Verify {
    /// The agents; none means all of them.
    #[arg(value_name = "AGENT")]
    pub agents: Vec<AgentId>,
    /// One JSON object for programs.
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// Write the matrix as one HTML page that can be handed on.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Measure each agent behind the boundary of each lower level too: what does a level add?
    #[arg(long)]
    pub all_levels: bool,
    /// Measure the agents that run, and do what follows: keep the result for flockctl status, tell the
    /// journal and the bus of violations, and do what [verify] on-violation says. This is what
    /// flock-verify.service runs.
    #[arg(long, conflicts_with_all = ["agents", "watch", "all_levels"])]
    pub enforce: bool,
    /// Measure again and again until Ctrl-C, with this pause.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
}

/// Measures and shows what was found.
///
/// # Errors
/// Without root, when nothing can be measured, and when a promise did not hold.
pub fn run(arguments: &Verify, file: &Path) -> Result<(), Failure> {
    out::need_root("verify the boundary")?;
    let config = config::load(file).map_err(Failure::config)?;
    if arguments.enforce {
        let matrix = out::wait(async { verify::enforce(&config).await.map_err(Failure::failed) })?;
        return match show(arguments, &matrix)? || matrix.agents.is_empty() {
            true => Ok(()),
            false => Err(failed()),
        };
    }
    let agents = wanted(&config, &arguments.agents)?;
    let Some(pause) = arguments.watch else {
        return match once(arguments, &config, &agents)? {
            true => Ok(()),
            false => Err(failed()),
        };
    };
    loop {
        once(arguments, &config, &agents)?;
        std::thread::sleep(Duration::from_secs(pause));
    }
}

fn failed() -> Failure {
    Failure::failed("verify: not every promise was measured and held")
}

/// Measures once and shows it; says whether every promise was measured and held.
fn once(arguments: &Verify, config: &Config, agents: &[AgentId]) -> Result<bool, Failure> {
    let matrix = out::wait(async {
        let all_levels = arguments.all_levels;
        verify::verify(config, agents, all_levels).await.map_err(Failure::failed)
    })?;
    show(arguments, &matrix)
}

/// Says whether every promise was measured and held.
fn show(arguments: &Verify, matrix: &Matrix) -> Result<bool, Failure> {
    if let Some(file) = &arguments.html {
        write(file, page::render(matrix).as_bytes())?;
    }
    if arguments.json {
        let text = serde_json::to_string(matrix).map_err(Failure::failed)?;
        out::line(&printable_json(&text))?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        out::bytes(table::render(matrix, colour).as_bytes())?;
    }
    Ok(matrix.is_good())
}

/// A new file beside it takes its place: a link that somebody planted there is replaced, not followed.
fn write(file: &Path, page: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::failed(format!("write {}: {e}", file.display()));
    let beside = file.with_extension(format!("new-{}", std::process::id()));
    let mut new =
        File::options().write(true).create_new(true).mode(0o600).open(&beside).map_err(fail)?;
    let filled = new.write_all(page).and_then(|()| std::fs::rename(&beside, file));
    filled.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        fail(error)
    })
}

fn wanted(config: &Config, named: &[AgentId]) -> Result<Vec<AgentId>, Failure> {
    let known = || config.agents.keys().map(AgentId::as_str).collect::<Vec<_>>().join(", ");
    if let Some(id) = named.iter().find(|id| !config.agents.contains_key(*id)) {
        let there = known();
        return Err(Failure::usage(format!("no agent {id} is configured; there are: {there}")));
    }
    if config.agents.is_empty() {
        return Err(Failure::failed("verify: no agent is configured: flockctl agent add ID"));
    }
    let mut agents: Vec<_> = match named {
        [] => config.agents.keys().cloned().collect(),
        named => named.to_vec(),
    };
    agents.sort();
    agents.dedup();
    Ok(agents)
}
