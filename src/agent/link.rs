//! The agent's connection to the bus, and what it says there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Message, Request, StatusCode, Subscriber};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::log;
use super::settings::Settings;
use super::tools::broker::Operator;
use crate::bus::ask::{Answer, Ask};
use crate::bus::message::{self, Event, Heartbeat, TaskResult};
use crate::bus::subject;
use crate::names::AgentId;

/// The pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the server holds a request for a task; our own wait is a little longer.
const HOLD: Duration = Duration::from_secs(20);
/// How long the server may take to store or to confirm something.
const ANSWER: Duration = Duration::from_secs(10);

/// flockd holds a question for up to ten seconds; our own wait is a little longer.
const ASK: Duration = Duration::from_secs(15);

/// What is said of a task's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// It can never be done.
    Never,
    /// Somebody should try again.
    Again,
    /// It is being worked on.
    Working,
}

/// A connection that comes back by itself.
#[derive(Clone, Debug)]
pub struct Link {
    client: Client,
    id: AgentId,
    connects: watch::Receiver<u64>,
}

impl Link {
    /// Connects, however long it takes; the bus may start later than its agents.
    pub async fn connect(settings: &Settings) -> Self {
        let (count, connects) = watch::channel(0);
        let count = Arc::new(count);
        let mut pause = FIRST_PAUSE;
        loop {
            match options(settings, &count).connect(&settings.url).await {
                Ok(client) => {
                    // The news of it comes a little later, and is not to be taken for a second one.
                    let mut connects = connects.clone();
                    let _ = timeout(ANSWER, connects.wait_for(|n| *n > 0)).await;
                    log::info(&format!("connected to the bus at {}", settings.url));
                    return Self { client, id: settings.id.clone(), connects };
                }
                Err(e) => {
                    let (url, seconds) = (&settings.url, pause.as_secs_f32());
                    log::warning(&format!(
                        "connect to the bus at {url}: {e}; again in {seconds} s"
                    ));
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Counts how often the connection was made; a change means that it was made again.
    #[must_use]
    pub fn connects(&self) -> watch::Receiver<u64> {
        let mut connects = self.connects.clone();
        connects.mark_unchanged();
        connects
    }

    /// Asks for one task; `None` when there is none within a while.
    ///
    /// # Errors
    /// With what the server says, or that it does not answer.
    pub async fn next_task(&self) -> Result<Option<Message>, String> {
        let ask = serde_json::json!({ "batch": 1, "expires": HOLD.as_secs() * 1_000_000_000 })
            .to_string();
        // An inbox of its own: a task keeps its stream's subject, and the client finds the waiter of
        // an ordinary request by the subject of the answer.
        let request = Request::new()
            .inbox(self.client.new_inbox())
            .payload(ask.into())
            .timeout(Some(HOLD + Duration::from_secs(5)));
        let answer = self.client.send_request(subject::next_task(&self.id), request).await;
        let answer = answer.map_err(|e| e.to_string())?;
        match answer.status {
            None | Some(StatusCode::OK) => Ok(Some(answer)),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(None),
            Some(status) => {
                Err(format!("{status} {}", answer.description.as_deref().unwrap_or_default()))
            }
        }
    }

    /// Says what became of a task's message. `Done` and `Never` return when the server knows.
    ///
    /// # Errors
    /// When the server does not confirm; the task can then come again.
    pub async fn verdict(&self, task: &Message, verdict: Verdict) -> Result<(), String> {
        let Some(to) = task.reply.clone() else { return Ok(()) };
        let (word, confirm) = match verdict {
            Verdict::Done => ("+ACK", true),
            Verdict::Never => ("+TERM", true),
            Verdict::Again => ("-NAK", false),
            Verdict::Working => ("+WPI", false),
        };
        if !confirm {
            return self.client.publish(to, word.into()).await.map_err(|e| e.to_string());
        }
        let request = Request::new().payload(word.into()).timeout(Some(ANSWER));
        self.client.send_request(to, request).await.map(|_| ()).map_err(|e| e.to_string())
    }

    /// Publishes a result and returns when the server has stored it.
    ///
    /// # Errors
    /// With what the server says, or that it does not answer.
    pub async fn result(&self, result: &TaskResult) -> Result<(), String> {
        let payload = message::encode(result).map_err(|e| e.to_string())?;
        let mut headers = HeaderMap::new();
        // Sent again because the answer was lost, it is stored once.
        headers.insert("Nats-Msg-Id", format!("{}.{}", result.task, result.attempt.unwrap_or(1)));
        let request = Request::new().payload(payload.into()).headers(headers).timeout(Some(ANSWER));
        let answer = self.client.send_request(subject::RESULT, request).await;
        let answer = answer.map_err(|e| e.to_string())?;
        stored(&answer.payload)
    }

    /// Asks an operator once; flockd may hold the question for a while before it answers.
    ///
    /// # Errors
    /// When nobody answers, or not with an answer.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        let payload = message::encode(ask).map_err(|e| e.to_string())?;
        let request = Request::new().payload(payload.into()).timeout(Some(ASK));
        let answer = self.client.send_request(subject::ask(&self.id), request).await;
        let answer = answer.map_err(|e| e.to_string())?;
        message::parse(&answer.payload).map_err(|e| e.to_string())
    }

    /// Publishes an event. Nobody has to be there to hear it.
    pub async fn event(&self, event: &str, task: Option<&str>, detail: Option<String>) {
        let event = Event {
            agent: self.id.to_string(),
            at: Timestamp::now(),
            event: event.to_owned(),
            task: task.map(str::to_owned),
            detail,
        };
        self.say(subject::events(&self.id), &event).await;
    }

    /// Publishes a heartbeat.
    pub async fn heartbeat(&self, tasks: Vec<String>, parallel: u32) {
        let agent = self.id.to_string();
        let running = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        let beat = Heartbeat { agent, at: Timestamp::now(), running, parallel, tasks };
        self.say(subject::heartbeat(&self.id), &beat).await;
    }

    async fn say<T: serde::Serialize>(&self, subject: String, message: &T) {
        if let Ok(payload) = message::encode(message) {
            // It fails only when the connection is closed for good, and then the agent ends.
            let _ = self.client.publish(subject, payload.into()).await;
        }
    }

    /// What the operator says to every agent.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn broadcasts(&self) -> Result<Subscriber, String> {
        self.client.subscribe(subject::BROADCAST).await.map_err(|e| e.to_string())
    }

    /// What flock says to this agent alone.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn control(&self) -> Result<Subscriber, String> {
        self.client.subscribe(subject::control(&self.id)).await.map_err(|e| e.to_string())
    }

    /// Sends what is still in our buffers, if the server takes it soon.
    pub async fn close(self) {
        let _ = timeout(Duration::from_secs(2), self.client.flush()).await;
    }
}

impl Operator for Link {
    async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        Self::ask(self, ask).await
    }

