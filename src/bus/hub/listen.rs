//! What agents report, and how tasks end.

use async_nats::jetstream;
use futures_util::stream::{BoxStream, StreamExt as _, select_all};

use super::Hub;
use super::error::{Error, refused};
use crate::bus::message::{
    self, BadMessage, Event, Heartbeat, OUTPUT_IN_MESSAGE, TaskId, TaskResult,
};
use crate::bus::subject::{self, FromAgent};
use crate::names::AgentId;

/// One message from an agent. The sender is the account that the server saw.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Who sent it.
    pub from: AgentId,
    /// What it says.
    pub report: Report,
}

/// What an agent reports.
#[derive(Clone, Debug)]
pub enum Report {
    /// A task's result, if it can be read.
    Result(Result<TaskResult, BadMessage>),
    /// An event, if it can be read.
    Event(Result<Event, BadMessage>),
    /// A heartbeat. That it came is what counts; a plain client may send anything.
    Heartbeat(Option<Heartbeat>),
}

/// What is heard of one task.
#[derive(Clone, Debug)]
pub enum News {
    /// What an agent says: a result, or that it has begun.
    Said(Notice),
    /// How it ended, by flock's own word.
    Final(TaskResult),
}

impl Hub {
    /// Everything that agents report from now on: results, events and heartbeats.
    ///
    /// # Errors
    /// When the server does not confirm the subscriptions.
    pub async fn watch(&self) -> Result<BoxStream<'static, Notice>, Error> {
        let every = ["task.result.*", "agent.*.events", "agent.*.heartbeat"];
        let messages = self.subscribe(&every.map(str::to_owned)).await?;
        Ok(messages.filter_map(async |m| read_notice(&m.subject, &m.payload)).boxed())
    }

    /// What is heard of one task from now on. Of the shared queue's tasks an agent's own result says
    /// nothing (it may be late, or a lie), so it is left out with `results` false.
    ///
    /// # Errors
    /// When the server does not confirm the subscriptions.
    pub async fn follow(
        &self,
        task: &TaskId,
        results: bool,
    ) -> Result<BoxStream<'static, News>, Error> {
        let mut subjects = vec![subject::final_result(task), "agent.*.events".to_owned()];
        if results {
            subjects.push("task.result.*".to_owned());
        }
        let messages = self.subscribe(&subjects).await?;
        let ending = subject::final_result(task);
        let news = move |m: async_nats::Message| match *m.subject == *ending {
            true => message::parse(&m.payload).ok().map(News::Final),
            false => read_notice(&m.subject, &m.payload).map(News::Said),
        };
        Ok(messages.filter_map(move |m| std::future::ready(news(m))).boxed())
    }

    /// Tells whoever waits how a task ended. Only the hub can say so.
    ///
    /// # Errors
    /// When the connection is down; the record says it nevertheless.
    pub async fn announce(&self, task: &TaskId, result: &TaskResult) -> Result<(), Error> {
        let payload = match message::encode(result) {
            Ok(payload) => payload,
            Err(_) => message::encode(&shortened(result))?,
        };
        let said = self.client.publish(subject::final_result(task), payload.into()).await;
        said.map_err(refused(format!("tell how task {task} ended")))
    }

    /// What every stream of tasks and results holds and flockd has not acknowledged yet.
    ///
    /// # Errors
    /// When the server does not confirm the subscription.
    pub async fn history(&self) -> Result<BoxStream<'static, jetstream::Message>, Error> {
        let messages = self.subscribe(&[subject::HISTORY.to_owned()]).await?;
        let context = self.js.clone();
        let stored = move |message| jetstream::Message { message, context: context.clone() };
        Ok(messages.map(stored).boxed())
    }

    /// Subscribes, and returns once the server has it: nothing must slip in before.
    pub(in crate::bus) async fn subscribe(
        &self,
        subjects: &[String],
    ) -> Result<BoxStream<'static, async_nats::Message>, Error> {
        let step = "listen to the bus";
        let mut parts = Vec::with_capacity(subjects.len());
        for subject in subjects {
            parts.push(self.client.subscribe(subject.clone()).await.map_err(refused(step))?);
        }
        self.client.flush().await.map_err(refused(step))?;
        Ok(select_all(parts).boxed())
    }
}

/// A plain client's result can grow when it is written anew.
fn shortened(result: &TaskResult) -> TaskResult {
    let output: String = result.output.chars().take(OUTPUT_IN_MESSAGE / 4).collect();
    let reason = result.reason.as_ref().map(|text| text.chars().take(1000).collect());
    let result_path = None;
    TaskResult { output, reason, result_path, truncated: true, ..result.clone() }
}

/// What a message says, or `None` when its subject is not an agent's.
fn read_notice(subject: &str, payload: &[u8]) -> Option<Notice> {
    let (from, report) = match subject::from_agent(subject)? {
        FromAgent::Result(id) => {
            let result = message::parse::<TaskResult>(payload);
            let result = result.map(|r| TaskResult { agent: id.to_string(), ..r });
            (id, Report::Result(result))
        }
        FromAgent::Event(id) => {
            let event = message::parse::<Event>(payload);
            let event = event.map(|e| Event { agent: id.to_string(), ..e });
            (id, Report::Event(event))
        }
        FromAgent::Heartbeat(id) => {
            let beat = message::parse::<Heartbeat>(payload).ok();
            let beat = beat.map(|b| Heartbeat { agent: id.to_string(), ..b });
            (id, Report::Heartbeat(beat))
        }
    };
    Some(Notice { from, report })
}
