//! One run of the command for one task: the text in, a bounded output out, an end in any case.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio::time::timeout;

use super::bounds::{Bounds, Cut, said};
use super::log;
use super::outcome::{End, Outcome};
use super::process::{Pipes, Process};
use super::relay::{Budget, relay};
use super::settings::{Input, Settings};
use crate::bus::message::TaskId;

/// Between a polite request to end and the end, for a task that is cut short.
pub const POLITE: Duration = Duration::from_secs(2);
/// How long a task may go on when the agent is to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for output that processes outside the group still hold open.
const LEFTOVER: Duration = Duration::from_secs(1);
/// The longest text that is given as an argument: the kernel takes 128 KiB for one.
const ARGUMENT_MAX: usize = 120 * 1024;
/// The word of the command that stands for the text.
const TEXT: &str = "{task}";

/// What to run.
pub struct Job<'a> {
    /// The command and the limits.
    pub settings: &'a Settings,
    /// The task.
    pub task: &'a TaskId,
    /// Which attempt this is.
    pub attempt: u64,
    /// What the command gets.
    pub text: String,
    /// Where it runs.
    pub dir: PathBuf,
    /// When it is of no use any more.
    pub deadline: Option<Timestamp>,
    /// The task's own variables, checked.
    pub environment: BTreeMap<String, String>,
    /// What cuts it short.
    pub bounds: Bounds,
}

/// Why a job was not begun.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// The text cannot be an argument of a command.
    #[error("give the text to the command as an argument: {0}")]
    Text(&'static str),
    /// The command cannot be started.
    #[error("start the command {0}: {1}")]
    Start(String, io::Error),
    /// The kernel would not say how it ended.
    #[error("wait for the command: {0}")]
    Wait(io::Error),
}

/// Runs the command to its end. Nothing of its process group is left afterwards.
///
/// # Errors
/// When the command cannot be started, with the reason for people.
pub async fn run(job: Job<'_>) -> Result<Outcome, NotBegun> {
    let command = prepare(&job)?;
    let program = || job.settings.words().0.to_string_lossy().into_owned();
    let (mut process, pipes) =
        Process::spawn(command).map_err(|e| NotBegun::Start(program(), e))?;
    let Pipes { stdin, stdout, stderr } = pipes;
    let text = if job.settings.input == Input::Stdin { job.text.into_bytes() } else { Vec::new() };
    let feed = tokio::spawn(feed(stdin, text));
    let (limit, (sender, captured)) =
        (job.settings.output_limit, watch::channel(Captured::default()));
    let capture = tokio::spawn(async move { capture(stdout, limit, &sender).await });
    let budget = Budget::new(format!("task {}", job.task), job.settings.parallel);
    let relay = tokio::spawn(relay(stderr, budget));
    let stop = job.bounds.stop();
    let cut = wait(&mut process, job.bounds).await.map_err(NotBegun::Wait)?;
    let ended = process.end().await.map_err(NotBegun::Wait)?;
    feed.abort();
    // A process that left the group can hold the pipes open; its unit ends it, not this wait.
    let (no_capture, no_relay) = (capture.abort_handle(), relay.abort_handle());
    let both = async { (capture.await, relay.await) };
    if timeout(LEFTOVER, both).await.is_err() {
        log::warning(&format!("task {}: a process outside its group goes on", job.task));
        no_capture.abort();
        no_relay.abort();
    }
    let end = match cut {
        Some(cut) => End::Cut(cut),
        None => judge(ended.status, stop).await,
    };
    let Captured { output, truncated } = captured.borrow().clone();
    Ok(Outcome { end, output, truncated, usage: Some(ended.usage) })
}

