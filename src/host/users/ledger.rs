//! Who has which number. Every number that was ever given stays in here.
//!
//! Files keep their numbers when a user is removed. A number that went to another agent would hand
//! it those files, so that the ledger only ever grows, and a damaged ledger is never started anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::UsersError;
use crate::fail::{self, Point};
use crate::host::files::{Dir, Owner};
use crate::names::{AgentId, STATE_DIR, UidBlock};
use crate::plan::Uids;

/// The form that this flock reads and writes.
const VERSION: u32 = 1;
/// The name of the file in the state directory.
const FILE: &str = "uids.json";
/// More than 34,464 entries of the longest ids.
const SIZE_MAX: u64 = 4 << 20;

/// The numbers of all agents there ever were on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    state: PathBuf,
    uids: Uids,
    stored: Option<Uids>,
}

/// The ledger as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    uids: BTreeMap<AgentId, u32>,
}

/// Just enough to tell a newer form from a damaged one.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Ledger {
    /// Reads the ledger of this host.
    ///
    /// # Errors
    /// When it is damaged, or missing although agents were here. Nothing is changed then.
    pub fn load() -> Result<Self, UsersError> {
        Self::load_from(Path::new(STATE_DIR))
    }

    /// Reads the ledger in another state directory.
    ///
    /// # Errors
    /// As [`Ledger::load`].
    pub fn load_from(state: &Path) -> Result<Self, UsersError> {
        let path = state.join(FILE);
        let bad = |cause: String| UsersError::Ledger {
            path: path.clone(),
            cause,
            remedy: "put it back from a backup; numbers that were given before must never be \
                     given again, so flock does not start a new one"
                .to_owned(),
        };
        let bytes = match Dir::open_if_there(state)? {
            Some(dir) => dir.read(FILE, Owner::ROOT, SIZE_MAX)?,
            None => None,
        };
        let Some(bytes) = bytes else {
            return match trace_of_agents(state) {
                Some(trace) => Err(bad(format!("it is missing, but {trace}"))),
                None => Ok(Self { state: state.into(), uids: Uids::new(), stored: None }),
            };
        };
        let uids = parse(&bytes).map_err(bad)?;
        Ok(Self { state: state.into(), stored: Some(uids.clone()), uids })
    }

    /// The number of the agent: the one it has, or the lowest that nobody ever had.
    ///
    /// Pure: [`Ledger::store`] makes it last, and must come before the number is used.
    ///
    /// # Errors
    /// When the block is used up, or the agent's number is outside of it.
    pub fn assign(&mut self, block: UidBlock, agent: &AgentId) -> Result<u32, UsersError> {
        let fail = |cause| Err(UsersError::Assign { agent: agent.to_string(), cause });
        if let Some(&uid) = self.uids.get(agent) {
            if block.contains(uid) && uid != block.first {
                return Ok(uid);
            }
            return fail(format!(
                "it has {uid}, which is not in host.uid-block {block} (less the first, which is \
                 flock-workspace's): the egress fence would not hold it; put the former block back"
            ));
        }
        let given: std::collections::BTreeSet<u32> = self.uids.values().copied().collect();
        let free = (block.first.saturating_add(1)..=block.last).find(|uid| !given.contains(uid));
        match free {
            Some(uid) => {
                self.uids.insert(agent.clone(), uid);
                Ok(uid)
            }
            None => fail(format!(
                "every number of host.uid-block {block} was given once: widen the block upwards"
            )),
        }
    }

    /// Every number that was ever given.
    #[must_use]
    pub fn uids(&self) -> &Uids {
        &self.uids
    }

    /// Makes the ledger last, if it changed: after return it survives a power cut.
    ///
    /// # Errors
    /// When the file cannot be replaced; the former one stands then.
    pub fn store(&mut self) -> Result<(), UsersError> {
        if self.stored.as_ref() == Some(&self.uids) {
            return Ok(());
        }
        let form = Form { version: VERSION, uids: self.uids.clone() };
        let mut text = serde_json::to_string_pretty(&form).map_err(|error| UsersError::Ledger {
            path: self.state.join(FILE),
            cause: error.to_string(),
            remedy: "report this as a fault of flock".to_owned(),
        })?;
        text.push('\n');
        Dir::open(&self.state)?.write(FILE, text.as_bytes(), Owner::ROOT, 0o644)?;
        self.stored = Some(self.uids.clone());
        fail::at(Point::LedgerStored);
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Uids, String> {
    let version: Version =
        serde_json::from_slice(bytes).map_err(|error| format!("it is damaged ({error})"))?;
    if version.version != VERSION {
        return Err(format!("it has form {}, this flock reads form {VERSION}", version.version));
    }
    let form: Form =
        serde_json::from_slice(bytes).map_err(|error| format!("it is damaged ({error})"))?;
    let mut owners: BTreeMap<u32, &AgentId> = BTreeMap::new();
    for (agent, &uid) in &form.uids {
        if let Some(other) = owners.insert(uid, agent) {
            return Err(format!("it is damaged ({other} and {agent} both have {uid})"));
        }
    }
    Ok(form.uids)
}

/// Something on this host that only an agent can have left, if there is any.
fn trace_of_agents(state: &Path) -> Option<String> {
    for place in ["shared/agents", "roots"] {
        let Ok(entries) = fs::read_dir(state.join(place)) else { continue };
        if let Some(entry) =
            entries.flatten().find(|e| names_agent(&e.file_name().to_string_lossy()))
        {
            return Some(format!("{} exists", entry.path().display()));
        }
    }
    None
}

fn names_agent(name: &str) -> bool {
    AgentId::parse(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;

    fn id(text: &str) -> AgentId {
        AgentId::parse(text).unwrap()
    }

    const BLOCK: UidBlock = UidBlock { first: 100, last: 103 };

    #[test]
    fn numbers_are_stable_and_the_first_is_kept() {
        let Some(state) = testing::root_dir("ledger_stable") else { return };
        let mut ledger = Ledger::load_from(state.path()).unwrap();
        assert_eq!(ledger.assign(BLOCK, &id("b")).unwrap(), 101);
        assert_eq!(ledger.assign(BLOCK, &id("a")).unwrap(), 102);
        assert_eq!(ledger.assign(BLOCK, &id("b")).unwrap(), 101);
        ledger.store().unwrap();
        let mut again = Ledger::load_from(state.path()).unwrap();
        assert_eq!(again.uids(), ledger.uids());
        assert_eq!(again.assign(BLOCK, &id("c")).unwrap(), 103);
        let full = again.assign(BLOCK, &id("d")).unwrap_err().to_string();
        assert!(full.contains("host.uid-block 100-103") && full.contains("agent d"), "{full}");
        let moved = UidBlock { first: 102, last: 200 };
        assert!(again.assign(moved, &id("b")).is_err(), "outside of the block");
        assert!(
            again.assign(moved, &id("a")).is_err(),
            "the first of the block is the workspace's"
        );
    }

    #[test]
    fn storing_writes_only_on_a_change() {
        use std::os::unix::fs::MetadataExt as _;
        let Some(state) = testing::root_dir("ledger_change") else { return };
        let mut ledger = Ledger::load_from(state.path()).unwrap();
        ledger.assign(BLOCK, &id("a")).unwrap();
        ledger.store().unwrap();
        let inode = || fs::metadata(state.path().join(FILE)).unwrap().ino();
        let before = inode();
        Ledger::load_from(state.path()).unwrap().store().unwrap();
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_damaged_ledger_is_refused_and_left_alone() {
        let Some(state) = testing::root_dir("ledger_damaged") else { return };
        let path = state.path().join(FILE);
        let cases = [
            ("", "damaged"),
            ("{", "damaged"),
            ("{\"version\": 1}", "damaged"),
            ("{\"version\": 2, \"more\": 1}", "form 2"),
            ("{\"version\": 1, \"uids\": {\"a\": 5, \"b\": 5}}", "both have 5"),
            ("{\"version\": 1, \"uids\": {\"../x\": 5}}", "damaged"),
            ("{\"version\": 1, \"uids\": {\"a\": -5}}", "damaged"),
            ("{\"version\": 1, \"uids\": {}, \"x\": 1}", "damaged"),
        ];
        for (text, why) in cases {
            fs::write(&path, text).unwrap();
            let error = Ledger::load_from(state.path()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("backup"), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_lost_ledger_is_not_started_anew() {
        let Some(state) = testing::root_dir("ledger_lost") else { return };
        fs::create_dir_all(state.path().join("shared/agents")).unwrap();
        assert!(Ledger::load_from(state.path()).is_ok(), "an installed, unused host");
        fs::create_dir_all(state.path().join("shared/agents/agent-1")).unwrap();
        let error = Ledger::load_from(state.path()).unwrap_err().to_string();
        assert!(error.contains("missing, but") && error.contains("agents/agent-1"), "{error}");
    }
}
