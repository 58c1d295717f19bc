//! A command that lives on, in mode json-lines: it is started once, gets a line for each task and
//! answers with a line for each. Whoever does not keep to that is ended and started again.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::bounds::{Bounds, Cut, said};
use super::job::POLITE;
use super::log;
use super::outcome::{End, Outcome};
use super::process::{Pipes, Process};
use super::protocol::{self, Heard, Request};
use super::relay::{Budget, relay};
use super::settings::Settings;
use crate::bus::message::TaskId;

/// How long the command may take to answer for a task that was taken back.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How long it may take to end when its standard input was closed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long what it wrote before its end may take to arrive.
const LEFTOVER: Duration = Duration::from_secs(1);
/// The pauses before it is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What begins a line of the journal that the command wrote; no task's lines begin so.
const PREFIX: &str = "command";

/// The way to the command, for as many tasks as there are.
#[derive(Clone, Debug)]
pub struct Session {
    asks: mpsc::UnboundedSender<Ask>,
}

#[derive(Debug)]
enum Ask {
    /// Do this.
    Begin(Flight),
    /// Do it no more.
    Cancel(TaskId),
}

/// A task on its way.
#[derive(Debug)]
struct Flight {
    id: TaskId,
    line: Vec<u8>,
    answer: oneshot::Sender<Outcome>,
    /// When the command was told to give it up.
    told: Option<Instant>,
}

impl Session {
    /// The way to a command, and the command's keeper, which has to be run.
    #[must_use]
    pub fn new(settings: Settings, stop: watch::Receiver<bool>) -> (Self, Keeper) {
        let (asks, queue) = mpsc::unbounded_channel();
        let budget = Budget::new(PREFIX.to_owned(), 2);
        let (flights, waiting) = (BTreeMap::new(), Vec::new());
        (Self { asks }, Keeper { settings, queue, stop, flights, waiting, budget, answered: false })
    }

    /// Has the command do a task.
    pub async fn run(&self, request: &Request<'_>, mut bounds: Bounds) -> Outcome {
        let (answer, mut answered) = oneshot::channel();
        let id = request.id.clone();
        let flight = Flight { id: id.clone(), line: protocol::line(request), answer, told: None };
        // Nobody takes it any more when the agent stops; then nobody answers either.
        let _ = self.asks.send(Ask::Begin(flight));
        let gone = || Outcome::bare(End::Cut(Cut::Stopped));
        let cut = tokio::select! {
            outcome = &mut answered => return outcome.unwrap_or_else(|_| gone()),
            cut = bounds.reached() => cut,
        };
        if cut != Cut::Stopped {
            let _ = self.asks.send(Ask::Cancel(id));
        }
        // The keeper bounds this wait.
        let outcome = answered.await.unwrap_or_else(|_| gone());
        // What comes after the end of its time is kept, and changes nothing.
        if cut == Cut::Stopped { outcome } else { Outcome { end: End::Cut(cut), ..outcome } }
    }
}

/// Starts the command, again and again if it must be, and knows which tasks it has.
pub struct Keeper {
    settings: Settings,
    queue: mpsc::UnboundedReceiver<Ask>,
    stop: watch::Receiver<bool>,
    flights: BTreeMap<TaskId, Flight>,
    /// Tasks that came while there was no command to give them to.
    waiting: Vec<Flight>,
    budget: Budget,
    /// Whether the command has answered since its start.
    answered: bool,
}

/// Why the command does not go on.
enum Why {
    /// The agent has to stop.
    Stop,
    /// It ended or closed its output.
    Ended,
    /// It did not give this task up.
    Stubborn(TaskId),
}

/// One run of the command.
struct Life {
    process: Process,
    /// Lines for its standard input; dropped, the input is closed.
    say: mpsc::UnboundedSender<Vec<u8>>,
    /// Lines of its standard output, and whether each is whole.
    lines: mpsc::Receiver<(Vec<u8>, bool)>,
}

