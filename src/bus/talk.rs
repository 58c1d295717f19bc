//! Who may talk to whom, and how large a message may be: pure data that the accounts are made from.

use std::collections::{BTreeMap, BTreeSet};

use super::server_conf::MAX_PAYLOAD;
use crate::names::{AgentId, ChannelName};

/// What the operator decided about agents that talk to each other. The default: nobody does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// Each channel with its members.
    pub channels: BTreeMap<ChannelName, BTreeSet<AgentId>>,
    /// Pairs: the first may request something of the second.
    pub requests: BTreeSet<(AgentId, AgentId)>,
    /// The largest message of an agent in bytes, where it is not [`MAX_PAYLOAD`].
    pub message: BTreeMap<AgentId, u64>,
}

impl Talk {
    /// The channels that an agent is a member of.
    pub fn channels_of(&self, id: &AgentId) -> impl Iterator<Item = &ChannelName> {
        self.channels.iter().filter(move |(_, members)| members.contains(id)).map(|(name, _)| name)
    }

    /// The agents of which this one may request something.
    pub fn asked_by(&self, id: &AgentId) -> impl Iterator<Item = &AgentId> {
        self.requests.iter().filter(move |(asker, _)| asker == id).map(|(_, asked)| asked)
    }

    /// The agents that may request something of this one.
    pub fn askers_of(&self, id: &AgentId) -> impl Iterator<Item = &AgentId> {
        self.requests.iter().filter(move |(_, asked)| asked == id).map(|(asker, _)| asker)
    }

    /// The largest message of an agent.
    #[must_use]
    pub fn message_of(&self, id: &AgentId) -> u64 {
        self.message.get(id).copied().unwrap_or(MAX_PAYLOAD as u64)
    }
}
