//! `flock-agent`: turns any command into an agent. It runs inside the agent's sandbox, as its user.
//!
//! For each task: the command gets the text, what it answers becomes the result, the result becomes a
//! file and a message, and only then is the task acknowledged. So a task whose agent dies in between
//! comes again.
//!
//! - [`settings`]: what the environment and the command line say
//! - [`link`]: the connection, and what is said on it
//! - [`worker`]: takes tasks, several at once, and sees each through to its acknowledgement
//! - [`register`]: which tasks are in progress, and which were cancelled
//! - [`bounds`]: what ends a task that does not end by itself
//! - [`process`]: a command with its group: started, watched, ended, measured
//! - [`job`]: one run of the command for one task
//! - [`session`], [`protocol`]: a command that lives on and speaks lines of JSON
//! - [`outcome`]: how a task ended, and what its result says of it
//! - [`relay`]: what the command says besides, as lines of the journal
//! - [`store`]: folders and result files of tasks
//! - [`spelled`]: a command whose words an old systemd would not keep
//! - [`tools`]: which programs the command may use, and who decides
//! - [`log`]: lines for the journal
//!
//! A line of the journal that is about a task begins with `task <id>:`, the command's own words
//! included, so no command can speak for the task of another.
//!
//! It is trusted with nothing: whatever it reports, the bus and the host hold the boundary.

pub mod bounds;
pub mod job;
pub mod link;
pub mod log;
pub mod outcome;
pub mod process;
pub mod protocol;
pub mod register;
pub mod relay;
pub mod session;
pub mod settings;
pub mod spelled;
pub mod store;
pub mod tools;
pub mod worker;

use std::process::ExitCode;

use settings::Settings;

/// The whole program: 0 after a clean stop, 1 when it could not begin.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(end) = tools::other_role() {
        return end;
    }
    let settings = match Settings::from_process() {
        Ok(settings) => settings,
        Err(e) => {
            log::error(&e.to_string());
            return ExitCode::FAILURE;
        }
    };
    // The command runs as the same user. This keeps it from reading the bus password out of our
    // memory or environment in /proc, and from tracing us.
    if let Err(e) = nix::sys::prctl::set_dumpable(false) {
        log::error(&format!("hide the bus password from the command: prctl: {e}"));
        return ExitCode::FAILURE;
    }
    // One thread: the sandbox counts threads against the agent's TasksMax.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            log::error(&format!("start the runtime: {e}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(worker::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error(&e.to_string());
            ExitCode::FAILURE
        }
    }
}
