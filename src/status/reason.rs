//! Why an agent ended, in words for people.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::status::facts::Facts;
use crate::text::{bytes, span};

/// The process called exit.
const CLD_EXITED: i32 = 1;
/// A signal killed the process.
const CLD_KILLED: i32 = 2;
/// A signal killed the process and its memory was written down.
const CLD_DUMPED: i32 = 3;

/// The exit statuses that systemd itself uses when a program could not be executed, and what each
/// means for an agent. `man systemd.exec` has the whole list.
const EXEC_STEPS: [(i32, &str, &str); 16] = [
    (200, "CHDIR", "its working directory cannot be entered"),
    (202, "FDS", "its file descriptors could not be set up"),
    (203, "EXEC", "its command cannot be executed: missing, or no permission"),
    (204, "MEMORY", "out of memory while it was set up"),
    (205, "LIMITS", "its resource limits could not be set"),
    (206, "OOM_ADJUST", "its place in the order of out-of-memory kills could not be set"),
    (209, "STDOUT", "its output could not be connected to the journal"),
    (210, "CHROOT", "its root directory could not be entered"),
    (216, "GROUP", "its group does not exist"),
    (217, "USER", "its user does not exist"),
    (218, "CAPABILITIES", "its capabilities could not be dropped"),
    (219, "CGROUP", "its cgroup could not be set up"),
    (225, "NETWORK", "its network namespace could not be set up"),
    (226, "NAMESPACE", "its view of the file system could not be set up: a bound path is missing"),
    (228, "SECCOMP", "its system call filter could not be loaded"),
    (237, "KEYRING", "its kernel keyring could not be set up"),
];

/// Why the agent failed. Pure: the same facts give the same words.
#[must_use]
pub fn reason(facts: &Facts) -> String {
    let end = last_end(facts);
    if !facts.gave_up() {
        return end;
    }
    let window = span(Duration::from_micros(facts.window_usec).as_secs());
    let head = format!("gave up after {} starts in {window}", facts.burst);
    match facts.result.as_str() {
        "start-limit-hit" if facts.exit_code == 0 => head,
        _ => format!("{head}; the last: {end}"),
    }
}

/// How the last run ended.
fn last_end(facts: &Facts) -> String {
    match facts.result.as_str() {
        "oom-kill" => match facts.usage.memory_max {
            Some(max) => format!("out of memory: reached its limit of {}", bytes(max)),
            None => "out of memory: killed by the kernel".to_owned(),
        },
        "timeout" => timeout(facts),
        "watchdog" => "gave no sign of life within its watchdog time".to_owned(),
        "protocol" => "did not follow the start protocol of its service type".to_owned(),
        "resources" => {
            "systemd could not get what the start needs; its journal says what".to_owned()
        }
        _ => exit(facts),
    }
}

/// How the main process ended.
#[must_use]
pub fn exit(facts: &Facts) -> String {
    let status = facts.exit_status;
    match facts.exit_code {
        CLD_EXITED if facts.never_ran() => could_not_start(status),
        CLD_EXITED => format!("exit status {status}"),
        CLD_KILLED => format!("killed by {}{}", signal(status), at_the_limit(facts)),
        CLD_DUMPED => format!("crashed: {}, core dumped", signal(status)),
        _ if facts.result.is_empty() => "ended; systemd does not say how".to_owned(),
        _ => format!("ended with the result {}", facts.result),
    }
}

/// The kernel's kill for lack of memory looks like any other SIGKILL when `OOMPolicy=continue`.
fn at_the_limit(facts: &Facts) -> String {
    match (facts.usage.memory_peak, facts.usage.memory_max) {
        (Some(peak), Some(max))
            if facts.exit_status == Signal::SIGKILL as i32 && peak >= max / 100 * 98 =>
        {
            format!("; its memory had reached the limit of {}", bytes(max))
        }
        _ => String::new(),
    }
}

