//! `flockctl events`: what agents tell of themselves.

use clap::Args;
use jiff::tz::TimeZone;

use crate::bus::told::Told;
use crate::cli::talk::{converse, head, lines};
use crate::cli::{Failure, out};
use crate::control::{Heard, Talk};
use crate::names::AgentId;
use crate::text::{printable, printable_json};

/// The command line of `events`.
#[derive(Args)]
#[command(
    after_help = "The last 20 events of each agent are kept while flockd runs; the bus stores none. \
    What agents tell is their own word: \"at\" and \"agent\" are flock's."
)]
pub struct Events {
    /// Whose; none means every agent's.
    #[arg(value_name = "AGENT")]
    pub agents: Vec<AgentId>,
    /// Go on with those that come, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Show heartbeats too.
    #[arg(long, requires = "follow")]
    pub heartbeats: bool,
    /// One JSON object a line: at, agent, heartbeat, event, task, detail, text, cut.
    #[arg(long)]
    pub json: bool,
}

/// Prints the events that were heard last, and with `--follow` those that come.
///
/// # Errors
/// When an agent does not exist, or flockd does not answer.
pub fn run(args: &Events) -> Result<(), Failure> {
    let zone = TimeZone::system();
    let mut count = 0;
    let talk = Talk::Events {
        agents: args.agents.iter().cloned().collect(),
        follow: args.follow,
        heartbeats: args.heartbeats,
    };
    converse(talk, |heard| match heard {
        Heard::Told(told) => {
            count += 1;
            out::line(&match args.json {
                true => printable_json(&serde_json::to_string(&told).map_err(Failure::failed)?),
                false => for_people(&told, &zone),
            })
        }
        Heard::Listening => Ok(()),
        _ => Err(out::garbled()),
    })?;
    match (count, args.follow || args.json) {
        (0, false) => out::line("nothing was heard since flockd was started"),
        _ => Ok(()),
    }
}

fn for_people(told: &Told, zone: &TimeZone) -> String {
    let head = head(told.at, told.agent.as_str(), zone);
    let word = match (told.heartbeat, &told.event) {
        (true, _) => return lines(&(head + "heartbeat "), &told.text),
        // A plain client may send what it likes.
        (false, None) => return lines(&head, &told.text),
        (false, Some(word)) => word,
    };
    let task = told.task.as_ref().map(|task| format!(" {}", printable(task))).unwrap_or_default();
    let head = format!("{head}{}{task}", printable(word));
    match &told.detail {
        None => head,
        Some(detail) => lines(&(head + " "), detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: Option<&str>, detail: Option<&str>, text: &str) -> Told {
        Told {
            at: jiff::Timestamp::UNIX_EPOCH,
            agent: AgentId::parse("a").unwrap(),
            heartbeat: false,
            event: event.map(str::to_owned),
            task: event.map(|_| "t1\u{9b}".to_owned()),
            detail: detail.map(str::to_owned),
            text: text.to_owned(),
            cut: false,
        }
    }

    #[test]
    fn an_event_reads_as_one_line() {
        let show = |told: &Told| for_people(told, &TimeZone::UTC);
        assert_eq!(
            show(&told(Some("done\n"), Some("exit 0"), "")),
            "1970-01-01 00:00:00 a done\\u{a} t1\\u{9b} exit 0"
        );
        assert_eq!(show(&told(None, None, "hi \u{1b}c")), "1970-01-01 00:00:00 a hi \\u{1b}c");
        let beat = Told { heartbeat: true, ..told(Some("x"), None, "{}") };
        assert_eq!(show(&beat), "1970-01-01 00:00:00 a heartbeat {}");
    }
}
