//! The bus's part of apply: identities, the server's files, and that the server has read them.
//!
//! Between the first file that changes and the moment when the server has read all of them stands
//! `/var/lib/flock/bus/pending`: whoever comes after a run that was broken off goes on from there,
//! and no agent is started on a bus that does not know it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::bus::hub::Hub;
use crate::bus::streams::{Delivery, Member};
use crate::bus::talk::Talk;
use crate::bus::{self, identity, server_conf};
use crate::config::{AgentConfig, Config, Mode, Sync};
use crate::fail::{self, Point};
use crate::host::files::{Dir, FilesError, Owner};
use crate::host::units::UnitFacts;
use crate::names::{AgentId, BUS_USER, bus_dir, bus_store, identity_dir};
use crate::steps::apply::{Applied, ApplyError};
use crate::steps::lock::Lock;

/// A link beside the bus's configuration that names the server's program, so that no unit file
/// has to change when the operator names another.
const SERVER_LINK: &str = "nats-server";
/// The file that stands while the server has not read its files; in it is who put it there.
const PENDING: &str = "pending";
/// The largest such file.
const PENDING_MAX: u64 = 64;

/// What happened to the bus's files.
pub(super) struct BusFiles {
    /// The server has to read its files: what [`PENDING`] holds.
    pub pending: Option<Vec<u8>>,
    /// Agents that are configured no more.
    pub retired: Vec<AgentId>,
}

/// Identities in one batch, the server's files, and the link to its program. Under the lock of the
/// machine.
pub(super) fn prepare(config: &Config, done: &mut Applied) -> Result<BusFiles, ApplyError> {
    let settings = settings(config);
    if let Err(error) = bus::version::check(&settings.server) {
        // Everything else is made all the same; the bus refuses to start, and status says so.
        done.warnings.push(error.to_string());
    }
    let ids = ids(config);
    let dir = Dir::open(&bus_dir())?;
    let pending = match differing(config)?.is_empty() {
        true => dir.read(PENDING, Owner::ROOT, PENDING_MAX)?,
        false => Some(mark(&dir)?),
    };
    let identities = identity::ensure(&identity_dir(), &ids, &settings.url())?;
    let group = nix::unistd::Group::from_name(BUS_USER).ok().flatten();
    let gid = group.map(|g| g.gid.as_raw());
    server_conf::write(&bus_dir(), &settings, &identities, &talk(config), gid)?;
    if !link_leads(&dir, &settings)? {
        dir.replace_link(Path::new(SERVER_LINK), &settings.server)?;
    }
    if pending.is_some() {
        done.changes.push(format!("wrote {}", bus_dir().join(server_conf::SERVER_FILE).display()));
    }
    fail::at(Point::BusWritten);
    Ok(BusFiles { pending, retired: identity::stale(&identity_dir(), &ids)? })
}

/// From here on the server has to read its files.
fn mark(dir: &Dir) -> Result<Vec<u8>, FilesError> {
    let who = uuid::Uuid::now_v7().simple().to_string().into_bytes();
    dir.write(PENDING, &who, Owner::ROOT, 0o600)?;
    fail::at(Point::BusPending);
    Ok(who)
}

/// Whether the server runs with another main file. It refuses to reload with most changes of that,
/// and the accounts with it, and says so in its log alone. One whose program would not be replaced
/// by a good one is not restarted.
pub(super) fn needs_restart(config: &Config, server: &UnitFacts) -> Result<bool, ApplyError> {
    let path = bus_dir().join(server_conf::SERVER_FILE);
    let written = path.metadata().and_then(|meta| meta.modified());
    let written = written.map_err(|cause| server_conf::Error::File { path, cause })?;
    let since = server.number("ExecMainStartTimestamp").unwrap_or(0);
    let runs = server.number("MainPID").is_some_and(|pid| pid != 0);
    let newer = written > SystemTime::UNIX_EPOCH + Duration::from_micros(since);
    Ok(runs && newer && bus::version::check(&settings(config).server).is_ok())
}

