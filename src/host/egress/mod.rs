//! What agents may reach on the network, and how that is made true.
//!
//! One table, `inet flock`, is always replaced as a whole in one transaction and then read back:
//! a table that is not exactly the planned one, rule by rule and element by element, counts as no
//! fence. `nftables/README.md` says what each rule is for and what the table cannot see.

/// The listing of a table as data, and the differences of two.
mod listing;
/// `Table` to nft text: pure.
mod rules;
/// Notices that somebody changed the ruleset.
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub use watch::Watch;

use super::command::{CommandError, Program};
use crate::names::UidBlock;

const NFT: Program = Program { path: "/usr/sbin/nft", package: "nftables" };

/// The fence around all agents, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Whose packets are judged at all.
    pub block: UidBlock,
    /// The port of the bus on 127.0.0.1, which every agent may reach.
    pub bus_port: u16,
    /// How many bytes a second each user may send to the bus; none means without a limit.
    pub bus_rate: Option<u64>,
    /// What single agents may reach besides.
    pub grants: BTreeSet<Grant>,
    /// Users that may connect to anything.
    pub unrestricted: BTreeSet<u32>,
}

/// One address and TCP port that one user may connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The agent's user.
    pub uid: u32,
    /// Where to. An IPv4 address in IPv6 form counts as IPv4, which is what goes out.
    pub addr: IpAddr,
    /// The TCP port.
    pub port: u16,
}

/// Why the fence does not stand as planned.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// nft did not take the table; the former one stands.
    #[error("load the egress table: {0}")]
    Load(#[source] CommandError),
    /// nft did not show the table.
    #[error("read the egress table back: {0}")]
    Read(#[source] CommandError),
    /// There is no table.
    #[error("the egress table inet flock is not loaded: systemctl restart flock-net.service")]
    Missing,
    /// The kernel holds another table.
    #[error("the egress table inet flock is not as planned: {}: systemctl restart flock-net.service", .0.join("; "))]
    Differs(Vec<String>),
    /// The changes of the ruleset cannot be watched.
    #[error("watch for changes of the nftables ruleset: {0}")]
    Watch(#[source] std::io::Error),
    /// The work was broken off.
    #[error("the work on the egress table was broken off: {0}")]
    Aborted(#[source] tokio::task::JoinError),
}

/// Replaces the whole table in one transaction: there is no moment without one.
///
/// # Errors
/// When nft is missing or refuses; the former table stands then.
pub async fn load(table: &Table) -> Result<(), EgressError> {
    let text = rules::render(table);
    blocking(move || NFT.run(&["-f", "-"], &text).map(drop).map_err(EgressError::Load)).await
}

/// Whether the kernel holds exactly this table. Changes nothing; needs root.
///
/// # Errors
/// When it is missing or anything in it differs; at most five differences are named.
pub async fn check(table: &Table) -> Result<(), EgressError> {
    let text = rules::render(table);
    blocking(move || {
        let loaded = match NFT.run(&["-s", "list", "table", "inet", "flock"], "") {
            Ok(loaded) => loaded,
            Err(CommandError::Failed { message, .. }) if message.contains("No such file") => {
                return Err(EgressError::Missing);
            }
            Err(error) => return Err(EgressError::Read(error)),
        };
        let differences = listing::differences(&loaded, &text);
        if differences.is_empty() { Ok(()) } else { Err(EgressError::Differs(differences)) }
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EgressError> + Send + 'static,
) -> Result<T, EgressError> {
    tokio::task::spawn_blocking(work).await.map_err(EgressError::Aborted)?
}
