//! What the environment and the command line tell the agent.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::tools::Tools;
use crate::names::AgentId;
use crate::tools::RULES_VARIABLE;

/// Everything the agent needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Who it is.
    pub id: AgentId,
    /// The bus.
    pub url: String,
    /// Its user on the bus.
    pub user: String,
    /// Its password on the bus.
    pub password: String,
    /// The shared tree.
    pub shared: PathBuf,
    /// The longest that a task may run.
    pub timeout: Duration,
    /// Most bytes of a task's output.
    pub output_limit: usize,
    /// Most tasks at once.
    pub parallel: u32,
    /// How often a task is begun before the agent gives it up.
    pub attempts: u64,
    /// How many folders and results of tasks stay.
    pub keep: usize,
    /// How the command gets its tasks.
    pub input: Input,
    /// The command.
    pub command: Vec<OsString>,
    /// Which programs the command may use; none means that nothing watches over them.
    pub tools: Option<Tools>,
}

/// How the command gets its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Run for each, with the text on standard input.
    Stdin,
    /// Run for each, with the text as an argument.
    Argument,
    /// Run once, with a line of JSON for each.
    JsonLines,
}

/// What is wrong with the environment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "start flock-agent: the variable {name} {why}; flock sets it, so start the agent with `systemctl start flock@<id>`"
)]
pub struct BadSettings {
    name: &'static str,
    why: String,
}

impl Settings {
    /// Reads this process's environment and arguments.
    ///
    /// # Errors
    /// With the variable that is missing or wrong.
    pub fn from_process() -> Result<Self, BadSettings> {
        Self::from(|name| std::env::var(name).ok(), std::env::args_os().skip(1).collect())
    }

    /// Reads variables through `get`; `command` is the command line without the program's name.
    ///
    /// # Errors
    /// With the variable that is missing or wrong.
    pub fn from(
        get: impl Fn(&'static str) -> Option<String>,
        command: Vec<OsString>,
    ) -> Result<Self, BadSettings> {
        let need = |name| {
            get(name).ok_or_else(|| BadSettings { name, why: "is missing or no UTF-8".to_owned() })
        };
        let number = |name, default: u64, least: u64, most: u64| {
            let Some(text) = get(name) else { return Ok(default) };
            text.parse().ok().filter(|n| (least..=most).contains(n)).ok_or_else(|| BadSettings {
                name,
                why: format!("is {text:?}, not a number from {least} to {most}"),
            })
        };
        let id = need("AGENT_ID")?;
        let id = AgentId::parse(&id)
            .map_err(|e| BadSettings { name: "AGENT_ID", why: format!("is wrong: {e}") })?;
        let input = match get("FLOCK_TASK_INPUT").as_deref() {
            None | Some("stdin") => Input::Stdin,
            Some("argument") => Input::Argument,
            Some("json-lines") => Input::JsonLines,
            Some(other) => {
                let why = format!("is {other:?}, not stdin, argument or json-lines");
                return Err(BadSettings { name: "FLOCK_TASK_INPUT", why });
            }
        };
        let output_limit = number("FLOCK_TASK_OUTPUT_LIMIT", 1 << 20, 1, 1 << 30)?;
        let tools = match get(RULES_VARIABLE) {
            None => None,
            Some(file) => {
                let dir = get("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run/agent".to_owned());
                let tools = Tools::read(Path::new(&file), Path::new(&dir));
                let bad =
                    |e| BadSettings { name: RULES_VARIABLE, why: format!("names {file}: {e}") };
                Some(tools.map_err(bad)?)
            }
        };
        Ok(Self {
            id,
            url: need("NATS_URL")?,
            user: need("NATS_USER")?,
            password: need("NATS_PASSWORD")?,
            shared: need("SHARED_DIR")?.into(),
            timeout: Duration::from_secs(number("FLOCK_TASK_TIMEOUT", 600, 1, 31_536_000)?),
            output_limit: usize::try_from(output_limit).unwrap_or(usize::MAX),
            parallel: u32::try_from(number("FLOCK_TASK_PARALLEL", 2, 1, 1024)?).unwrap_or(1),
            keep: usize::try_from(number("FLOCK_TASK_KEEP", 100, 1, 100_000)?).unwrap_or(1),
            input,
            attempts: number("FLOCK_TASK_ATTEMPTS", 5, 1, 1000)?,
            command: if command.is_empty() { vec!["/bin/sh".into()] } else { command },
            tools,
        })
    }
}

impl Settings {
    /// The start of a program with its arguments, under the agent's tool rules if it has any.
    /// Variables that are not the command's are not in it.
    #[must_use]
    pub fn start(&self, program: &OsStr, arguments: &[OsString]) -> Command {
        let mut command = match &self.tools {
            Some(tools) => tools.command(program, arguments),
            None => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
        };
        for name in PRIVATE {
            command.env_remove(name);
        }
        command
    }