/// The server has read its files. Another run may have changed them since: then they stay pending.
pub(super) async fn settled(who: &[u8]) -> Result<(), ApplyError> {
    let _lock = Lock::machine().await?;
    let dir = Dir::open(&bus_dir())?;
    if dir.read(PENDING, Owner::ROOT, PENDING_MAX)?.as_deref() == Some(who) {
        dir.remove(Path::new(PENDING))?;
    }
    Ok(())
}

/// Whether the server still has to read its files.
pub(super) fn is_pending() -> bool {
    bus_dir().join(PENDING).symlink_metadata().is_ok()
}

/// What of the bus is not as configured, a line each. Changes nothing.
pub(super) fn differing(config: &Config) -> Result<Vec<String>, ApplyError> {
    let (settings, ids) = (settings(config), ids(config));
    let mut found = Vec::new();
    if !link_leads(&Dir::open(&bus_dir())?, &settings)? {
        let link = bus_dir().join(SERVER_LINK);
        found.push(format!("{} should lead to {}", link.display(), settings.server.display()));
    }
    let there = match identity_dir().exists() {
        true => identity::read(&identity_dir(), &ids)?,
        false => None,
    };
    let Some((identities, urls)) = there else {
        found.push("an agent has no identity on the bus".to_owned());
        return Ok(found);
    };
    if urls.iter().any(|url| *url != settings.url()) {
        found.push(format!("an identity on the bus names another address than {}", settings.url()));
    }
    let files = server_conf::differing(&bus_dir(), &settings, &identities, &talk(config))?;
    found.extend(files.iter().map(|path| format!("{} is not as configured", path.display())));
    Ok(found)
}

fn link_leads(dir: &Dir, settings: &bus::Settings) -> Result<bool, FilesError> {
    Ok(dir.read_link(Path::new(SERVER_LINK))?.as_ref() == Some(&settings.server))
}

fn ids(config: &Config) -> Vec<AgentId> {
    config.agents.keys().cloned().collect()
}

/// Streams and consumers of every agent. A bus that does not answer yet gets them from flockd.
pub(super) async fn make_streams(config: &Config, done: &mut Applied) {
    let made = async {
        let (identity, url) = identity::operator(&identity_dir()).map_err(|e| e.to_string())?;
        let hub = Hub::connect(&identity, &url).await.map_err(|e| e.to_string())?;
        hub.ensure(&members(config)).await.map_err(|e| e.to_string())
    };
    match made.await {
        Ok(_) => fail::at(Point::StreamsMade),
        Err(error) => {
            done.warnings.push(format!("{error} (flockd makes the streams when the bus answers)"));
        }
    }
}

/// The agents as the bus knows them.
#[must_use]
pub fn members(config: &Config) -> Vec<Member> {
    let member = |(id, agent): (&AgentId, &AgentConfig)| Member {
        id: id.clone(),
        delivery: match agent.mode {
            Mode::Task | Mode::JsonLines => Delivery::Pull,
            Mode::Service => Delivery::Push,
        },
    };
    config.agents.iter().map(member).collect()
}

/// Who may talk to whom, in the bus's words.
#[must_use]
pub fn talk(config: &Config) -> Talk {
    let pairs = |(id, agent): (&AgentId, &AgentConfig)| {
        agent.may_request.iter().map(|asked| (id.clone(), asked.clone())).collect::<Vec<_>>()
    };
    Talk {
        channels: config.channels.clone(),
        requests: config.agents.iter().flat_map(pairs).collect(),
        message: config.agents.iter().map(|(id, a)| (id.clone(), a.limits.message)).collect(),
    }
}

/// The bus's part of the configuration, in its own words.
#[must_use]
pub fn settings(config: &Config) -> bus::Settings {
    bus::Settings {
        server: config.bus.server.clone(),
        port: config.bus.port,
        sync: match config.bus.sync {
            Sync::Always => "always".to_owned(),
            Sync::Every(span) => format!("{}s", span.as_secs()),
        },
        store: bus_store(),
    }
}