impl Keeper {
    /// Keeps the command alive until the agent stops.
    ///
    /// # Errors
    /// When the command cannot be started at all.
    pub async fn run(mut self, home: &std::path::Path) -> io::Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            self.answered = false;
            let life = self.start(home)?;
            let why = self.live(life).await?;
            let Some(why) = why else { return Ok(()) };
            for (_, flight) in std::mem::take(&mut self.flights) {
                let _ = flight.answer.send(Outcome::bare(End::Lost(why.clone())));
            }
            if self.answered || begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let seconds = pause.as_secs_f32();
            log::warning(&format!("{why}; it is started again in {seconds} s"));
            if self.rest(pause).await {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn start(&mut self, home: &std::path::Path) -> io::Result<Life> {
        let (program, arguments) = self.settings.words();
        let mut command = self.settings.start(program, arguments);
        command.current_dir(home);
        let (process, pipes) = Process::spawn(command).map_err(|e| {
            let program = program.to_string_lossy();
            io::Error::new(e.kind(), format!("start the command {program}: {e}"))
        })?;
        let Pipes { stdin, stdout, stderr } = pipes;
        let (say, hear) = mpsc::unbounded_channel();
        // One line at a time: a command that talks faster than it is understood waits in its pipe.
        let (line, lines) = mpsc::channel(1);
        tokio::spawn(write(stdin, hear));
        tokio::spawn(read(stdout, protocol::longest(self.settings.output_limit), line));
        tokio::spawn(relay(stderr, Budget::new(PREFIX.to_owned(), 2)));
        log::info(&format!("the command runs as process {}", process.id()));
        let life = Life { process, say, lines };
        for flight in std::mem::take(&mut self.waiting) {
            self.begin(flight, &life);
        }
        Ok(life)
    }

    /// Sees the command to its end. Says why it ended, or nothing when the agent stops.
    async fn live(&mut self, mut life: Life) -> io::Result<Option<String>> {
        let why = self.serve(&mut life).await?;
        let Life { mut process, say, lines } = life;
        drop(say);
        Ok(match why {
            Why::Stop => {
                self.last_words(&mut process, lines).await?;
                process.end().await?;
                None
            }
            Why::Ended => {
                self.rest_of(lines).await;
                let status = process.end().await?.status;
                Some(format!("the command ended or closed its output ({status})"))
            }
            Why::Stubborn(task) => {
                process.end().await?;
                let seconds = CANCEL_GRACE.as_secs();
                Some(format!(
                    "the command did not give up task {task} within {seconds} s and was killed"
                ))
            }
        })
    }

    async fn serve(&mut self, life: &mut Life) -> io::Result<Why> {
        let mut stop = self.stop.clone();
        loop {
            let told = self.flights.values().filter_map(|flight| Some((flight.told?, &flight.id)));
            let overdue = told.min().map(|(told, id)| (told + CANCEL_GRACE, id.clone()));
            let at = overdue.as_ref().map(|(at, _)| *at);
            let patience = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                line = life.lines.recv() => match line {
                    Some((bytes, whole)) => self.hear(&bytes, whole),
                    None => return Ok(Why::Ended),
                },
                ended = life.process.exited() => return ended.map(|()| Why::Ended),
                Some(ask) = self.queue.recv() => match ask {
                    Ask::Begin(flight) => self.begin(flight, life),
                    Ask::Cancel(task) => self.cancel(&task, life),
                },
                () = patience => if let Some((_, task)) = overdue {
                    return Ok(Why::Stubborn(task));
                },
                () = said(&mut stop) => return Ok(Why::Stop),
            }
        }
    }

    fn begin(&mut self, mut flight: Flight, life: &Life) {
        let _ = life.say.send(std::mem::take(&mut flight.line));
        self.flights.insert(flight.id.clone(), flight);
    }

    fn cancel(&mut self, task: &TaskId, life: &Life) {
        // It may have answered meanwhile.
        if let Some(flight) = self.flights.get_mut(task) {
            flight.told = Some(Instant::now());
            let _ = life.say.send(protocol::cancel(task));
        }
    }

    fn hear(&mut self, bytes: &[u8], whole: bool) {
        match protocol::read(bytes, whole, self.settings.output_limit) {
            Heard::Text(text) => self.budget.pass(&text),
            Heard::Answer(id, outcome) => match self.flights.remove(&id) {
                Some(flight) => {
                    self.answered = true;
                    let _ = flight.answer.send(outcome);
                }
                None => self.budget.pass(&format!("an answer for {id}, which it does not have")),
            },
        }
    }

    /// Hears what the command had written before its end.
    async fn rest_of(&mut self, mut lines: mpsc::Receiver<(Vec<u8>, bool)>) {
        let all = async {
            while let Some((bytes, whole)) = lines.recv().await {
                self.hear(&bytes, whole);
            }
        };
        // A process that left the group can hold the pipe open.
        let _ = timeout(LEFTOVER, all).await;
    }

    /// The command's input is closed: it may end well, then it must.
    async fn last_words(
        &mut self,
        process: &mut Process,
        mut lines: mpsc::Receiver<(Vec<u8>, bool)>,
    ) -> io::Result<()> {
        let well = async {
            loop {
                tokio::select! {
                    Some((bytes, whole)) = lines.recv() => self.hear(&bytes, whole),
                    ended = process.exited() => return ended,
                }
            }
        };
        if let Ok(ended) = timeout(STOP_GRACE, well).await {
            ended?;
        } else {
            process.signal(Signal::SIGTERM);
            if let Ok(ended) = timeout(POLITE, process.exited()).await {
                ended?;
            }
        }
        self.rest_of(lines).await;
        Ok(())
    }

    /// Waits before the next start; tasks that come meanwhile wait too. True when the agent stops.
    async fn rest(&mut self, pause: Duration) -> bool {
        let end = sleep(pause);
        tokio::pin!(end);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                () = &mut end => return false,
                () = said(&mut stop) => return true,
                Some(ask) = self.queue.recv() => match ask {
                    Ask::Begin(flight) => self.waiting.push(flight),
                    Ask::Cancel(task) => self.waiting.retain(|flight| flight.id != task),
                },
            }
        }
    }
}

/// Writes lines to the command; one that does not read them is no error here.
async fn write(mut stdin: ChildStdin, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
}

/// Reads the command's lines until it closes its output.
async fn read(stdout: ChildStdout, max: usize, to: mpsc::Sender<(Vec<u8>, bool)>) {
    let mut reader = BufReader::new(stdout);
    while let Ok(Some(line)) = next(&mut reader, max).await {
        if to.send(line).await.is_err() {
            return;
        }
    }
}

/// The next line without its end, and whether it is whole: of one that is longer than `max` bytes
/// the beginning is kept, which names its task.
async fn next(
    reader: &mut (impl AsyncBufRead + Unpin),
    max: usize,
) -> io::Result<Option<(Vec<u8>, bool)>> {
    let (mut line, mut whole, mut any) = (Vec::new(), true, false);
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(any.then_some((line, whole)));
        }
        any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let room = part.len().min(max.saturating_sub(line.len()));
        line.extend_from_slice(&part[..room]);
        whole &= room == part.len();
        let used = end.map_or(chunk.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some((line, whole)));
        }
    }
}

#[cfg(test)]
mod tests;
