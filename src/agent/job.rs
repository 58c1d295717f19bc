//! One run of the command: its own process group, the task's text in, a bounded output out.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, ChildStderr, ChildStdin};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::log;
use super::settings::Settings;
use crate::bus::message::TaskId;

/// Between a polite request to end and the end, for a task whose time is over.
const POLITE: Duration = Duration::from_secs(2);
/// How long a task may go on when the agent is to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for output that processes outside the group still hold open.
const LEFTOVER: Duration = Duration::from_secs(1);
/// The longest line of standard error that is passed on whole.
const LINE: usize = 4 * 1024;

/// What to run.
pub struct Job<'a> {
    /// The command and the limits.
    pub settings: &'a Settings,
    /// The task.
    pub task: &'a TaskId,
    /// Which attempt this is.
    pub attempt: u64,
    /// What the command gets on its standard input.
    pub text: String,
    /// Where it runs.
    pub dir: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// Standard output, at most as long as the limit.
    pub output: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

/// Why a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended by itself.
    Exited(ExitStatus),
    /// Its time was over and it was killed.
    TimedOut,
    /// The agent has to stop and the task is not done.
    Stopped,
}

/// Runs the command to its end. Nothing of its process group is left afterwards.
///
/// # Errors
/// When the command cannot be started.
pub async fn run(job: Job<'_>, stop: watch::Receiver<bool>) -> io::Result<Outcome> {
    let mut child = spawn(&job)?;
    let group = Group(child.id());
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let feed = tokio::spawn(feed(stdin, job.text.into_bytes()));
    let (limit, (sender, captured)) =
        (job.settings.output_limit, watch::channel(Captured::default()));
    let capture = tokio::spawn(async move {
        if let Some(stdout) = stdout {
            capture(stdout, limit, &sender).await;
        }
    });
    let relay = tokio::spawn(relay(stderr, job.task.clone()));
    let end = wait(&mut child, &group, job.settings.timeout, stop).await?;
    group.signal(Signal::SIGKILL);
    feed.abort();
    // A process that left the group can hold the pipes open; its unit ends it, not this wait.
    let (no_capture, no_relay) = (capture.abort_handle(), relay.abort_handle());
    let both = async { (capture.await, relay.await) };
    if timeout(LEFTOVER, both).await.is_err() {
        log::warning(&format!("task {}: a process outside its group goes on", job.task));
        no_capture.abort();
        no_relay.abort();
    }
    let Captured { output, truncated } = captured.borrow().clone();
    Ok(Outcome { end, output, truncated })
}

fn spawn(job: &Job<'_>) -> io::Result<Child> {
    // Settings never hold an empty command.
    let (program, arguments) =
        job.settings.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = job.settings.start(program, arguments);
    command
        .current_dir(&job.dir)
        .env("TASK_ID", job.task.as_str())
        .env("TASK_ATTEMPT", job.attempt.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command.spawn()
}

/// The command's process group, whose number is the command's process id.
struct Group(Option<u32>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // No such group: everybody has left already.
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
}

/// Waits for the command, at most until its time is over or the agent must stop.
async fn wait(
    child: &mut Child,
    group: &Group,
    limit: Duration,
    mut stop: watch::Receiver<bool>,
) -> io::Result<End> {
    let stopping = stop.clone();
    let ended = tokio::select! {
        status = child.wait() => Some(status?),
        () = sleep(limit) => None,
        () = stopped(&mut stop) => match timeout(STOP_GRACE, child.wait()).await {
            Ok(status) => Some(status?),
            Err(_) => {
                group.signal(Signal::SIGKILL);
                child.wait().await?;
                return Ok(End::Stopped);
            }
        },
    };
    match ended {
        Some(status) if status.success() => Ok(End::Exited(status)),
        Some(status) => Ok(failed(status, stopping).await),
        None => {
            group.signal(Signal::SIGTERM);
            if timeout(POLITE, child.wait()).await.is_err() {
                group.signal(Signal::SIGKILL);
                child.wait().await?;
            }
            Ok(End::TimedOut)
        }
    }
}

/// A failure while the agent stops is the stop's doing, not the task's: systemd signals every process
/// of a unit at once, and the command's death can be seen before our own signal.
async fn failed(status: ExitStatus, mut stop: watch::Receiver<bool>) -> End {
    if status.signal() == Some(Signal::SIGTERM as i32) {
        let _ = timeout(Duration::from_millis(200), stopped(&mut stop)).await;
    }
    if *stop.borrow() { End::Stopped } else { End::Exited(status) }
}

/// Returns when the agent has to stop, and never if nobody can say so any more.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes the task's text; a command that does not read it is no error.
async fn feed(stdin: Option<ChildStdin>, text: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&text).await;
        let _ = stdin.shutdown().await;
    }
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

