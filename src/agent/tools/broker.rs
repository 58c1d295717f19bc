//! Decides about each call of a tool, asks an operator where a rule says so, and runs the tool.
//!
//! The callers are the command's processes and what they say is hostile: connections, the size and
//! the time of a request are bounded; a caller that leaves ends its tool. The tool gets the agent's
//! environment, not the caller's.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout, timeout_at};

use super::wire::{self, End, Kind, Request};
use super::{DENIED, FAILED, TIMED_OUT, Tools};
use crate::agent::log;
use crate::bus::ask::{Answer, Ask, Question};
use crate::bus::message::TaskId;
use crate::names::AgentId;
use crate::tools::{Action, Tool, words};

/// Calls at the same time, those that wait for an operator included.
pub const CALLS_MAX: usize = 32;
/// A caller has this long to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Between a polite request to end and the end, for a tool whose time is over.
const POLITE: Duration = Duration::from_secs(2);
/// How long to wait for output that processes outside the tool's group still hold open.
const LEFTOVER: Duration = Duration::from_secs(1);
/// Before the same question is asked again, when nobody answered or the answer came at once.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The longest text about a call in the log and in an event.
const TEXT_MAX: usize = 400;

/// The way to an operator. The bus is one; tests have others.
pub trait Operator: Send + Sync + 'static {
    /// Asks once; may take a while.
    fn ask(&self, ask: &Ask) -> impl Future<Output = Result<Answer, String>> + Send;

    /// Says what was decided by a rule.
    fn tell(
        &self,
        event: &'static str,
        task: Option<&str>,
        detail: String,
    ) -> impl Future<Output = ()> + Send;
}

/// The broker of one agent.
pub struct Broker<O> {
    id: AgentId,
    tools: Tools,
    /// What a tool's environment is.
    environment: Vec<(OsString, OsString)>,
    operator: O,
    places: Arc<Semaphore>,
}

/// A call that was checked.
struct Call {
    request: Request,
    tool: Tool,
    /// The call as people read it.
    text: String,
}

