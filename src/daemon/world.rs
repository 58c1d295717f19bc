//! What flockd's loops share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::bus::hub::Hub;
use crate::bus::queue::Order;
use crate::config::Config;
use crate::daemon::asks::Asks;
use crate::daemon::ear::Ear;
use crate::daemon::ledger::{Claims, Ledger};
use crate::daemon::pulse::Pulses;
use crate::names::AgentId;
use crate::status::boundary::Standing;
use crate::status::health::{Part, View};

/// Shared by all loops; each part has one writer.
pub struct World {
    /// Where the configuration is.
    pub file: PathBuf,
    /// The configuration that is in force; loops that depend on it wait for changes.
    pub config: watch::Sender<Arc<Config>>,
    /// How often the configuration was applied.
    pub applies: watch::Sender<u64>,
    /// The connection to the bus, while there is one.
    pub hub: watch::Sender<Option<Hub>>,
    /// What happened to all tasks.
    pub ledger: Ledger,
    /// Where loops put what agents say of their tasks.
    pub claims: Claims,
    /// What the shared queue is told, while it runs.
    pub orders: Mutex<Option<UnboundedSender<Order>>>,
    /// The loops' signs of life.
    pub pulses: Pulses,
    /// The calls of tools that wait for an operator.
    pub asks: Asks,
    /// What agents tell of themselves.
    pub ear: Ear,
    facts: Mutex<Facts>,
}

/// What `status` and `STATUS=` are made of.
struct Facts {
    view: View,
    counts: Counts,
}

/// How many agents do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Their processes run.
    pub running: usize,
    /// They ended with an error.
    pub failed: usize,
}

impl World {
    /// The world of a flockd that was just started.
    #[must_use]
    pub fn new(file: PathBuf, config: Config, history: PathBuf) -> Arc<Self> {
        let not_yet = || Part::broken("flockd has just been started");
        let view = View {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: Timestamp::now(),
            bus: not_yet(),
            egress: not_yet(),
            systemd: not_yet(),
            config: not_yet(),
            history: not_yet(),
            tasks: None,
            heartbeats: BTreeMap::new(),
            boundary: BTreeMap::new(),
            measuring: Part::fine(),
            asks: 0,
        };
        Arc::new(Self {
            file,
            config: watch::Sender::new(Arc::new(config)),
            applies: watch::Sender::new(0),
            hub: watch::Sender::new(None),
            ledger: Ledger::new(history),
            claims: Claims::default(),
            orders: Mutex::new(None),
            pulses: Pulses::default(),
            asks: Asks::default(),
            ear: Ear::default(),
            facts: Mutex::new(Facts { view, counts: Counts::default() }),
        })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration that is in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// What an operator is told.
    #[must_use]
    pub fn view(&self) -> View {
        View { asks: self.asks.count(), ..self.facts().view.clone() }
    }

    /// Sets the condition of one part, and logs it when it changes.
    pub fn report(&self, which: Which, part: Part) {
        let mut facts = self.facts();
        let place = which.of(&mut facts.view);
        if *place == part {
            return;
        }
        match (part.ok, &part.note) {
            (false, Some(note)) => tracing::warn!("{}: {note}", which.name()),
            (true, _) if !place.ok => tracing::info!("{}: in order", which.name()),
            _ => {}
        }
        *place = part;
    }

    /// What the last measurement found.
    pub fn measured(&self, agents: BTreeMap<AgentId, Standing>) {
        self.facts().view.boundary = agents;
    }

    /// Tells the shared queue something, if it runs; it finds out later otherwise.
    pub fn order(&self, order: Order) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(orders) = orders.as_ref() {
            let _ = orders.send(order);
        }
    }

    /// A heartbeat came.
    pub fn heartbeat(&self, agent: AgentId) {
        self.facts().view.heartbeats.insert(agent, Timestamp::now());
    }

    /// Heartbeats of agents that are gone are no longer shown.
    pub fn keep_heartbeats(&self, keep: impl Fn(&AgentId) -> bool) {
        self.facts().view.heartbeats.retain(|id, _| keep(id));
    }

    /// How many agents do what.
    pub fn count(&self, counts: Counts) {
        self.facts().counts = counts;
    }

    /// One line for `systemctl status flockd`.
    #[must_use]
    pub fn line(&self) -> String {
        let mut facts = self.facts();
        let Counts { running, failed } = facts.counts;
        let mut text = format!("agents running: {running}, failed: {failed}");
        for which in Which::ALL {
            let part = which.of(&mut facts.view);
            if !part.ok {
                let note = part.note.as_deref().and_then(|note| note.lines().next());
                text.push_str(&format!("; {}: {}", which.name(), note.unwrap_or("not in order")));
            }
        }
        text
    }
}

/// A part whose condition is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The connection to the bus.
    Bus,
    /// The egress table.
    Egress,
    /// The connection to PID 1.
    Systemd,
    /// Whether the configuration is applied.
    Config,
    /// Whether the history of tasks is being written.
    History,
    /// Whether the boundaries are measured.
    Boundary,
}

impl Which {
    const ALL: [Self; 6] =
        [Self::Bus, Self::Egress, Self::Systemd, Self::Config, Self::History, Self::Boundary];

    fn of(self, view: &mut View) -> &mut Part {
        match self {
            Self::Bus => &mut view.bus,
            Self::Egress => &mut view.egress,
            Self::Systemd => &mut view.systemd,
            Self::Config => &mut view.config,
            Self::History => &mut view.history,
            Self::Boundary => &mut view.measuring,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bus => "the bus",
            Self::Egress => "egress",
            Self::Systemd => "systemd",
            Self::Config => "the configuration",
            Self::History => "the history of tasks",
            Self::Boundary => "measuring the boundary",
        }
    }
}