    /// The command's program and its further words.
    #[must_use]
    pub fn words(&self) -> (&OsStr, &[OsString]) {
        // Settings never hold an empty command.
        self.command.split_first().map_or((OsStr::new(""), &[]), |(first, rest)| (first, rest))
    }
}

/// Variables that are the agent's own and not its command's.
pub const PRIVATE: [&str; 10] = [
    "NATS_URL",
    "NATS_USER",
    "NATS_PASSWORD",
    "FLOCK_TASK_TIMEOUT",
    "FLOCK_TASK_OUTPUT_LIMIT",
    "FLOCK_TASK_PARALLEL",
    "FLOCK_TASK_ATTEMPTS",
    "FLOCK_TASK_INPUT",
    "FLOCK_TASK_KEEP",
    RULES_VARIABLE,
];

#[cfg(test)]
impl Settings {
    /// Settings for a test of this command: small bounds, no bus.
    pub fn of(command: &[&str]) -> Self {
        Self {
            id: AgentId::parse("a").unwrap(),
            url: String::new(),
            user: String::new(),
            password: String::new(),
            shared: PathBuf::new(),
            timeout: Duration::from_secs(20),
            output_limit: 100,
            parallel: 1,
            attempts: 1,
            keep: 100,
            input: Input::Stdin,
            command: command.iter().map(Into::into).collect(),
            tools: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str) -> Option<String> {
        let value = match name {
            "AGENT_ID" => "agent-1",
            "NATS_URL" => "nats://127.0.0.1:1",
            "NATS_USER" => "agent-1",
            "NATS_PASSWORD" => "p",
            "SHARED_DIR" => "/shared",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn the_contract_is_enough() {
        let settings = Settings::from(get, vec![]).unwrap();
        assert_eq!(settings.command, ["/bin/sh"]);
        assert_eq!((settings.parallel, settings.timeout.as_secs()), (2, 600));
    }

    #[test]
    fn what_the_agent_alone_reads_is_taken_from_its_command() {
        let asked = std::cell::RefCell::new(Vec::new());
        let ask = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            get(name)
        };
        let settings = Settings::from(ask, vec![]).unwrap();
        let command = settings.start(OsStr::new("/bin/true"), &[]);
        let taken: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).collect();
        for name in asked.into_inner() {
            let shared = ["AGENT_ID", "SHARED_DIR"].contains(&name.as_str());
            let is_taken = taken.contains(&(OsStr::new(&name), None));
            assert_eq!(is_taken, !shared, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |name: &'static str, value: Option<&'static str>| {
            let get = move |n: &'static str| {
                if n == name { value.map(str::to_owned) } else { get(n) }
            };
            Settings::from(get, vec![]).err().map(|e| e.to_string()).unwrap_or_default()
        };
        for (name, value) in [
            ("AGENT_ID", None),
            ("AGENT_ID", Some("../x")),
            ("NATS_PASSWORD", None),
            ("FLOCK_TASK_PARALLEL", Some("0")),
            ("FLOCK_TASK_PARALLEL", Some("-1")),
            ("FLOCK_TASK_INPUT", Some("args")),
            ("FLOCK_TASK_KEEP", Some("0")),
            ("FLOCK_TASK_TIMEOUT", Some("10min")),
            ("FLOCK_TASK_OUTPUT_LIMIT", Some("99999999999999999999")),
        ] {
            let text = with(name, value);
            assert!(text.contains(name), "{name}={value:?}: {text:?}");
        }
    }
}
