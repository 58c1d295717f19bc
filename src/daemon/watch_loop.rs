//! The loop that hears PID 1 and brings what it hears to an end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::bus::queue::Order;
use crate::daemon::ends::Ends;
use crate::daemon::pulse::Loop;
use crate::daemon::signals::{self, Heard};
use crate::daemon::world::{Counts, Which, World};
use crate::host::units::{Systemd, UnitError};
use crate::names::AgentId;
use crate::status::health::Part;
use crate::status::systemd::{Units, list};

/// PID 1 serves nobody while it reloads; a longer silence is a lost connection.
const PATIENCE: Duration = Duration::from_secs(150);
/// Signals come in bursts (18 for one start): one list answers all of a burst.
const BURST: Duration = Duration::from_millis(150);
/// A list without a hint: what no signal tells, and a check that PID 1 still answers.
const QUIET: Duration = Duration::from_secs(60);
/// A list while something has to be looked at again.
const SOON: Duration = Duration::from_secs(1);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_secs(2);

/// Why PID 1 is not heard.
#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("hear systemd over the system bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("the connection to the system bus is closed")]
    Closed,
    #[error("systemd did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Whom the loop tells what.
pub struct Tell {
    /// The agents were looked at for the first time.
    pub first: watch::Sender<bool>,
    /// The configuration on disk is another than the one in force.
    pub reload: mpsc::Sender<()>,
}

/// Runs for ever; connects again when the bus or PID 1 went away.
pub async fn run(world: Arc<World>, tell: Tell) {
    let mut ends = Ends::default();
    let mut newcomers = Newcomers::default();
    let mut lives = Lives::default();
    loop {
        world.pulses.beat(Loop::Watch);
        let Err(why) = hear(&world, &mut ends, &mut newcomers, &mut lives, &tell).await;
        world.report(Which::Systemd, Part::broken(why));
        sleep(RETRY).await;
    }
}

async fn hear(
    world: &World,
    ends: &mut Ends,
    newcomers: &mut Newcomers,
    lives: &mut Lives,
    tell: &Tell,
) -> Result<std::convert::Infallible, Deaf> {
    let systemd = timeout(PATIENCE, Systemd::connect()).await.map_err(|_| Deaf::Silent)??;
    let (mut heard, listener) = signals::listen(systemd.connection()).await?;
    let _listener = AbortOnDrop(listener);
    loop {
        world.pulses.beat(Loop::Watch);
        heard.borrow_and_update();
        let asked = Instant::now();
        let agents = timeout(PATIENCE, list(&systemd)).await.map_err(|_| Deaf::Silent)??;
        world.report(Which::Systemd, Part::fine());
        take_stock(world, &agents);
        for id in lives.ended(&agents) {
            world.order(Order::Gone(id, asked));
        }
        ends.settle(&systemd, &agents).await;
        if newcomers.are_new(&agents, |id| world.config().agents.contains_key(id)) {
            // A reload that waits already will read the same files.
            let _ = tell.reload.try_send(());
        }
        tell.first.send_replace(true);
        wait(&mut heard, if ends.is_waiting() { SOON } else { QUIET }).await?;
    }
}

/// Waits for a hint, or until the time is over; never while PID 1 reloads.
async fn wait(heard: &mut watch::Receiver<Heard>, at_most: Duration) -> Result<(), Deaf> {
    match timeout(at_most, heard.changed()).await {
        Ok(Ok(())) => sleep(BURST).await,
        Ok(Err(_)) => return Err(Deaf::Closed),
        Err(_) => {}
    }
    let done = timeout(PATIENCE, heard.wait_for(|heard| !heard.reloading)).await;
    match done {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Deaf::Closed),
        Err(_) => Err(Deaf::Silent),
    }
}

/// What the status line is made of.
fn take_stock(world: &World, agents: &BTreeMap<AgentId, Units>) {
    let is = |units: &&Units, active: &str, sub: &str| {
        units.unit.as_ref().is_some_and(|row| row.active == active && row.sub == sub)
    };
    let failed = |units: &&Units| {
        is(units, "failed", "failed")
            || units.unit.is_none()
                && units.handle.as_ref().is_some_and(|row| row.active == "failed")
    };
    world.count(Counts {
        running: agents.values().filter(|units| is(units, "active", "running")).count(),
        failed: agents.values().filter(failed).count(),
    });
    world.keep_heartbeats(|id| agents.get(id).is_some_and(|units| units.unit.is_some()));
}

