//! `flockctl task cancel`, `retry` and `dead`: what flockd does with tasks that were sent before.

use clap::Args;
use jiff::tz::TimeZone;

use crate::bus::hub::DeadLetter;
use crate::bus::message::{Address, TaskId};
use crate::cli::task::result::json;
use crate::cli::task::send::show_sent;
use crate::cli::{Failure, out};
use crate::control::request::{CancelTasks, RetryTask};
use crate::control::response::Cancelled;
use crate::control::{Client, Request, Response};
use crate::text::{printable, span};

/// The command line of `task cancel`.
#[derive(Args)]
#[command(
    after_help = "A task that waits is removed. One that runs is cancelled at once, and its agent is \
    told to end it; a program of mode \"service\" may go on, but its result is refused.\n\
    Exit status: 0 when every task is cancelled; 1 when one had ended before or is not known."
)]
pub struct Cancel {
    /// The tasks.
    #[arg(value_name = "TASK", required = true, value_parser = TaskId::parse)]
    pub tasks: Vec<TaskId>,
    /// One JSON object a line, for each task.
    #[arg(long)]
    pub json: bool,
}

/// The command line of `task retry`.
#[derive(Args)]
#[command(after_help = "The new task has the same text and variables, and an id of its own.")]
pub struct Retry {
    /// The task, which has ended.
    #[arg(value_name = "TASK", value_parser = TaskId::parse)]
    pub task: TaskId,
    /// An agent's name, `all` or `any`, instead of whom it was sent to.
    #[arg(long, value_name = "AGENT", value_parser = address)]
    pub to: Option<Address>,
    /// Also when it has not ended.
    #[arg(long)]
    pub force: bool,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The command line of `task dead`.
#[derive(Args)]
pub struct Dead {
    /// One JSON object a line, for each task.
    #[arg(long)]
    pub json: bool,
}

fn address(text: &str) -> Result<Address, String> {
    Address::try_from(text.to_owned()).map_err(|error| error.to_string())
}

/// Cancels tasks.
///
/// # Errors
/// When flockd is not there, or one of them could not be cancelled.
pub fn cancel(args: &Cancel) -> Result<(), Failure> {
    out::wait(async {
        let order = CancelTasks { tasks: args.tasks.clone() };
        let mut client = ask(&Request::TaskCancel(order)).await?;
        let mut refused = 0;
        while let Some(answer) = client.next().await.map_err(|e| out::by_flockd(&e))? {
            let Response::Cancelled(answer) = answer else { return Err(out::garbled()) };
            refused += usize::from(answer.refused.is_some());
            match args.json {
                true => out::line(&json(&answer)?)?,
                false => out::line(&show_cancelled(&answer))?,
            }
        }
        match refused {
            0 => Ok(()),
            n => Err(Failure::failed(format!("{n} of {} tasks not cancelled", args.tasks.len()))),
        }
    })
}

fn show_cancelled(answer: &Cancelled) -> String {
    let task = &answer.task;
    match &answer.refused {
        Some(why) => format!("task {task} is not cancelled: {}", printable(why)),
        None => {
            let agents: Vec<_> = answer
                .was
                .iter()
                .filter(|was| *was != "queued")
                .map(|was| printable(was))
                .collect();
            match agents.is_empty() {
                true => format!("task {task} is cancelled; it had not begun"),
                false => format!("task {task} is cancelled; told to end it: {}", agents.join(", ")),
            }
        }
    }
}

/// Sends an ended task once more.
///
/// # Errors
/// When flockd is not there, the task is not known, or it has not ended.
pub fn retry(args: &Retry) -> Result<(), Failure> {
    out::wait(async {
        let (task, to, force) = (args.task.clone(), args.to.clone(), args.force);
        let mut client = ask(&Request::TaskRetry(RetryTask { task, to, force })).await?;
        match client.next().await.map_err(|e| out::by_flockd(&e))? {
            Some(Response::Sent(sent)) => out::line(&show_sent(args.json, &sent)?),
            _ => Err(out::garbled()),
        }
    })
}

/// Lists the tasks of the shared queue that were given up.
///
/// # Errors
/// When flockd is not there or the bus does not answer.
pub fn dead(args: &Dead) -> Result<(), Failure> {
    out::wait(async {
        let mut client = ask(&Request::TaskDead).await?;
        while let Some(letter) = client.next().await.map_err(|e| out::by_flockd(&e))? {
            let Response::Dead(letter) = letter else { return Err(out::garbled()) };
            match args.json {
                true => out::line(&json(&letter)?)?,
                false => out::line(&show_dead(&letter))?,
            }
        }
        Ok(())
    })
}

/// The id, its age and the reason in one line, the text below.
fn show_dead(letter: &DeadLetter) -> String {
    let id = letter.task.as_ref().map_or("(no id)", |id| id.as_str());
    let age = jiff::Timestamp::now().duration_since(letter.at).as_secs();
    let age = span(u64::try_from(age).unwrap_or_default());
    let at = letter.at.to_zoned(TimeZone::system()).strftime("%F %T");
    let (reason, text) = (printable(&letter.reason), printable(&letter.text));
    format!("{id}  {at} ({age} ago)  {reason}\n    {text}")
}

async fn ask(request: &Request) -> Result<Client, Failure> {
    Client::ask(request).await.map_err(|error| out::by_flockd(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_up_task_cannot_steer_the_terminal() {
        let letter = DeadLetter {
            task: None,
            reason: "x\u{1b}[2J".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
            text: "a\nb".into(),
        };
        let shown = show_dead(&letter);
        assert!(shown.contains("x\\u{1b}[2J") && shown.ends_with("\n    a\\u{a}b"), "{shown}");
    }

    #[test]
    fn a_cancelled_task_says_what_it_was() {
        let task = TaskId::parse("t").unwrap();
        let with = |was: &[&str], refused: Option<&str>| {
            let was = was.iter().map(|word| (*word).to_owned()).collect();
            show_cancelled(&Cancelled { task: task.clone(), was, refused: refused.map(Into::into) })
        };
        assert_eq!(with(&["queued"], None), "task t is cancelled; it had not begun");
        assert_eq!(with(&["a", "queued"], None), "task t is cancelled; told to end it: a");
        assert_eq!(
            with(&[], Some("it is done already")),
            "task t is not cancelled: it is done already"
        );
    }
}