fn could_not_start(status: i32) -> String {
    match EXEC_STEPS.iter().find(|step| step.0 == status) {
        Some((_, name, meaning)) => format!("could not start: {status}/{name}: {meaning}"),
        None => format!("could not start: exit status {status}"),
    }
}

fn timeout(facts: &Facts) -> String {
    let ran = facts.ended_usec.saturating_sub(facts.active_usec);
    match facts.runtime_max_usec {
        _ if facts.never_ran() => "did not start in time".to_owned(),
        Some(max) if ran >= max => {
            format!("reached its run time limit of {}", span(Duration::from_micros(max).as_secs()))
        }
        _ => "did not stop in time and was killed".to_owned(),
    }
}

/// `signal 9 (SIGKILL)`.
fn signal(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("signal {number} ({})", signal.as_str()),
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::facts::Usage;

    fn ran(result: &str, exit_code: i32, exit_status: i32) -> Facts {
        Facts {
            result: result.to_owned(),
            exit_code,
            exit_status,
            forked_usec: 10_000_000,
            active_usec: 10_000_100,
            ended_usec: 20_000_000,
            policy: "on-failure".to_owned(),
            burst: 5,
            window_usec: 60_000_000,
            usage: Usage { memory_max: Some(256 << 20), ..Usage::default() },
            ..Facts::default()
        }
    }

    #[test]
    fn each_end_has_its_words() {
        let runtime = Facts { runtime_max_usec: Some(5_000_000), ..ran("timeout", CLD_KILLED, 15) };
        let stuck = Facts { runtime_max_usec: None, ..runtime.clone() };
        let never = |status| Facts { active_usec: 0, ..ran("exit-code", CLD_EXITED, status) };
        let mut full = ran("signal", CLD_KILLED, 9);
        full.usage.memory_peak = Some(256 << 20);
        let second = Facts { active_usec: 9_000_000, ..ran("exit-code", CLD_EXITED, 217) };
        let table = [
            (ran("exit-code", CLD_EXITED, 7), "exit status 7"),
            (ran("exit-code", CLD_EXITED, 203), "exit status 203"),
            (ran("signal", CLD_KILLED, 9), "killed by signal 9 (SIGKILL)"),
            (ran("signal", CLD_KILLED, 44), "killed by signal 44"),
            (full, "killed by signal 9 (SIGKILL); its memory had reached the limit of 256 MiB"),
            (ran("core-dump", CLD_DUMPED, 11), "crashed: signal 11 (SIGSEGV), core dumped"),
            (ran("oom-kill", CLD_KILLED, 9), "out of memory: reached its limit of 256 MiB"),
            (runtime, "reached its run time limit of 5s"),
            (stuck, "did not stop in time and was killed"),
            (Facts { active_usec: 0, ..ran("timeout", CLD_KILLED, 15) }, "did not start in time"),
            (
                never(203),
                "could not start: 203/EXEC: its command cannot be executed: missing, or no permission",
            ),
            (second, "could not start: 217/USER: its user does not exist"),
            (never(1), "could not start: exit status 1"),
            (ran("exec-condition", 0, 0), "ended with the result exec-condition"),
            (Facts::default(), "ended; systemd does not say how"),
        ];
        for (facts, words) in table {
            assert_eq!(reason(&facts), words);
        }
    }

    #[test]
    fn giving_up_names_the_limit_and_the_last_end() {
        let loops = Facts { restarts: 5, ..ran("exit-code", CLD_EXITED, 7) };
        assert_eq!(reason(&loops), "gave up after 5 starts in 1min; the last: exit status 7");
        let hit = Facts { result: "start-limit-hit".into(), exit_code: 0, ..loops.clone() };
        assert_eq!(reason(&hit), "gave up after 5 starts in 1min");
        let never = Facts { policy: "no".into(), ..loops.clone() };
        assert_eq!(reason(&never), "exit status 7");
        let early = Facts { restarts: 4, ..loops };
        assert_eq!(reason(&early), "exit status 7");
    }
}
