//! `flockctl broadcast` and `channel`: what the operator says to agents, and hears on channels.

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;

use crate::bus::speak::Said;
use crate::cli::talk::{converse, head, lines, words};
use crate::cli::{Failure, out};
use crate::control::{Heard, Talk};
use crate::names::{AgentId, ChannelName};
use crate::text::printable_json;

/// So many members are named to people.
const NAMED: usize = 12;

/// The command line of `broadcast`.
#[derive(Args)]
#[command(after_help = "Nothing is stored: an agent that does not listen now never hears it.")]
pub struct Broadcast {
    /// The words; - reads them from standard input.
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
}

/// The verbs on channels.
#[derive(Subcommand)]
pub enum Channel {
    /// Show the channels and who may speak and hear on them.
    List {
        /// One JSON object a line: channel, members.
        #[arg(long)]
        json: bool,
    },
    /// Show what is said on a channel from now on, until Ctrl-C.
    Watch {
        /// Which.
        #[arg(value_name = "NAME")]
        channel: ChannelName,
        /// One JSON object a line: at, channel, from, text.
        #[arg(long)]
        json: bool,
    },
    /// Say something on a channel; who does not listen now never hears it.
    Send {
        /// Which.
        #[arg(value_name = "NAME")]
        channel: ChannelName,
        /// The words; - reads them from standard input.
        #[arg(value_name = "TEXT")]
        text: Option<String>,
    },
}

/// Says something to every agent.
///
/// # Errors
/// When there are no words or too many, or flockd or the bus does not take it.
pub fn broadcast(args: &Broadcast) -> Result<(), Failure> {
    let text = words(args.text.as_deref())?;
    converse(Talk::Broadcast { text }, |heard| sent(&heard, "agent"))
}

/// Runs a verb on channels.
///
/// # Errors
/// When the channel does not exist, or flockd or the bus does not answer.
pub fn run(verb: &Channel) -> Result<(), Failure> {
    match verb {
        Channel::List { json } => list(*json),
        Channel::Watch { channel, json } => watch(channel, *json),
        Channel::Send { channel, text } => {
            let text = words(text.as_deref())?;
            let talk = Talk::ChannelSend { channel: channel.clone(), text };
            converse(talk, |heard| sent(&heard, "member"))
        }
    }
}

fn sent(heard: &Heard, who: &str) -> Result<(), Failure> {
    match heard {
        Heard::Sent { members } if members.len() == 1 => {
            out::line(&format!("sent; 1 {who} hears it if it listens now"))
        }
        Heard::Sent { members } => {
            out::line(&format!("sent; {} {who}s hear it if they listen now", members.len()))
        }
        _ => Err(out::garbled()),
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let mut count = 0;
    converse(Talk::ChannelList, |heard| {
        let Heard::Channel { channel, members } = heard else { return Err(out::garbled()) };
        count += 1;
        out::line(&match json {
            true => serde_json::json!({ "channel": channel, "members": members }).to_string(),
            false => {
                let members: Vec<_> = members.iter().map(AgentId::as_str).collect();
                format!("{:<25}  {}", channel.as_str(), named(&members))
            }
        })
    })?;
    match (count, json) {
        (0, false) => out::line("there is no channel"),
        _ => Ok(()),
    }
}

fn named(members: &[&str]) -> String {
    let (first, rest) = members.split_at(members.len().min(NAMED));
    match rest.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn watch(channel: &ChannelName, json: bool) -> Result<(), Failure> {
    let zone = TimeZone::system();
    converse(Talk::ChannelWatch { channel: channel.clone() }, |heard| match heard {
        Heard::Said(said) if json => out::line(&as_json(channel, &said)),
        Heard::Said(said) => out::line(&lines(&head(said.at, &said.from, &zone), &said.text)),
        Heard::Listening => {
            eprintln!("flockctl: listening on the channel {channel}; Ctrl-C ends it");
            Ok(())
        }
        _ => Err(out::garbled()),
    })
}

fn as_json(channel: &ChannelName, said: &Said) -> String {
    let line = serde_json::json!({
        "at": said.at, "channel": channel, "from": said.from, "text": said.text,
    });
    printable_json(&line.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_members_are_counted() {
        let members: Vec<_> = (0..15).map(|n| format!("a{n}")).collect();
        let members: Vec<_> = members.iter().map(String::as_str).collect();
        assert_eq!(named(&members[..2]), "a0, a1");
        assert!(named(&members).ends_with("a11 and 3 more"), "{}", named(&members));
        assert_eq!(named(&[]), "");
    }

    #[test]
    fn a_line_of_json_cannot_steer_the_terminal() {
        let (at, from) = (jiff::Timestamp::UNIX_EPOCH, "a".to_owned());
        let said = Said { at, from, text: "x\u{9b}2J\n\u{1b}".into() };
        let line = as_json(&ChannelName::everybody(), &said);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["text"], "x\u{9b}2J\n\u{1b}");
    }
}