    async fn tell(&self, event: &'static str, task: Option<&str>, detail: String) {
        self.event(event, task, Some(detail)).await;
    }
}

/// Reads the answer to a message for a stream.
fn stored(payload: &[u8]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Option<Refusal>,
        seq: Option<u64>,
    }
    #[derive(serde::Deserialize)]
    struct Refusal {
        description: String,
    }
    match message::parse::<Answer>(payload) {
        Ok(Answer { error: Some(e), .. }) => Err(e.description),
        Ok(Answer { seq: Some(_), .. }) => Ok(()),
        Ok(_) => Err("the server's answer names no stored message".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

fn options(settings: &Settings, count: &Arc<watch::Sender<u64>>) -> ConnectOptions {
    let count = Arc::clone(count);
    // The same trouble again and again is one line.
    let last = Arc::new(Mutex::new(String::new()));
    ConnectOptions::with_user_and_password(settings.user.clone(), settings.password.clone())
        .name(format!("flock-agent {}", settings.id))
        .connection_timeout(Duration::from_secs(5))
        .reconnect_delay_callback(|attempts| {
            let doubled =
                FIRST_PAUSE * 2u32.saturating_pow(u32::try_from(attempts).unwrap_or(6).min(6));
            doubled.min(LONGEST_PAUSE)
        })
        .event_callback(move |event| {
            let text = event.to_string();
            if matches!(event, async_nats::Event::Connected) {
                count.send_modify(|n| *n += 1);
            }
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *last != text {
                log::info(&format!("the bus: {text}"));
                *last = text;
            }
            async {}
        })
}
