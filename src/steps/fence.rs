//! The egress table: what every agent may reach, resolved, loaded and read back.
//!
//! The kernel's table is always the rendering of one small file, `/run/flock/egress.json`: the
//! block, the port of the bus, and the openings of the agents that run. So it can be repaired by
//! anybody, at any time, without the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Egress, HostPort, refused_address};
use crate::fail::{self, Point};
use crate::host::egress::{self, EgressError, Grant, Table};
use crate::host::files::{Dir, Owner};
use crate::names::{AgentId, RUN_DIR, UidBlock};
use crate::plan::{Plan, Property, Value};
use crate::steps::lock::{Lock, LockError};

/// Why the table is not as it has to be.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record of what is open.
    #[error("{verb} {}: {cause}: without it nothing is opened; flockctl apply makes it anew", path().display())]
    Record {
        /// read or write
        verb: &'static str,
        /// What the system said.
        cause: String,
    },
    /// nftables.
    #[error(transparent)]
    Table(#[from] EgressError),
}

/// What is open, for whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fence {
    block: UidBlock,
    bus_port: u16,
    /// Bytes a second; none means without a limit. A record of an older flock has none of this key,
    /// and is replaced by the next `apply`.
    bus_rate: Option<u64>,
    agents: BTreeMap<AgentId, Opening>,
}

/// What one agent may reach besides the bus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    uid: u32,
    unrestricted: bool,
    hosts: Vec<Resolved>,
}

/// A configured exception and its addresses at the last look; none means: closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Resolved {
    host: String,
    port: u16,
    addresses: BTreeSet<IpAddr>,
}

/// The name of the record in `/run/flock`.
const RECORD: &str = "egress.json";

fn path() -> PathBuf {
    Path::new(RUN_DIR).join(RECORD)
}

impl Fence {
    /// The fence with nothing open.
    #[must_use]
    pub fn closed(config: &Config) -> Self {
        Self {
            block: config.host.uid_block,
            bus_port: config.bus.port,
            bus_rate: config.bus.rate,
            agents: BTreeMap::new(),
        }
    }

    /// The record, or a closed fence where there is none: a fresh boot.
    fn read() -> Result<Option<Self>, FenceError> {
        let fault = |cause: String| FenceError::Record { verb: "read", cause };
        match std::fs::read(path()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| fault(e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(error.to_string())),
        }
    }

    fn write(&self) -> Result<(), FenceError> {
        let fault = |cause: String| FenceError::Record { verb: "write", cause };
        let text = serde_json::to_vec_pretty(self).map_err(|e| fault(e.to_string()))?;
        Dir::open(Path::new(RUN_DIR))
            .and_then(|dir| {
                dir.write(RECORD, &text, Owner::ROOT, 0o600)?;
                // What one left who was killed while writing it.
                dir.sweep()
            })
            .map_err(|e| fault(e.to_string()))?;
        fail::at(Point::FenceRecorded);
        Ok(())
    }

    /// The table that the kernel has to hold.
    #[must_use]
    pub fn table(&self) -> Table {
        let grants = self.agents.values().flat_map(|opening| {
            opening.hosts.iter().flat_map(move |host| {
                let grant = |&addr| Grant { uid: opening.uid, addr, port: host.port };
                host.addresses.iter().map(grant)
            })
        });
        let unrestricted = self.agents.values().filter(|o| o.unrestricted).map(|o| o.uid);
        Table {
            block: self.block,
            bus_port: self.bus_port,
            bus_rate: self.bus_rate,
            grants: grants.collect(),
            unrestricted: unrestricted.collect(),
        }
    }
}

impl Opening {
    /// The second wall has to let through what the table lets through.
    #[must_use]
    pub fn allow_property(&self) -> Option<Property> {
        let addresses: BTreeSet<_> = self.hosts.iter().flat_map(|h| &h.addresses).collect();
        let form = |address: &&IpAddr| match address {
            IpAddr::V4(v4) => (2, v4.octets().to_vec(), 32),
            IpAddr::V6(v6) => (10, v6.octets().to_vec(), 128),
        };
        let list: Vec<_> = addresses.iter().map(form).collect();
        (!list.is_empty()).then(|| Property::new("IPAddressAllow", Value::Addresses(list)))
    }

    /// A line for each exception that has no address now.
    #[must_use]
    pub fn unresolved(&self) -> Vec<String> {
        let empty = self.hosts.iter().filter(|h| h.addresses.is_empty());
        empty
            .map(|h| format!("{}:{} has no address now, so it stays closed", h.host, h.port))
            .collect()
    }

    /// The agent's own /etc/hosts: it has no name server, so it could not ask one.
    #[must_use]
    pub fn hosts_file(&self) -> String {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for resolved in self.hosts.iter().filter(|h| h.host.parse::<IpAddr>().is_err()) {
            for address in &resolved.addresses {
                let _ = writeln!(text, "{address} {}", resolved.host);
            }
        }
        text
    }
}

/// Loads the table with what is recorded as open (nothing, on a fresh boot), and reads it back.
/// Without a valid configuration: as recorded, else closed with flock's defaults.
///
/// # Errors
/// When nft does not take it, or the kernel shows something else afterwards.
pub async fn load(config: Option<&Config>) -> Result<(), FenceError> {
    let _lock = Lock::machine().await?;
    load_locked(config).await.map(|_| ())
}

