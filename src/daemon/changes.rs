//! What changed in the configuration since flockd last looked, for the audit log. What it saw then is
//! kept over restarts, so that a change made while flockd was down is recorded as well.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::audit::{self, Entry, What};
use crate::config::Config;
use crate::names::{AgentId, STATE_DIR};
use crate::status::ending::replace;

/// What was seen of a configuration: nothing of what it says, only whether it is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Of the host's and the bus's part.
    general: String,
    agents: BTreeMap<AgentId, SeenAgent>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SeenAgent {
    level: u8,
    digest: String,
}

/// Records how this configuration differs from the one that was seen last. It was root who changed
/// the files; flockd can only say that it saw it, and goes on when it cannot.
pub async fn record(file: &Path, config: &Config) {
    let path = Path::new(STATE_DIR).join("config.seen");
    let now = Seen::of(config);
    let before = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let entries = differences(&file.display().to_string(), before.as_ref(), &now);
    if entries.is_empty() {
        return;
    }
    for entry in entries {
        if let Err(error) = audit::record_async(entry).await {
            tracing::error!("a change of the configuration is not recorded: {error}");
            // It is seen as a change again at the next look.
            return;
        }
    }
    let text = serde_json::to_vec(&now).unwrap_or_default();
    if let Err(error) = replace(&path, &text, 0o600) {
        tracing::warn!("write {}: {error}", path.display());
    }
}

impl Seen {
    fn of(config: &Config) -> Self {
        let seen = |agent: &crate::config::AgentConfig| SeenAgent {
            level: agent.level.number(),
            digest: audit::digest(&serde_json::to_vec(agent).unwrap_or_default()),
        };
        let general = serde_json::to_vec(&(&config.host, &config.bus)).unwrap_or_default();
        Self {
            general: audit::digest(&general),
            agents: config.agents.iter().map(|(id, agent)| (id.clone(), seen(agent))).collect(),
        }
    }

    /// Of all of it.
    fn digest(&self) -> String {
        audit::digest(&serde_json::to_vec(self).unwrap_or_default())
    }
}

fn differences(file: &str, before: Option<&Seen>, now: &Seen) -> Vec<Entry> {
    if before == Some(now) {
        return Vec::new();
    }
    let none = Seen::default();
    let old = before.unwrap_or(&none);
    let names = |ids: Vec<&AgentId>| ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(" ");
    let added = now.agents.keys().filter(|id| !old.agents.contains_key(id)).collect();
    let removed = old.agents.keys().filter(|id| !now.agents.contains_key(id)).collect();
    let both = || now.agents.iter().filter_map(|(id, is)| Some((id, old.agents.get(id)?, is)));
    let changed = both().filter(|(_, was, is)| was != is).map(|(id, ..)| id).collect();
    let mut parts = vec![format!("sha256 {}", now.digest())];
    if before.is_none() {
        parts.push("seen for the first time".to_owned());
    } else if old.general != now.general {
        parts.push("changed: [host] or [bus]".to_owned());
    }
    for (word, ids) in [("added", added), ("removed", removed), ("changed", changed)] {
        let ids: Vec<&AgentId> = ids;
        if !ids.is_empty() {
            parts.push(format!("{word}: {}", names(ids)));
        }
    }
    let who = audit::by_flockd;
    let mut entries = vec![Entry::new(who(), What::ConfigChanged, file, parts.join("; "))];
    entries.extend(both().filter(|(_, was, is)| was.level != is.level).map(|(id, was, is)| {
        let detail = format!("level {} before, level {} now", was.level, is.level);
        Entry::new(who(), What::LevelChanged, id, detail)
    }));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(agents: &[(&str, u8, &str)]) -> Seen {
        let agent = |(id, level, digest): &(&str, u8, &str)| {
            let seen = SeenAgent { level: *level, digest: (*digest).to_owned() };
            (AgentId::parse(id).unwrap(), seen)
        };
        Seen { general: "g".into(), agents: agents.iter().map(agent).collect() }
    }

    #[test]
    fn what_differs_is_said_and_a_level_has_its_own_record() {
        let before = seen(&[("a", 1, "x"), ("b", 1, "x"), ("c", 1, "x"), ("same", 1, "x")]);
        let now = seen(&[("a", 0, "y"), ("b", 1, "y"), ("d", 1, "x"), ("same", 1, "x")]);
        assert_eq!(differences("f", Some(&now), &now), []);
        let entries = differences("f", Some(&before), &now);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].detail.ends_with("added: d; removed: c; changed: a b"), "{entries:?}");
        assert_eq!(entries[1].what, What::LevelChanged);
        assert_eq!(
            (entries[1].object.as_str(), entries[1].detail.as_str()),
            ("a", "level 1 before, level 0 now")
        );
        let first = differences("f", None, &now);
        assert!(first[0].detail.contains("first time; added: a b d same"), "{first:?}");
        let general = Seen { general: "h".into(), ..now.clone() };
        assert!(differences("f", Some(&now), &general)[0].detail.contains("[host]"));
    }
}
