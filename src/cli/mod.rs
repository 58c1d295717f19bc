//! `flockctl`: one file per verb.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::unistd::Pid;

use crate::bus;
#[cfg(feature = "fail-points")]
use crate::fail::Point;
use crate::names::{AgentId, CONFIG_FILE, bus_dir};

/// How long the bus may take to listen: less than systemd gives a start, so that the cause is said.
const BUS_START: Duration = Duration::from_secs(60);

/// `flockctl agent add` and `remove`: one agent's file in `agents.d`.
pub mod agent;
/// `flockctl apply` and `net-load`: makes the machine as configured.
pub mod apply;
/// `flockctl asks`, `approve` and `deny`: calls of tools that wait for an operator.
pub mod asks;
/// `flockctl audit`: who did what.
pub mod audit;
/// `flockctl broadcast` and `channel`: what the operator says, and hears on channels.
pub mod channel;
/// `flockctl check`: the daemon's own loader.
mod check;
/// `flockctl completions`: the completion script of one shell.
mod completions;
/// `flockctl doctor`: what flock needs of this host.
pub mod doctor;
/// `flockctl events`: what agents tell of themselves.
pub mod events;
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
/// What `events`, `broadcast` and `channel` share.
mod talk;
/// `flockctl task …`: gives agents something to do, and shows what came of it.
pub mod task;
/// `flockctl verify`: the boundary measured.
mod verify;
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
    /// Show what agents tell of themselves.
    Events(events::Events),
    /// Say something to every agent that listens now.
    Broadcast(channel::Broadcast),
    /// Hear and speak on the channels of agents.
    #[command(subcommand)]
    Channel(channel::Channel),
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
    /// Measure the boundary of agents against each other and against the host.
    Verify(verify::Verify),
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
        /// Show how the machine differs from the plans instead; exit status 3 when it does.
        #[arg(long)]
        diff: bool,
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
        /// Only if launch or halt was broken off before: systemd says so in $SERVICE_RESULT.
        #[arg(long)]
        broken_off: bool,
    },
    /// List the fail points.
    #[cfg(feature = "fail-points")]
    #[command(hide = true)]
    FailPoints,
    /// Let the audit log be removed; the package's removal runs this.
    #[command(hide = true)]
    AuditRelease,
    /// Take the quotas of all agents' users away; the package's removal runs this.
    #[command(hide = true)]
    QuotaRelease,
    /// Load the egress table; flock-net.service runs this.
    #[command(hide = true)]
    NetLoad,
    /// Wait until the bus listens; flock-bus.service runs this.
    #[command(hide = true)]
    BusReady,
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
        Err(failure) => failure.report(cli.verb.handle()),
    }
}

impl Verb {
    /// The agent whose handle's unit runs this verb.
    fn handle(&self) -> Option<&AgentId> {
        match self {
            Verb::Launch { agent } | Verb::Halt { agent, .. } => Some(agent),
            _ => None,
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.verb {
        Verb::Check { file } => check::run(file.as_ref().unwrap_or(&cli.config)),
        Verb::Doctor(arguments) => doctor::run(arguments, &cli.config),
        Verb::Explain { agent } => explain::run(agent, &cli.config),
        Verb::Verify(arguments) => verify::run(arguments, &cli.config),
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
        Verb::Events(args) => events::run(args),
        Verb::Broadcast(args) => channel::broadcast(args),
        Verb::Channel(verb) => channel::run(verb),
        Verb::History(args) => history::run(args),
        Verb::Plan { agents, diff: false, json } => plan::run(&agents.agents, *json, &cli.config),
        Verb::Plan { agents, diff: true, json } => plan::diff(&agents.agents, *json, &cli.config),
        Verb::Apply => apply::run(&cli.config),
        Verb::Launch { agent } => launch::launch(agent, &cli.config),
        Verb::Halt { agent, broken_off } => launch::halt(agent, *broken_off),
        #[cfg(feature = "fail-points")]
        Verb::FailPoints => Point::ALL.iter().try_for_each(|point| out::line(point.name())),
        Verb::AuditRelease => audit::release(),
        Verb::QuotaRelease => apply::quota_release(),
        Verb::NetLoad => apply::net_load(&cli.config),
        Verb::BusReady => bus_ready(),
        Verb::Man { dir } => man::run(dir),
        Verb::Completions { shell } => completions::run(*shell),
    }
}

/// For `ExecStartPost=`, which is told the process in $MAINPID.
fn bus_ready() -> Result<(), Failure> {
    let number = std::env::var("MAINPID").ok().and_then(|text| text.parse().ok());
    bus::ready::wait(&bus_dir(), number.map(Pid::from_raw), BUS_START).map_err(Failure::failed)
}
