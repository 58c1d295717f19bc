//! What operators ask of tasks over the control socket: send, cancel, once more, what was given up.

use std::sync::Arc;

use futures_util::FutureExt as _;

use crate::audit::{self, Entry, How, What, Who};
use crate::bus::hub::Hub;
use crate::bus::message::{Task, TaskId};
use crate::control::peer::Peer;
use crate::control::request::{CancelTasks, RetryTask, SendTask};
use crate::control::response::{Cancelled, Sent};
use crate::control::server::Replies;
use crate::control::{ErrorCode, Response};
use crate::daemon::life;
use crate::daemon::operators::Operators;
use crate::history::{Record, Slot};
use crate::names::AgentId;
use crate::tasks::{self, Heard, Look, Results, SendError};

impl Operators {
    fn hub(&self) -> Result<Hub, String> {
        self.world.hub.borrow().clone().ok_or_else(|| {
            format!("the bus is not there: {}", self.world.view().bus.note.unwrap_or_default())
        })
    }

    pub(super) fn everyone(&self) -> Vec<AgentId> {
        self.world.config().agents.keys().cloned().collect()
    }

    fn look(&self) -> Look {
        let world = Arc::clone(&self.world);
        Box::new(move |task| {
            let ledger = world.ledger.clone();
            async move { ledger.results(task).await }.boxed()
        })
    }

    async fn records(&self, task: &TaskId) -> Result<Vec<Record>, String> {
        let task = task.clone();
        let found = self.world.ledger.read(move |reader| reader.show(&task)).await;
        found.map_err(|error| error.to_string())
    }

    /// The task that an operator means, who may name it by the beginning of its id.
    async fn exact(&self, task: &TaskId) -> Result<TaskId, String> {
        let task = task.clone();
        let found = self.world.ledger.read(move |reader| reader.resolve(&task)).await;
        found.map_err(|error| error.to_string())
    }

    /// Stores a task, and answers with its results if they are waited for.
    pub(super) async fn send(&self, uid: u32, order: SendTask, replies: &mut Replies) -> Response {
        let wait = order.wait_seconds;
        match tasks::task(order, uid, &self.everyone()) {
            Ok(task) => self.store(&task, wait, replies).await.unwrap_or_else(failed),
            Err(error) => failed(error),
        }
    }

    async fn store(
        &self,
        task: &Task,
        wait: Option<u64>,
        replies: &mut Replies,
    ) -> Result<Response, String> {
        let text = |error: SendError| error.to_string();
        let hub = self.hub()?;
        let (sent, results) = match self.earlier(task).await.map_err(text)? {
            Some(sent) => {
                let results = match wait {
                    Some(wait) => {
                        Some(tasks::wait_for(&hub, &sent, wait, self.look()).await.map_err(text)?)
                    }
                    None => None,
                };
                (sent, results)
            }
            None => {
                tasks::send(&hub, &self.everyone(), task, wait, self.look()).await.map_err(text)?
            }
        };
        if replies.send(&Response::Sent(sent)).await.is_err() {
            return Ok(Response::End);
        }
        Ok(match results {
            Some(results) => collect(results, replies).await,
            None => Response::End,
        })
    }

    /// The task that was sent with the same key before, if the history knows one.
    async fn earlier(&self, task: &Task) -> Result<Option<Sent>, SendError> {
        let Some(key) = &task.key else { return Ok(None) };
        // Without a history the bus still finds one that was sent within the last hour.
        let Ok(records) = self.records(&task.id).await else { return Ok(None) };
        let Some(first) = records.first() else { return Ok(None) };
        if first.text != task.text || first.environment != task.environment {
            let (key, to) = (key.clone(), task.to.clone());
            return Err(SendError::OtherText { key, to, task: task.id.clone() });
        }
        let agents = records.iter().filter_map(|record| match &record.slot {
            Slot::Agent(id) => Some(id.clone()),
            Slot::Any => None,
        });
        Ok(Some(Sent {
            task: task.id.clone(),
            agents: agents.collect(),
            refused: Vec::new(),
            results: records.len(),
            duplicate: true,
        }))
    }