impl<O: Operator> Broker<O> {
    /// A broker whose tools get this environment.
    pub fn new(
        id: AgentId,
        tools: Tools,
        environment: Vec<(OsString, OsString)>,
        operator: O,
    ) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(CALLS_MAX));
        Arc::new(Self { id, tools, environment, operator, places })
    }

    /// Makes the stand-ins and the socket.
    ///
    /// # Errors
    /// When the agent's directory in memory cannot be written.
    pub fn listen(&self) -> io::Result<UnixListener> {
        self.tools.make_stand_ins()?;
        let socket = self.tools.socket();
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => UnixListener::bind(socket),
        }
    }

    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    log::warning(&format!("tools: accept: {e}"));
                    sleep(ASK_AGAIN).await;
                    continue;
                }
            };
            let ours = stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw());
            let place = Arc::clone(&self.places).try_acquire_owned();
            match (ours, place) {
                (false, _) => log::warning("tools: a caller of another user is refused"),
                (true, Err(_)) => refuse(&stream),
                (true, Ok(place)) => {
                    let broker = Arc::clone(&self);
                    tokio::spawn(async move {
                        broker.converse(stream).await;
                        drop(place);
                    });
                }
            }
        }
    }

    /// One call from its request to its end.
    async fn converse(&self, stream: UnixStream) {
        let received = timeout(REQUEST_TIME, wire::receive_request(&stream)).await;
        let (mut read, mut write) = stream.into_split();
        let end = match received {
            Err(_) => failed("no request came in time"),
            Ok(Err(e)) => failed(&format!("read the request: {e}")),
            Ok(Ok((request, input))) => tokio::select! {
                end = self.handle(request, input.into(), &mut write) => end,
                () = left(&mut read) => return,
            },
        };
        let _ = timeout(REQUEST_TIME, send_end(&mut write, &end)).await;
    }

    async fn handle(&self, request: Request, input: Stdio, to: &mut OwnedWriteHalf) -> End {
        let decision = self.tools.rules.decide(&request.tool, &request.arguments);
        let mut text = words(std::slice::from_ref(&request.tool));
        text.push(' ');
        text.push_str(&words(&request.arguments));
        let text: String = text.trim_end().chars().take(TEXT_MAX).collect();
        // The caller says which task it works on; it cannot make the log say anything else.
        let task = request.task.filter(|task| TaskId::parse(task).is_ok());
        let request = Request { task, ..request };
        let (tool, why) = match (decision.action, self.tools.rules.tools.get(&request.tool)) {
            (Action::Allow | Action::Ask, Some(tool)) => (tool.clone(), decision.why),
            _ => return self.deny(&request, &text, &decision.why).await,
        };
        if !request.folder.starts_with('/') || request.folder.contains('\0') {
            return self.deny(&request, &text, "its folder is no absolute path").await;
        }
        let call = Call { request, tool, text };
        if decision.action == Action::Ask {
            if let Err(why) = self.ask(&call).await {
                return self.deny(&call.request, &call.text, &why).await;
            }
            log::info(&about(&call.request, &format!("{}: approved", call.text)));
        } else {
            let detail = format!("{}: {why}", call.text);
            log::info(&about(&call.request, &format!("{}: allowed: {why}", call.text)));
            self.operator.tell("tool-allowed", call.request.task.as_deref(), detail).await;
        }
        self.run(&call, input, to).await.unwrap_or_else(|e| {
            failed(&format!("run {} in {}: {e}", call.tool.command[0], call.request.folder))
        })
    }

    async fn deny(&self, request: &Request, text: &str, why: &str) -> End {
        log::warning(&about(request, &format!("{text}: denied: {why}")));
        let detail = format!("{text}: {why}");
        self.operator.tell("tool-denied", request.task.as_deref(), detail).await;
        End { status: DENIED, message: Some(format!("denied: {why}")) }
    }

    /// Asks until an operator has decided or nobody can any more. An error is a no.
    async fn ask(&self, call: &Call) -> Result<(), String> {
        let wait = Duration::from_secs(call.tool.ask_timeout);
        let until = tokio::time::Instant::now() + wait;
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::from_hours(24));
        let question = Question {
            tool: call.request.tool.clone(),
            arguments: call.request.arguments.clone(),
            folder: call.request.folder.clone(),
            task: call.request.task.clone(),
            deadline: Timestamp::now() + wait,
            nonce: TaskId::fresh().to_string(),
        };
        let ask = Ask::new(&self.id, question);
        log::info(&about(&call.request, &format!("{}: waits for an operator", call.text)));
        let mut trouble = String::new();
        let answered = timeout_at(until, async {
            loop {
                let begun = tokio::time::Instant::now();
                match self.operator.ask(&ask).await {
                    // What was approved is exactly what runs: the id is the hash of it.
                    Ok(Answer::Approved { ask: id }) if id == ask.question.id(&self.id) => {
                        return Ok(());
                    }
                    Ok(Answer::Denied { ask: id, reason }) if id == ask.ask => {
                        let reason = reason.map(|why| format!(": {why}")).unwrap_or_default();
                        return Err(format!("an operator said no{reason}"));
                    }
                    Ok(Answer::Refused { reason }) => return Err(reason),
                    Ok(Answer::Expired) => return Err(nobody(&call.tool)),
                    Ok(Answer::Pending) => {}
                    Ok(_) => return Err("the answer was for another question".to_owned()),
                    Err(e) if e != trouble => {
                        log::warning(&format!("ask for {}: {e}; trying again", call.text));
                        trouble = e;
                    }
                    Err(_) => {}
                }
                tokio::time::sleep_until(begun + ASK_AGAIN).await;
            }
        });
        answered.await.unwrap_or_else(|_| Err(nobody(&call.tool)))
    }

    /// Runs the tool to its end.
    async fn run(&self, call: &Call, input: Stdio, to: &mut OwnedWriteHalf) -> io::Result<End> {
        let Some((program, first)) = call.tool.command.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut command = Command::new(program);
        command
            .args(first)
            .args(&call.request.arguments)
            .current_dir(&call.request.folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(call.request.task.iter().map(|task| ("TASK_ID", task)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        // The copy of the caller's standard input goes away with the command.
        drop(command);
        let group = Group(child.id());
        let (Some(output), Some(error)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut cut = false;
        let relayed = relay(output, error, call.tool.output_limit, to, &mut cut);
        let ended = timeout(
            Duration::from_secs(call.tool.timeout),
            see_through(&mut child, &group, relayed),
        );
        let mut end = match ended.await {
            Ok(status) => End { status: code(status?), message: None },
            Err(_) => {
                group.signal(Signal::SIGTERM);
                let _ = timeout(POLITE, child.wait()).await;
                let message = format!("ended after {} s", call.tool.timeout);
                log::warning(&about(&call.request, &format!("{}: {message}", call.text)));
                End { status: TIMED_OUT, message: Some(message) }
            }
        };
        drop(group);
        if cut {
            let limit = call.tool.output_limit;
            let note = format!("output was cut after {limit} bytes");
            log::warning(&about(&call.request, &format!("{}: {note}", call.text)));
            let both = end.message.map_or(note.clone(), |message| format!("{message}; {note}"));
            end.message = Some(both);
        }
        Ok(end)
    }
}

/// Waits for the tool; what it leaves in its group is ended, and its last output passed on.
async fn see_through(
    child: &mut Child,
    group: &Group,
    relayed: impl Future<Output = io::Result<()>>,
) -> io::Result<ExitStatus> {
    tokio::pin!(relayed);
    let mut open = true;
    let status = tokio::select! {
        status = child.wait() => status?,
        done = &mut relayed => {
            open = false;
            // A caller that reads no more: the tool ends with its next write.
            done?;
            child.wait().await?
        }
    };
    group.signal(Signal::SIGKILL);
    if open {
        let _ = timeout(LEFTOVER, relayed).await;
    }
    Ok(status)
}

/// Passes both streams on, up to the limit, and reads on so that the tool is not held up.
async fn relay(
    mut output: impl AsyncRead + Unpin,
    mut error: impl AsyncRead + Unpin,
    limit: u64,
    to: &mut OwnedWriteHalf,
    cut: &mut bool,
) -> io::Result<()> {
    let mut room = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut a, mut b) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let (mut a_open, mut b_open) = (true, true);
    while a_open || b_open {
        let (kind, bytes) = tokio::select! {
            n = output.read(&mut a), if a_open => {
                let n = n?;
                a_open = n > 0;
                (Kind::Output, &a[..n])
            }
            n = error.read(&mut b), if b_open => {
                let n = n?;
                b_open = n > 0;
                (Kind::Error, &b[..n])
            }
        };
        let part = &bytes[..bytes.len().min(room)];
        *cut |= part.len() < bytes.len();
        room -= part.len();
        if !part.is_empty() {
            wire::send_frame(to, kind, part).await?;
        }
    }
    Ok(())
}

/// The tool's process group; what is left of it ends when this is dropped.
struct Group(Option<u32>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // No such group: everybody has left already.
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

fn code(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(FAILED)
}

fn failed(why: &str) -> End {
    End { status: FAILED, message: Some(why.to_owned()) }
}

fn nobody(tool: &Tool) -> String {
    format!("nobody answered within {} s", tool.ask_timeout)
}

fn about(request: &Request, text: &str) -> String {
    match &request.task {
        Some(task) => format!("task {task}: tool {text}"),
        None => format!("tool {text}"),
    }
}

/// Returns when the caller has closed its end. What it still sends is dropped.
async fn left(read: &mut OwnedReadHalf) {
    let mut rest = [0; 256];
    while matches!(read.read(&mut rest).await, Ok(1..)) {}
}

/// One that is too many hears so at once, if it reads, and costs nothing more.
fn refuse(stream: &UnixStream) {
    let end = failed(&format!("more than {CALLS_MAX} calls at once"));
    if let Ok(frame) = wire::frame(Kind::End, &serde_json::to_vec(&end).unwrap_or_default()) {
        let _ = stream.try_write(&frame);
    }
}

async fn send_end(to: &mut OwnedWriteHalf, end: &End) -> io::Result<()> {
    wire::send_frame(to, Kind::End, &serde_json::to_vec(end)?).await
}