/// The same for one who holds the lock of the machine; what was done, if anything was. With a valid
/// configuration a damaged record is made anew, and then nothing is open: what was is not known.
pub(super) async fn load_locked(config: Option<&Config>) -> Result<Option<String>, FenceError> {
    let (recorded, damage) = match Fence::read() {
        Err(damage) if config.is_some() => (None, Some(damage)),
        recorded => (recorded?, None),
    };
    let fence = match (config, recorded.clone()) {
        (Some(config), Some(fence)) => Fence { agents: fence.agents, ..Fence::closed(config) },
        (Some(config), None) => Fence::closed(config),
        (None, Some(fence)) => fence,
        (None, None) => Fence::closed(&Config::empty()),
    };
    if recorded.as_ref() != Some(&fence) {
        fence.write()?;
    }
    let loaded = set(&fence).await?;
    Ok(match damage {
        Some(damage) => Some(format!(
            "closed the egress table for all agents: {damage}; start those with exceptions again"
        )),
        None => loaded.then(|| "loaded the egress table".to_owned()),
    })
}

/// Whether the kernel shows the recorded table. Changes nothing.
///
/// # Errors
/// With what differs, or why it cannot be asked.
pub async fn check(config: &Config) -> Result<(), FenceError> {
    let fence = Fence::read()?.unwrap_or_else(|| Fence::closed(config));
    Ok(egress::check(&fence.table()).await?)
}

/// Puts the recorded table back if the kernel shows another. `true`: it had to.
///
/// # Errors
/// When nft does not take it, or the kernel shows something else afterwards.
pub async fn repair() -> Result<Option<String>, FenceError> {
    let _lock = Lock::machine().await?;
    let Some(fence) = Fence::read()? else { return Ok(None) };
    match egress::check(&fence.table()).await {
        Ok(()) => Ok(None),
        Err(found) => {
            egress::load(&fence.table()).await?;
            egress::check(&fence.table()).await?;
            Ok(Some(found.to_string()))
        }
    }
}

/// Opens what the plan names for its agent, and reads the whole table back.
///
/// # Errors
/// When nft does not take it, or the kernel shows something else afterwards.
pub async fn open(config: &Config, plan: &Plan) -> Result<Opening, FenceError> {
    let opening = Opening {
        uid: plan.user.uid,
        unrestricted: plan.egress == Egress::Unrestricted,
        hosts: match &plan.egress {
            Egress::Hosts(hosts) => resolve(hosts).await,
            Egress::Bus | Egress::Unrestricted => Vec::new(),
        },
    };
    let _lock = Lock::machine().await?;
    let recorded = Fence::read()?;
    let mut fence = recorded.clone().unwrap_or_else(|| Fence::closed(config));
    if opening == (Opening { uid: plan.user.uid, ..Opening::default() }) {
        fence.agents.remove(&plan.agent);
    } else {
        fence.agents.insert(plan.agent.clone(), opening.clone());
    }
    // Most agents have no exceptions: nothing is written and flushed for them.
    if recorded.as_ref() != Some(&fence) {
        fence.write()?;
    }
    set(&fence).await?;
    Ok(opening)
}

/// Closes what was open for the agent.
///
/// # Errors
/// When nft does not take it, or the kernel shows something else afterwards.
pub async fn close(id: &AgentId) -> Result<(), FenceError> {
    let _lock = Lock::machine().await?;
    let Some(mut fence) = Fence::read()? else { return Ok(()) };
    if fence.agents.remove(id).is_none() {
        return Ok(());
    }
    fence.write()?;
    set(&fence).await.map(|_| ())
}

/// One transaction if the kernel shows another table; then the kernel is asked again.
async fn set(fence: &Fence) -> Result<bool, FenceError> {
    let table = fence.table();
    if egress::check(&table).await.is_ok() {
        return Ok(false);
    }
    egress::load(&table).await?;
    fail::at(Point::FenceLoaded);
    egress::check(&table).await?;
    Ok(true)
}

async fn resolve(hosts: &[HostPort]) -> Vec<Resolved> {
    let mut resolved = Vec::new();
    for HostPort { host, port } in hosts {
        let addresses = tokio::net::lookup_host((host.as_str(), *port)).await;
        let addresses = addresses.map(|all| all.map(|a| a.ip()).filter(reachable).collect());
        resolved.push(Resolved {
            host: host.clone(),
            port: *port,
            addresses: addresses.unwrap_or_default(),
        });
    }
    resolved
}

/// A name must not lead to what only this host or its hypervisor offers: whoever owns the name
/// decides where it points, tomorrow too.
fn reachable(address: &IpAddr) -> bool {
    refused_address(*address).is_none()
}

/// What is recorded as open for the agent.
///
/// # Errors
/// When the record cannot be read.
pub fn opening(id: &AgentId) -> Result<Opening, FenceError> {
    Ok(Fence::read()?.and_then(|mut fence| fence.agents.remove(id)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_back_to_the_host() {
        for bad in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!reachable(&bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.0.2.1", "10.0.0.5", "2001:db8::1"] {
            assert!(reachable(&good.parse().unwrap()), "{good}");
        }
    }
}