    /// Cancels tasks, one answer for each.
    pub(super) async fn cancel(
        &self,
        peer: &Peer,
        order: &CancelTasks,
        replies: &mut Replies,
    ) -> Response {
        let hub = match self.hub() {
            Ok(hub) => hub,
            Err(error) => return failed(error),
        };
        for task in &order.tasks {
            let answer = match self.exact(task).await {
                Err(why) => Cancelled { task: task.clone(), was: Vec::new(), refused: Some(why) },
                Ok(task) => match self.cancel_one(peer, &hub, &task).await {
                    Ok(answer) => answer,
                    Err(error) => return failed(format!("cancel task {task}: {error}")),
                },
            };
            if replies.send(&Response::Cancelled(answer)).await.is_err() {
                break;
            }
        }
        Response::End
    }

    async fn cancel_one(&self, peer: &Peer, hub: &Hub, task: &TaskId) -> Result<Cancelled, String> {
        record(peer, What::TaskCancel, task, String::new()).await?;
        let done = life::cancel(&self.world, hub, task, &peer.name).await;
        done.map_err(|fault| fault.to_string())
    }

    /// Sends an ended task once more, under a new id.
    pub(super) async fn retry(
        &self,
        peer: &Peer,
        order: &RetryTask,
        replies: &mut Replies,
    ) -> Response {
        match self.again(peer, order).await {
            Ok(task) => self.store(&task, None, replies).await.unwrap_or_else(failed),
            Err(why) => failed(format!("do task {} once more: {why}", order.task)),
        }
    }

    async fn again(&self, peer: &Peer, order: &RetryTask) -> Result<Task, String> {
        let id = self.exact(&order.task).await?;
        let records = self.records(&id).await?;
        let first = records.first().ok_or("it was forgotten in this moment")?;
        if let Some(open) = records.iter().find(|record| !record.state.is_final())
            && !order.force
        {
            let state = open.state;
            return Err(format!(
                "it is {state}: cancel it first (flockctl task cancel {id}), or use --force"
            ));
        }
        let to = order.to.clone().unwrap_or_else(|| first.to.clone());
        let again = SendTask {
            environment: first.environment.clone(),
            ..SendTask::new(to, first.text.clone())
        };
        let task = tasks::task(again, peer.uid, &self.everyone());
        let task = task.map_err(|error| error.to_string())?;
        record(peer, What::TaskRetry, &id, format!("to {} as {}", task.to, task.id)).await?;
        Ok(Task { retry_of: Some(id), ..task })
    }

    /// The tasks of the shared queue that were given up.
    pub(super) async fn dead(&self, replies: &mut Replies) -> Response {
        let hub = match self.hub() {
            Ok(hub) => hub,
            Err(error) => return failed(error),
        };
        match hub.dead_letters().await {
            Err(error) => failed(error),
            Ok(letters) => {
                for letter in letters {
                    if replies.send(&Response::Dead(letter)).await.is_err() {
                        break;
                    }
                }
                Response::End
            }
        }
    }
}

/// Puts into the audit log what is about to be done; without that it is not done.
async fn record(peer: &Peer, what: What, task: &TaskId, detail: String) -> Result<(), String> {
    let who = Who { uid: peer.uid, name: peer.name.clone(), how: How::Socket };
    let entry = Entry::new(who, what, task, detail);
    audit::record_async(entry).await.map(|_| ()).map_err(|error| format!("not done: {error}"))
}

fn failed(error: impl ToString) -> Response {
    Response::error(ErrorCode::Failed, error)
}

async fn collect(mut results: Results, replies: &mut Replies) -> Response {
    loop {
        let response = match results.next().await {
            Ok(None) => return Response::End,
            Ok(Some(Heard::Begun(agent))) => Response::Begun { agent },
            Ok(Some(Heard::Result(result))) => Response::Result(*result),
            Err(late) => return Response::error(ErrorCode::TimedOut, late),
        };
        if replies.send(&response).await.is_err() {
            return Response::End;
        }
    }
}
