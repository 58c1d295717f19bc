//! `flockctl asks`, `approve` and `deny`: calls of tools that wait for an operator.

use clap::Args;
use jiff::Timestamp;

use crate::cli::{Failure, out};
use crate::control::request::{self, AskDecide};
use crate::control::response::AskShown;
use crate::control::{Client, Request, Response};
use crate::text::{printable, printable_json, span};
use crate::tools::words;

/// So many digits of an id are shown; the beginning of one is enough to decide.
const ID_SHOWN: usize = 12;

/// The command line of `asks`.
#[derive(Args)]
pub struct Asks {
    /// Go on with those that come, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// The command line of `approve`.
#[derive(Args)]
pub struct Approve {
    /// The call: its id, or the beginning of it.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// The command line of `deny`.
#[derive(Args)]
pub struct Deny {
    /// The call: its id, or the beginning of it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// What the agent is told.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Lists what waits.
///
/// # Errors
/// When flockd does not answer, or refuses.
pub fn list(args: &Asks) -> Result<(), Failure> {
    out::wait(async {
        tokio::select! {
            result = print(args) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

async fn print(args: &Asks) -> Result<(), Failure> {
    let request = Request::Asks(request::Asks { follow: args.follow });
    let mut client = Client::ask(&request).await.map_err(|e| out::by_flockd(&e))?;
    let mut count = 0;
    while let Some(response) = client.next().await.map_err(|e| out::by_flockd(&e))? {
        let Response::Ask(ask) = response else { return Err(out::garbled()) };
        count += 1;
        match args.json {
            true => {
                let json = serde_json::to_string(&ask).map_err(Failure::failed)?;
                out::line(&printable_json(&json))?;
            }
            false => out::line(&for_people(&ask, Timestamp::now()))?,
        }
    }
    match count {
        0 if !args.json => out::line("nothing waits"),
        _ => Ok(()),
    }
}

/// Says yes.
///
/// # Errors
/// When nothing like this waits, or flockd refuses.
pub fn approve(args: &Approve) -> Result<(), Failure> {
    decide(AskDecide { ask: args.id.to_lowercase(), approve: true, reason: None })
}

/// Says no.
///
/// # Errors
/// When nothing like this waits, or flockd refuses.
pub fn deny(args: &Deny) -> Result<(), Failure> {
    let reason = args.reason.clone();
    decide(AskDecide { ask: args.id.to_lowercase(), approve: false, reason })
}

fn decide(order: AskDecide) -> Result<(), Failure> {
    let word = if order.approve { "approved" } else { "denied" };
    out::wait(async {
        let request = Request::AskDecide(order);
        let mut client = Client::ask(&request).await.map_err(|e| out::by_flockd(&e))?;
        match client.next().await.map_err(|e| out::by_flockd(&e))? {
            Some(Response::Decided(ask)) => out::line(&format!("{word}: {}", call(&ask))),
            _ => Err(out::garbled()),
        }
    })
}

/// `coder: deploy prod`, every word of it safe on a terminal.
fn call(ask: &AskShown) -> String {
    let call: Vec<String> = [&ask.tool].into_iter().chain(&ask.arguments).cloned().collect();
    format!("{}: {}", ask.agent, words(&call))
}

fn for_people(ask: &AskShown, now: Timestamp) -> String {
    let seconds = |from: Timestamp, to: Timestamp| {
        span(u64::try_from(to.as_second() - from.as_second()).unwrap_or_default())
    };
    let id: String = printable(&ask.ask).chars().take(ID_SHOWN).collect();
    let folder = words(std::slice::from_ref(&ask.folder));
    let task = ask.task.as_ref().map(|task| format!(", task {}", printable(task)));
    let (age, left) = (seconds(ask.since, now), seconds(now, ask.deadline));
    format!(
        "{id}  {}\n{:ID_SHOWN$}  in {folder}{}, asked {age} ago, {left} left",
        call(ask),
        "",
        task.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AgentId;

    #[test]
    fn what_an_agent_asks_cannot_lie_to_the_one_who_reads_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut ask = AskShown {
            ask: "0123456789abcdef0123456789abcdef".into(),
            agent: AgentId::parse("coder").unwrap(),
            tool: "deploy".into(),
            arguments: vec!["to prod".into()],
            folder: "/shared/agents/coder".into(),
            task: Some("t1".into()),
            since: at(100),
            deadline: at(700),
        };
        assert_eq!(
            for_people(&ask, at(112)),
            "0123456789ab  coder: deploy \"to prod\"\n              \
             in /shared/agents/coder, task t1, asked 12s ago, 9min 48s left"
        );
        ask.arguments = vec!["x\u{1b}[2K\rsafe".into(), "a\n".into(), "\u{202e}dorp".into()];
        ask.folder = "/\n/".into();
        ask.task = Some("\u{9b}".into());
        let text = for_people(&ask, at(112));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text}");
    }
}