/// Passes standard error on, line by line, with the task's name.
async fn relay(stderr: Option<ChildStderr>, task: TaskId) {
    let Some(stderr) = stderr else { return };
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LINE as u64).read_until(b'\n', &mut line).await;
        match read {
            Ok(n) if n > 0 => {
                let text = String::from_utf8_lossy(&line);
                log::command(&format!("task {task}: {}", text.trim_end()));
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(command: &[&str]) -> Settings {
        Settings {
            id: crate::names::AgentId::parse("a").unwrap(),
            url: String::new(),
            user: String::new(),
            password: String::new(),
            shared: PathBuf::new(),
            timeout: Duration::from_secs(20),
            output_limit: 100,
            parallel: 1,
            attempts: 1,
            command: command.iter().map(Into::into).collect(),
            tools: None,
        }
    }

    async fn run_it(settings: Settings, text: &str, stop: watch::Receiver<bool>) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let task = TaskId::parse("t").unwrap();
        let job = Job {
            settings: &settings,
            task: &task,
            attempt: 3,
            text: text.to_owned(),
            dir: dir.path().to_owned(),
        };
        run(job, stop).await.unwrap()
    }

    fn go_on() -> (watch::Sender<bool>, watch::Receiver<bool>) {
        watch::channel(false)
    }

    #[tokio::test]
    async fn the_text_goes_in_and_the_output_comes_out() {
        let (_keep, stop) = go_on();
        let outcome =
            run_it(settings(&["/bin/sh"]), "echo $TASK_ID $TASK_ATTEMPT; exit 3", stop).await;
        assert_eq!(outcome.output, b"t 3\n");
        assert!(matches!(outcome.end, End::Exited(s) if s.code() == Some(3)), "{outcome:?}");
    }

    #[tokio::test]
    async fn endless_output_and_unread_input_are_bounded() {
        let (_keep, stop) = go_on();
        let text = "x".repeat(1 << 20);
        let endless = settings(&["/bin/sh", "-c", "head -c 5000000 /dev/zero"]);
        let outcome = run_it(endless, &text, stop).await;
        assert_eq!((outcome.output.len(), outcome.truncated), (100, true));
        assert!(matches!(outcome.end, End::Exited(s) if s.success()), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_task_out_of_time_dies_with_all_its_processes() {
        let (_keep, stop) = go_on();
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> {0}; sleep 60' & echo $$ >> {0}; wait; sleep 60",
            pids.display()
        );
        let mut slow = settings(&["/bin/sh", "-c", &script]);
        slow.timeout = Duration::from_secs(1);
        let outcome = run_it(slow, "", stop).await;
        assert_eq!(outcome.end, End::TimedOut);
        let pids = std::fs::read_to_string(pids).unwrap();
        assert_eq!(pids.lines().count(), 2, "both processes were there: {pids}");
        for pid in pids.lines() {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(state.is_empty() || state.contains(") Z "), "process {pid} lives: {state}");
        }
    }

    #[tokio::test]
    async fn a_child_that_outlives_the_command_does_not_hold_the_result() {
        let (_keep, stop) = go_on();
        let begun = std::time::Instant::now();
        let outcome = run_it(settings(&["/bin/sh", "-c", "sleep 60 & echo ok"]), "", stop).await;
        assert_eq!(outcome.output, b"ok\n");
        let (_keep, stop) = go_on();
        let fled = settings(&["/bin/sh", "-c", "setsid sleep 5 & echo ok"]);
        assert_eq!(run_it(fled, "", stop).await.output, b"ok\n");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_stop_leaves_the_task_unfinished_unless_it_ends_well() {
        let (say, stop) = go_on();
        let (slow, quick) = (settings(&["/bin/sh", "-c", "sleep 60"]), settings(&["sleep", "1"]));
        let (slow, quick) = (run_it(slow, "", stop.clone()), run_it(quick, "", stop));
        let later = async {
            sleep(Duration::from_millis(300)).await;
            say.send(true).unwrap();
        };
        let (slow, quick, ()) = tokio::join!(slow, quick, later);
        assert_eq!(slow.end, End::Stopped);
        assert!(matches!(quick.end, End::Exited(s) if s.success()), "{quick:?}");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_an_error() {
        let (_keep, stop) = go_on();
        let settings = settings(&["/nonexistent"]);
        let task = TaskId::parse("t").unwrap();
        let job = Job {
            settings: &settings,
            task: &task,
            attempt: 1,
            text: String::new(),
            dir: "/".into(),
        };
        assert_eq!(run(job, stop).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
