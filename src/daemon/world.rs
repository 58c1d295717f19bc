//! What flockd's loops share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::bus::hub::Hub;
use crate::config::Config;
use crate::daemon::asks::Asks;
use crate::daemon::pulse::Pulses;
use crate::names::AgentId;
use crate::status::health::{Part, View};

/// Shared by all loops; each part has one writer.
pub struct World {
    /// Where the configuration is.
    pub file: PathBuf,
    /// The configuration that is in force; loops that depend on it wait for changes.
    pub config: watch::Sender<Arc<Config>>,
    /// The connection to the bus, while there is one.
    pub hub: watch::Sender<Option<Hub>>,
    /// The loops' signs of life.
    pub pulses: Pulses,
    /// The calls of tools that wait for an operator.
    pub asks: Asks,
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
    pub fn new(file: PathBuf, config: Config) -> Arc<Self> {
        let not_yet = || Part::broken("flockd has just been started");
        let view = View {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: Timestamp::now(),
            bus: not_yet(),
            egress: not_yet(),
            systemd: not_yet(),
            config: not_yet(),
            history: Part::fine(),
            tasks: None,
            heartbeats: BTreeMap::new(),
            asks: 0,
        };
        Arc::new(Self {
            file,
            config: watch::Sender::new(Arc::new(config)),
            hub: watch::Sender::new(None),
            pulses: Pulses::default(),
            asks: Asks::default(),
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
}

impl Which {
    const ALL: [Self; 5] = [Self::Bus, Self::Egress, Self::Systemd, Self::Config, Self::History];

    fn of(self, view: &mut View) -> &mut Part {
        match self {
            Self::Bus => &mut view.bus,
            Self::Egress => &mut view.egress,
            Self::Systemd => &mut view.systemd,
            Self::Config => &mut view.config,
            Self::History => &mut view.history,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bus => "the bus",
            Self::Egress => "egress",
            Self::Systemd => "systemd",
            Self::Config => "the configuration",
            Self::History => "the history of tasks",
        }
    }
}