/// The command with its arguments, folder and variables.
fn prepare(job: &Job<'_>) -> Result<Command, NotBegun> {
    let (program, _) = job.settings.words();
    let mut command = job.settings.start(program, &arguments(job.settings, &job.text)?);
    command
        .current_dir(&job.dir)
        .envs(&job.environment)
        .env("TASK_ID", job.task.as_str())
        .env("TASK_ATTEMPT", job.attempt.to_string())
        .env("TASK_FOLDER", &job.dir)
        // A part of a second is a second: 0 would mean "no limit" to many programs.
        .env("TASK_TIMEOUT", job.bounds.limit().as_secs_f64().ceil().max(1.0).to_string());
    match job.deadline {
        Some(deadline) => command.env("TASK_DEADLINE", deadline.to_string()),
        None => command.env_remove("TASK_DEADLINE"),
    };
    Ok(command)
}

/// The command's arguments, with the text in its place.
fn arguments(settings: &Settings, text: &str) -> Result<Vec<OsString>, NotBegun> {
    let (_, given) = settings.words();
    if settings.input != Input::Argument {
        return Ok(given.to_vec());
    }
    if text.contains('\0') {
        return Err(NotBegun::Text("there is a NUL in it; use task.input = \"stdin\""));
    }
    if text.len() > ARGUMENT_MAX {
        return Err(NotBegun::Text("it is longer than 120 KiB; use task.input = \"stdin\""));
    }
    let mut words = given.to_vec();
    if !words.iter().any(|word| word == TEXT) {
        words.push(TEXT.into());
    }
    for at in (0..words.len()).filter(|at| words[*at] == TEXT).collect::<Vec<_>>() {
        let ended = at > 0 && words[at - 1] == "--";
        if text.starts_with('-') && !ended {
            return Err(NotBegun::Text(
                "it begins with a dash and would be read as an option; put the word \"--\" before \
                 {task} in the command, if the program knows it, or send a text that begins otherwise",
            ));
        }
        words[at] = text.into();
    }
    Ok(words)
}

/// Waits for the command, at most until a bound is reached.
async fn wait(process: &mut Process, mut bounds: Bounds) -> io::Result<Option<Cut>> {
    let cut = tokio::select! {
        ended = process.exited() => return ended.map(|()| None),
        cut = bounds.reached() => cut,
    };
    let grace = if cut == Cut::Stopped {
        STOP_GRACE
    } else {
        process.signal(Signal::SIGTERM);
        POLITE
    };
    match timeout(grace, process.exited()).await {
        // It ended by itself in the time that a stop leaves it.
        Ok(ended) if cut == Cut::Stopped => ended.map(|()| None),
        Ok(ended) => ended.map(|()| Some(cut)),
        Err(_) => Ok(Some(cut)),
    }
}

/// A failure while the agent stops is the stop's doing, not the task's: systemd signals every process
/// of a unit at once, and the command's death can be seen before our own signal.
async fn judge(status: ExitStatus, mut stop: watch::Receiver<bool>) -> End {
    if status.success() {
        return End::Exited(status);
    }
    if status.signal() == Some(Signal::SIGTERM as i32) {
        let _ = timeout(Duration::from_millis(200), said(&mut stop)).await;
    }
    if *stop.borrow() { End::Cut(Cut::Stopped) } else { End::Exited(status) }
}

/// Writes the task's text; a command that does not read it is no error.
async fn feed(mut stdin: ChildStdin, text: Vec<u8>) {
    let _ = stdin.write_all(&text).await;
    let _ = stdin.shutdown().await;
}

#[derive(Clone, Default)]
struct Captured {
    output: Vec<u8>,
    truncated: bool,
}

