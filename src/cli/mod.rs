//! `flockctl`: one file per verb.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::names::{AgentId, CONFIG_FILE};

/// `flockctl agent add` and `remove`: one agent's file in `agents.d`.
pub mod agent;
/// `flockctl apply` and `net-load`: makes the machine as configured.
pub mod apply;
/// `flockctl asks`, `approve` and `deny`: calls of tools that wait for an operator.
pub mod asks;
/// `flockctl audit`: who did what.
pub mod audit;
/// `flockctl check`: the daemon's own loader.
mod check;
/// `flockctl completions`: the completion script of one shell.
mod completions;
/// `flockctl doctor`: what flock needs of this host.
pub mod doctor;
/// Documented exit codes, and the error that carries one.
pub mod exit;
/// `flockctl explain`: what one agent can and cannot reach.
mod explain;
/// `flockctl history`: the tasks that have ended.
pub mod history;
/// `flockctl launch` and `halt`: what the handle's unit runs.
pub mod launch;
/// `flockctl up`, `down`, `start`, `stop`, `restart`.
pub mod lifecycle;
/// `flockctl logs`: the log of one agent.
pub mod logs;
/// `flockctl man`: the manual pages of flockctl.
mod man;
/// Standard output that a closed pipe ends quietly, and the runtime.
pub mod out;
/// Where the records of tasks come from: flockd, or the database itself.
pub mod past;
/// `flockctl plan`: what would be done.
pub mod plan;
/// `flockctl status`: what the agents are doing.
pub mod status;
/// `flockctl task …`: gives agents something to do, and shows what came of it.
pub mod task;
/// Points in time as people write them.
mod when;

pub use exit::Failure;
use lifecycle::Act;

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
    /// Start every agent that is enabled.
    Up,
    /// Stop every agent.
    Down,
    /// Start agents.
    Start(lifecycle::Named),
    /// Stop agents.
    Stop(lifecycle::Named),
    /// Stop agents and start them again.
    Restart(lifecycle::Named),
    /// Show what the agents are doing.
    Status(status::Status),
    /// Show the log of an agent, or of a task.
    Logs(logs::Logs),
    /// Give agents something to do, and see what came of it.
    #[command(subcommand)]
    Task(task::Task),
    /// Show the calls of tools that wait for an operator.
    Asks(asks::Asks),
    /// Let a call of a tool run that waits for an operator.
    Approve(asks::Approve),
    /// Refuse a call of a tool that waits for an operator.
    Deny(asks::Deny),
    /// Show the tasks that have ended: when, how, and what they used up.
    History(history::History),
    /// Check the configuration with the daemon's own loader.
    Check {
        /// This file instead of the installed one; agents.d beside it is read too.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Look at this host: what flock needs of it, and what to do about what is not well.
    Doctor(doctor::Doctor),
    /// Say in plain words what an agent can and cannot reach.
    Explain {
        /// The agent.
        #[arg(value_name = "AGENT")]
        agent: AgentId,
    },
    /// Add and remove agents.
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Show who did what, and check that the record of it is whole.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Show what would be done for agents, and do nothing of it.
    Plan {
        /// Which agents.
        #[command(flatten)]
        agents: Agents,
        /// One JSON array for programs.
        #[arg(long)]
        json: bool,
    },
    /// Make the machine as configured: users, tree, bus, egress.
    Apply,
    /// Start one agent now and measure its boundary; flock@.service runs this.
    #[command(hide = true)]
    Launch {
        /// The agent.
        agent: AgentId,
    },
    /// Stop one agent now; flock@.service runs this.
    #[command(hide = true)]
    Halt {
        /// The agent.
        agent: AgentId,
    },
    /// Let the audit log be removed; the package's removal runs this.
    #[command(hide = true)]
    AuditRelease,
    /// Load the egress table; flock-net.service runs this.
    #[command(hide = true)]
    NetLoad,
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
        Verb::Check { file } => check::run(file.as_ref().unwrap_or(&cli.config)),
        Verb::Doctor(arguments) => doctor::run(arguments, &cli.config),
        Verb::Explain { agent } => explain::run(agent, &cli.config),
        Verb::Agent(verb) => agent::run(verb, &cli.config),
        Verb::Audit(verb) => audit::run(verb),
        Verb::Up => lifecycle::up(),
        Verb::Down => lifecycle::down(),
        Verb::Start(named) => lifecycle::run(Act::Start, named, &cli.config),
        Verb::Stop(named) => lifecycle::run(Act::Stop, named, &cli.config),
        Verb::Restart(named) => lifecycle::run(Act::Restart, named, &cli.config),
        Verb::Status(args) => status::run(args, &cli.config),
        Verb::Logs(args) => logs::run(args, &cli.config),
        Verb::Task(task) => task::run(task, &cli.config),
        Verb::Asks(args) => asks::list(args),
        Verb::Approve(args) => asks::approve(args),
        Verb::Deny(args) => asks::deny(args),
        Verb::History(args) => history::run(args),
        Verb::Plan { agents, json } => plan::run(&agents.agents, *json, &cli.config),
        Verb::Apply => apply::run(&cli.config),
        Verb::Launch { agent } => launch::launch(agent, &cli.config),
        Verb::Halt { agent } => launch::halt(agent),
        Verb::AuditRelease => audit::release(),
        Verb::NetLoad => apply::net_load(&cli.config),
        Verb::Man { dir } => man::run(dir),
        Verb::Completions { shell } => completions::run(*shell),
    }
}
