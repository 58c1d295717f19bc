//! A command in a process group of its own: started, watched, ended with its whole group, measured.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::signal::unix::{SignalKind, signal};
use wait4::Wait4 as _;

use crate::bus::message::Usage;

/// A command that runs. Dropped, it is killed with its group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Whether its status was taken: from then on its number can be another process's.
    taken: bool,
    /// Comes whenever a child of ours ends.
    ends: tokio::signal::unix::Signal,
}

/// Its three streams.
#[derive(Debug)]
pub struct Pipes {
    /// What it reads.
    pub stdin: ChildStdin,
    /// What it writes.
    pub stdout: ChildStdout,
    /// What it complains.
    pub stderr: ChildStderr,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// What it and the processes that it waited for used up.
    pub usage: Usage,
}

impl Process {
    /// Starts a command as the leader of a new group.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> io::Result<(Self, Pipes)> {
        // Before the command can end.
        let ends = signal(SignalKind::child())?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let process = Self { child, taken: false, ends };
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let pipes = Pipes {
            stdin: ChildStdin::from_std(stdin)?,
            stdout: ChildStdout::from_std(stdout)?,
            stderr: ChildStderr::from_std(stderr)?,
        };
        Ok((process, pipes))
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns when the command has ended. Its status is not taken: until [`Process::end`] its number
    /// stays its own, so that its group can still be reached by it.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub async fn exited(&mut self) -> io::Result<()> {
        let pid = Pid::from_child(&self.child);
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), look)?.is_none() {
            if self.ends.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }

    /// Signals everybody who is still in the group.
    pub fn signal(&self, signal: Signal) {
        if let (false, Ok(id)) = (self.taken, i32::try_from(self.child.id())) {
            // No such group: everybody has left already.
            let _ = killpg(nix::unistd::Pid::from_raw(id), signal);
        }
    }

    /// Kills what is left of the group and says how the command ended.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub async fn end(mut self) -> io::Result<Ended> {
        self.signal(Signal::SIGKILL);
        self.exited().await?;
        self.taken = true;
        let ended = self.child.wait4()?;
        let usec = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let usage = Usage {
            user_usec: usec(ended.rusage.utime),
            system_usec: usec(ended.rusage.stime),
            memory_peak: ended.rusage.maxrss,
        };
        Ok(Ended { status: ended.status, usage })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn what_a_command_and_its_children_use_is_measured() {
        // More than this process has itself, and a loop, in a child that the shell waits for.
        let script = "python3 -c 'b = bytearray(512 << 20)\nfor i in range(3000000): pass'; exit 3";
        let (mut process, _pipes) = Process::spawn(sh(script)).unwrap();
        process.exited().await.unwrap();
        let ended = process.end().await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.usage.memory_peak > 512 << 20, "{:?}", ended.usage);
        assert!(ended.usage.user_usec > 10_000, "{:?}", ended.usage);
        let (mut idle, _pipes) = Process::spawn(sh("sleep 0.2")).unwrap();
        idle.exited().await.unwrap();
        let usage = idle.end().await.unwrap().usage;
        // Nothing of its memory: the kernel begins to count with what the process that forked had.
        assert!(usage.user_usec < 100_000, "{usage:?}");
    }

    #[tokio::test]
    async fn many_ends_at_once_are_all_seen() {
        let mut runs = tokio::task::JoinSet::new();
        for n in 0..20 {
            runs.spawn(async move {
                let (mut process, _pipes) = Process::spawn(sh(&format!("exit {n}"))).unwrap();
                process.exited().await.unwrap();
                (n, process.end().await.unwrap().status.code())
            });
        }
        while let Some(Ok((n, code))) = runs.join_next().await {
            assert_eq!(code, Some(n));
        }
    }

    #[tokio::test]
    async fn who_is_dropped_dies_with_its_group() {
        let (process, _pipes) = Process::spawn(sh("sleep 60 & sleep 60")).unwrap();
        let group = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        drop(process);
        let gone =
            || std::fs::read_to_string(format!("/proc/{group}/stat")).unwrap().contains(") Z ");
        for _ in 0..500 {
            if gone() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("process {group} lives");
    }
}