/// Agents that run and are not in the configuration in force: somebody changed the files and
/// started one, which needs no flockd; now flockd has to know it too.
#[derive(Default)]
struct Newcomers {
    asked: BTreeSet<AgentId>,
}

impl Newcomers {
    /// Whether there is one that was not there before. Each counts once: the files may not name it.
    fn are_new(
        &mut self,
        agents: &BTreeMap<AgentId, Units>,
        is_known: impl Fn(&AgentId) -> bool,
    ) -> bool {
        let unknown = |(id, units): &(&AgentId, &Units)| units.unit.is_some() && !is_known(id);
        let now: BTreeSet<AgentId> =
            agents.iter().filter(unknown).map(|(id, _)| id.clone()).collect();
        let any = !now.is_subset(&self.asked);
        self.asked = now;
        any
    }
}

/// Agents that ran at the last look.
#[derive(Default)]
struct Lives {
    up: BTreeSet<AgentId>,
}

impl Lives {
    /// Those that have ended since and are not started again: what they had can go to others.
    fn ended(&mut self, agents: &BTreeMap<AgentId, Units>) -> Vec<AgentId> {
        let unit = |id: &AgentId| agents.get(id).and_then(|units| units.unit.as_ref());
        let over = |id: &AgentId| {
            unit(id).is_none_or(|row| {
                row.is_final_failure() || row.is_clean_end() || row.active == "inactive" && !row.job
            })
        };
        let ended: Vec<AgentId> = self.up.iter().filter(|id| over(id)).cloned().collect();
        let up = |id: &&AgentId| unit(id).is_some_and(|row| row.active == "active");
        // One that is being restarted has not ended and does not run.
        self.up.retain(|id| !over(id));
        self.up.extend(agents.keys().filter(up).cloned());
        ended
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_asks_for_one_reload() {
        use crate::status::facts::Row;
        let id = AgentId::parse("new").unwrap();
        let units = Units { unit: Some(Row::default()), handle: None };
        let here = BTreeMap::from([(id, units)]);
        let mut newcomers = Newcomers::default();
        assert!(!newcomers.are_new(&here, |_| true));
        assert!(newcomers.are_new(&here, |_| false));
        assert!(!newcomers.are_new(&here, |_| false));
        assert!(!newcomers.are_new(&BTreeMap::new(), |_| false));
        assert!(newcomers.are_new(&here, |_| false));
    }

    #[test]
    fn an_agent_has_ended_when_it_ran_and_is_not_started_again() {
        use crate::status::facts::Row;
        let id = AgentId::parse("a").unwrap();
        let with = |active: &str, sub: &str, job: bool| {
            let row = Row { active: active.into(), sub: sub.into(), job };
            BTreeMap::from([(id.clone(), Units { unit: Some(row), handle: None })])
        };
        let mut lives = Lives::default();
        assert!(lives.ended(&with("failed", "failed", false)).is_empty(), "it never ran");
        assert!(lives.ended(&with("active", "running", false)).is_empty());
        assert!(lives.ended(&with("activating", "auto-restart", false)).is_empty());
        assert_eq!(lives.ended(&with("failed", "failed", false)), std::slice::from_ref(&id));
        assert!(lives.ended(&with("failed", "failed", false)).is_empty(), "once");
        assert!(lives.ended(&with("active", "running", false)).is_empty());
        assert_eq!(lives.ended(&BTreeMap::new()), std::slice::from_ref(&id));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_at_while_systemd_reloads() {
        let (sender, mut heard) = watch::channel(Heard::default());
        sender.send_modify(|heard| heard.reloading = true);
        let begun = tokio::time::Instant::now();
        let later = tokio::spawn(async move {
            sleep(Duration::from_secs(40)).await;
            sender.send_modify(|heard| heard.reloading = false);
            sleep(Duration::from_secs(1000)).await;
        });
        wait(&mut heard, QUIET).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(40));
        later.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_connection_and_a_dead_reload_are_told_apart_from_quiet() {
        let (sender, mut heard) = watch::channel(Heard::default());
        wait(&mut heard, QUIET).await.unwrap();
        sender.send_modify(|heard| heard.reloading = true);
        assert!(matches!(wait(&mut heard, QUIET).await, Err(Deaf::Silent)));
        drop(sender);
        assert!(matches!(wait(&mut heard, QUIET).await, Err(Deaf::Closed)));
    }
}
