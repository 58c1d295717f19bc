//! What an operator says and hears beside tasks: events, broadcasts, channels.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bus::speak::Said;
use crate::bus::told::Told;
use crate::names::{AgentId, ChannelName};

/// What can be asked: `{"verb":"talk","what":"channel-list"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Talk {
    /// What agents tell of themselves.
    Events {
        /// Whose; none means everybody's.
        agents: BTreeSet<AgentId>,
        /// Go on with those that come.
        follow: bool,
        /// The heartbeats too.
        heartbeats: bool,
    },
    /// Something is said to every agent.
    Broadcast {
        /// The words.
        text: String,
    },
    /// The channels and their members.
    ChannelList,
    /// What is said on a channel from now on.
    ChannelWatch {
        /// Which.
        channel: ChannelName,
    },
    /// Something is said on a channel.
    ChannelSend {
        /// Which.
        channel: ChannelName,
        /// The words.
        text: String,
    },
}

impl Talk {
    /// Whether the answer can take long, so that a peer that leaves must end it.
    #[must_use]
    pub fn is_long(&self) -> bool {
        match self {
            Self::Events { follow, .. } => *follow,
            Self::ChannelWatch { .. } => true,
            Self::Broadcast { .. } | Self::ChannelList | Self::ChannelSend { .. } => false,
        }
    }
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Heard {
    /// An event or a heartbeat.
    Told(Told),
    /// Something that was said on a channel.
    Said(Said),
    /// A channel.
    Channel {
        /// Its name.
        channel: ChannelName,
        /// Who may speak and hear on it.
        members: BTreeSet<AgentId>,
    },
    /// What the operator said is with the bus.
    Sent {
        /// Who hears it if it listens.
        members: BTreeSet<AgentId>,
    },
    /// Flock hears what comes from now on.
    Listening,
    /// So much came faster than it was read, and is left out here.
    LeftOut {
        /// How many messages.
        count: u64,
    },
    /// The bus went away or is back; what was said meanwhile was not heard.
    Bus {
        /// Whether it is there.
        up: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Request, Response};

    #[test]
    fn talk_has_one_form_on_the_wire() {
        let channel = ChannelName::parse("x").unwrap();
        let send = Request::Talk(Talk::ChannelSend { channel: channel.clone(), text: "hi".into() });
        let json = r#"{"verb":"talk","what":"channel-send","channel":"x","text":"hi"}"#;
        assert_eq!(serde_json::to_string(&send).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), send);
        let told = Told {
            at: jiff::Timestamp::UNIX_EPOCH,
            agent: AgentId::parse("a").unwrap(),
            heartbeat: false,
            event: None,
            task: None,
            detail: None,
            text: "\u{1b}".into(),
            cut: false,
        };
        for heard in [Heard::Told(told), Heard::Channel { channel, members: BTreeSet::new() }] {
            let line = serde_json::to_string(&Response::Heard(heard.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), Response::Heard(heard));
        }
    }

    #[test]
    fn what_is_no_talk_is_refused() {
        for json in [
            r#"{"verb":"talk"}"#,
            r#"{"verb":"talk","what":"shout","text":"x"}"#,
            r#"{"verb":"talk","what":"broadcast"}"#,
            r#"{"verb":"talk","what":"broadcast","text":"x","from":"root"}"#,
            r#"{"verb":"talk","what":"channel-send","channel":"x.*","text":"x"}"#,
            r#"{"verb":"talk","what":"channel-watch","channel":">"}"#,
            r#"{"verb":"talk","what":"events","agents":["*"],"follow":true,"heartbeats":false}"#,
        ] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