/// Keeps the first `limit` bytes and reads on, so that the command is not held up by a full pipe.
async fn capture(mut from: impl AsyncRead + Unpin, limit: usize, to: &watch::Sender<Captured>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        to.send_modify(|captured| {
            let room = limit.saturating_sub(captured.output.len()).min(n);
            captured.output.extend_from_slice(&buffer[..room]);
            captured.truncated |= room < n;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(
        limit: u64,
        deadline: Option<Timestamp>,
    ) -> (watch::Sender<bool>, watch::Sender<bool>, Bounds) {
        let (cancel, cancelled) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let limit = Duration::from_secs(limit);
        (cancel, stop, Bounds::new(limit, deadline, cancelled, stopped))
    }

    fn soon(ms: i64) -> Timestamp {
        Timestamp::now().checked_add(jiff::SignedDuration::from_millis(ms)).unwrap()
    }

    async fn run_with(
        settings: Settings,
        text: &str,
        bounds: Bounds,
        environment: &[(&str, &str)],
        deadline: Option<Timestamp>,
    ) -> Result<Outcome, NotBegun> {
        let dir = tempfile::tempdir().unwrap();
        let task = TaskId::parse("t").unwrap();
        let environment =
            environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let job = Job {
            settings: &settings,
            task: &task,
            attempt: 3,
            text: text.to_owned(),
            dir: dir.path().to_owned(),
            deadline,
            environment,
            bounds,
        };
        run(job).await
    }

    async fn run_it(settings: Settings, text: &str) -> Outcome {
        let (_cancel, _stop, bounds) = bounds(20, None);
        run_with(settings, text, bounds, &[], None).await.unwrap()
    }

    fn shell(script: &str) -> Settings {
        Settings::of(&["/bin/sh", "-c", script])
    }

    /// Nobody whose number was written to the file lives; who was killed may need a moment to die.
    fn dead(pids: &std::path::Path, count: usize) {
        let pids = std::fs::read_to_string(pids).unwrap();
        assert_eq!(pids.lines().count(), count, "all processes were there: {pids}");
        let state =
            |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let lives = |pid: &&str| {
            let state = state(pid);
            !state.is_empty() && !state.contains(") Z ")
        };
        let begun = std::time::Instant::now();
        while let Some(pid) = pids.lines().find(lives) {
            assert!(begun.elapsed() < Duration::from_secs(5), "process {pid} lives");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[tokio::test]
    async fn the_text_goes_in_and_the_output_comes_out() {
        let outcome =
            run_it(Settings::of(&["/bin/sh"]), "echo $TASK_ID $TASK_ATTEMPT; exit 3").await;
        assert_eq!(outcome.output, b"t 3\n");
        assert!(matches!(outcome.end, End::Exited(s) if s.code() == Some(3)), "{outcome:?}");
        assert!(outcome.usage.unwrap().memory_peak > 0);
    }

    #[tokio::test]
    async fn the_command_knows_its_task() {
        let (_cancel, _stop, bounds) = bounds(20, Some(soon(4900)));
        let deadline = "2030-01-02T03:04:05Z".parse().unwrap();
        let script = "pwd; echo $TASK_FOLDER; echo $TASK_TIMEOUT $TASK_DEADLINE $MINE";
        let outcome =
            run_with(shell(script), "", bounds, &[("MINE", "a b")], Some(deadline)).await.unwrap();
        let output = String::from_utf8(outcome.output).unwrap();
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[0], lines[1]);
        assert_eq!(lines[2..], ["5 2030-01-02T03:04:05Z a b"]);
    }

    #[tokio::test]
    async fn a_text_can_be_an_argument() {
        let mut settings = Settings::of(&["/bin/echo", "a", "{task}", "b"]);
        settings.input = Input::Argument;
        assert_eq!(run_it(settings.clone(), "x  $y").await.output, b"a x  $y b\n");
        settings.command = ["/bin/cat", "--", "{task}"].map(Into::into).to_vec();
        let outcome = run_it(settings.clone(), "-n").await;
        assert!(
            matches!(outcome.end, End::Exited(s) if !s.success()),
            "a file, no option: {outcome:?}"
        );
        settings.command = ["/usr/bin/wc", "-c"].map(Into::into).to_vec();
        let long = "x".repeat(ARGUMENT_MAX);
        for (text, why) in [("a\0b", "NUL"), ("-x", "dash"), (&format!("{long}x"), "120 KiB")] {
            let (_cancel, _stop, bounds) = bounds(20, None);
            let error = run_with(settings.clone(), text, bounds, &[], None).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        settings.command =
            ["/bin/sh", "-c", "echo \"${#1} $(cat | wc -c)\"", "sh"].map(Into::into).to_vec();
        assert_eq!(run_it(settings, &long).await.output, b"122880 0\n", "and nothing on stdin");
    }

    #[tokio::test]
    async fn endless_output_and_unread_input_are_bounded() {
        let text = "x".repeat(1 << 20);
        let outcome = run_it(shell("head -c 5000000 /dev/zero"), &text).await;
        assert_eq!((outcome.output.len(), outcome.truncated), (100, true));
        assert!(matches!(outcome.end, End::Exited(s) if s.success()), "{outcome:?}");
        let outcome = run_it(shell("exec <&-; sleep 0.2; echo ok"), &text).await;
        assert_eq!(outcome.output, b"ok\n");
        let outcome = run_it(shell("wc -c"), &text).await;
        assert_eq!(outcome.output, b"1048576\n");
        let begun = std::time::Instant::now();
        let outcome = run_it(shell("yes | head -n 2000000 >&2; echo ok"), "").await;
        assert_eq!(outcome.output, b"ok\n", "a flood on standard error");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_task_out_of_time_dies_with_all_its_processes() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> {0}; sleep 60' & echo $$ >> {0}; wait; sleep 60",
            pids.display()
        );
        let (_cancel, _stop, bounds) = bounds(3, None);
        let outcome = run_with(shell(&script), "", bounds, &[], None).await.unwrap();
        assert_eq!(outcome.end, End::Cut(Cut::TimedOut(Duration::from_secs(3))));
        dead(&pids, 2);
    }

    #[tokio::test]
    async fn a_deadline_and_a_cancel_end_a_task() {
        let begun = std::time::Instant::now();
        let script = "echo half; sleep 60";
        let (_cancel, _stop, at_deadline) = bounds(20, Some(soon(1500)));
        let outcome = run_with(shell(script), "", at_deadline, &[], None).await.unwrap();
        assert_eq!((outcome.end, outcome.output), (End::Cut(Cut::Expired), b"half\n".to_vec()));
        let (cancel, _stop, cancelled) = bounds(20, None);
        let run = run_with(shell(script), "", cancelled, &[], None);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cancel.send(true).unwrap();
        };
        let (outcome, ()) = tokio::join!(run, later);
        assert_eq!(outcome.unwrap().end, End::Cut(Cut::Cancelled));
        assert!(begun.elapsed() < Duration::from_millis(3700), "TERM was enough");
    }

    #[tokio::test]
    async fn a_child_that_outlives_the_command_does_not_hold_the_result() {
        let begun = std::time::Instant::now();
        assert_eq!(run_it(shell("sleep 60 & echo ok"), "").await.output, b"ok\n");
        assert_eq!(run_it(shell("setsid sleep 20 & echo ok"), "").await.output, b"ok\n");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_stop_leaves_the_task_unfinished_unless_it_ends_well() {
        let (_cancel, say, bounds) = bounds(20, None);
        let slow = run_with(shell("sleep 60"), "", bounds.clone(), &[], None);
        let quick = run_with(Settings::of(&["sleep", "1"]), "", bounds, &[], None);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            say.send(true).unwrap();
        };
        let (slow, quick, ()) = tokio::join!(slow, quick, later);
        assert_eq!(slow.unwrap().end, End::Cut(Cut::Stopped));
        let quick = quick.unwrap();
        assert!(matches!(quick.end, End::Exited(s) if s.success()), "{quick:?}");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_an_error() {
        let (_cancel, _stop, bounds) = bounds(20, None);
        let error =
            run_with(Settings::of(&["/nonexistent"]), "", bounds, &[], None).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
