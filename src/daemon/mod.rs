//! flockd: keeps the world as configured, and answers operators. It holds no agent: `kill -9` of
//! flockd changes nothing for any of them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config;
use crate::control;
use crate::daemon::world::World;
use crate::names::{CONFIG_FILE, RUN_DIR};

/// How much an agent may make flockd write into the journal.
mod allowance;
/// Calls of tools that wait for an operator.
mod asks;
/// Has the boundaries measured.
mod boundary;
/// The connection to the bus.
mod bus;
/// What changed in the configuration, for the audit log.
mod changes;
/// Brings the machine to what the configuration says.
mod config_loop;
/// Hears what agents tell of themselves.
mod ear;
/// Keeps the egress table.
mod egress;
/// What is done when an agent has ended for good.
mod ends;
/// Keeps the history within its bounds.
mod forget;
/// Writes down what the bus holds.
pub mod history;
/// Takes away what the bus keeps for agents that are no more.
pub mod leavers;
/// flockd's hand on the history.
pub mod ledger;
/// What flockd decides of tasks.
pub mod life;
/// flockd's own log.
mod log;
/// What the bus shows of open tasks.
mod looks;
/// Writes each agent's log into the shared tree.
mod mirror;
/// What flockd tells PID 1.
mod notify;
/// What flockd does for operators.
mod operators;
/// What operators ask of tasks.
mod orders;
/// Whether the loops turn.
mod pulse;
/// Answers questions about the history of tasks.
mod recall;
/// What PID 1 tells by signal.
mod signals;
/// Whether the bus can store what it is sent.
mod store;
/// Events, broadcasts and channels for operators.
mod talk;
/// What is to become of a task whose result does not come.
mod verdict;
/// Hears PID 1.
mod watch_loop;
/// What the loops share.
pub mod world;

/// How long a start waits for the bus. flockd works without it.
const BUS_TIME: Duration = Duration::from_secs(5);

/// The flock supervisor's daemon. systemd starts it; it holds no agent.
#[derive(Parser)]
#[command(name = "flockd", version)]
struct Options {
    /// Another configuration file; agents.d beside it is read too.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
}

/// Why flockd ends.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("flockd needs root: systemctl start flockd")]
    NotRoot,
    #[error("another flockd runs: it holds {}", .0.display())]
    Second(PathBuf),
    #[error("take the lock {}: {cause}", path.display())]
    Lock { path: PathBuf, cause: io::Error },
    #[error("{0}")]
    Config(config::Faults),
    #[error("start: {0}")]
    Runtime(#[from] io::Error),
    #[error(transparent)]
    Control(#[from] control::server::BindError),
    #[error("one of flockd's own tasks ended: {0}")]
    Task(String),
}

impl Fatal {
    /// As flockctl's: 3 for a configuration that is not valid, 4 for missing rights.
    fn code(&self) -> u8 {
        match self {
            Self::NotRoot => 4,
            Self::Config(_) => 3,
            _ => 1,
        }
    }
}

/// Runs flockd until it is told to stop.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    log::init();
    match start(&options.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            tracing::error!("{fatal}");
            ExitCode::from(fatal.code())
        }
    }
}

fn start(file: &Path) -> Result<(), Fatal> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Fatal::NotRoot);
    }
    let _lock = lock(&Path::new(RUN_DIR).join("lock"))?;
    let config = config::load(file).map_err(Fatal::Config)?;
    let world = World::new(file.to_owned(), config, crate::history::database());
    // What waits for long has threads of its own. With one thread more than one loop needs, a disk that
    // is slow for the log of one agent does not hold up the others; each further one is woken for nothing.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build()?.block_on(run(world))
}

/// Held as long as the process lives, so it can never be stale.
fn lock(path: &Path) -> Result<File, Fatal> {
    let fault = |cause| Fatal::Lock { path: path.to_owned(), cause };
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(fault)?;
    let file = File::options().create(true).append(true).mode(0o600).open(path).map_err(fault)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Fatal::Second(path.to_owned())),
        Err(TryLockError::Error(cause)) => Err(fault(cause)),
    }
}

/// Starts every loop; ends on a signal, or when a loop ends, which none should.
async fn run(world: Arc<World>) -> Result<(), Fatal> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (reload, reloads) = mpsc::channel(1);
    let (applied, looked) = (watch::Sender::new(false), watch::Sender::new(false));
    let first = (applied.subscribe(), looked.subscribe());
    let mut tasks: JoinSet<Result<(), Fatal>> = JoinSet::new();
    let of = || Arc::clone(&world);
    let mut forever = |name: &'static str, work: BoxFuture<'static, ()>| {
        tasks.spawn(async move {
            work.await;
            Err(Fatal::Task(name.to_owned()))
        });
    };
    forever("config", config_loop::run(of(), reloads, applied).boxed());
    let tell = watch_loop::Tell { first: looked, reload: reload.clone() };
    forever("watch", watch_loop::run(of(), tell).boxed());
    forever("egress", egress::run(of()).boxed());
    forever("boundary", boundary::run(of()).boxed());
    forever("bus", bus::run(of(), first.0.clone()).boxed());
    forever("events", ear::run(of()).boxed());
    forever("asks", asks::run(of()).boxed());
    forever("forget", forget::run(of()).boxed());
    forever("mirror", mirror::run(of(), first.0.clone()).boxed());
    forever("notify", notify::run(of()).boxed());
    let shared = of();
    tasks.spawn(async move { Ok(operators::run(shared).await?) });
    tasks.spawn(announce(of(), first));
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // One that waits already will read the newest files.
                let _ = reload.try_send(());
            }
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(fatal)) => return Err(fatal),
                Err(error) => return Err(Fatal::Task(error.to_string())),
            },
        }
    }
    notify::stopping();
    let _ = fs::remove_file(control::socket());
    Ok(())
}

/// READY=1 once the machine was brought to the configuration, the agents were looked at, and the bus
/// has their streams; without a bus after a short wait.
async fn announce(
    world: Arc<World>,
    (mut applied, mut looked): (watch::Receiver<bool>, watch::Receiver<bool>),
) -> Result<(), Fatal> {
    let both = async {
        applied.wait_for(|done| *done).await?;
        looked.wait_for(|done| *done).await.map(|_| ())
    };
    // An error means that a loop has ended, which ends flockd anyway.
    if both.await.is_ok() {
        let mut hub = world.hub.subscribe();
        let _ = tokio::time::timeout(BUS_TIME, hub.wait_for(Option::is_some)).await;
        notify::ready(&world);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_flockd_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(Fatal::Second(_))));
        drop(first);
        lock(&path).unwrap();
    }
}
