//! `[defaults]` under an agent's own keys: tables merge per key, lists are replaced whole.

use std::path::PathBuf;
use std::time::Duration;

use super::cite::Placed;
use super::part::{LimitsPart, Part, RestartPart, TaskPart};
use super::tools::ToolsPart;
use super::{Access, AgentConfig, Egress, Input, Limits, Mode, Restart, RestartPolicy, TaskConfig};
use crate::names::Level;

const MIB: u64 = 1 << 20;
const MAX_DELAY: Duration = Duration::from_secs(30);

impl Part {
    /// This part, completed from `defaults`.
    pub(super) fn over(self, defaults: &Self) -> Self {
        let base = defaults.clone();
        let mut environment = base.environment;
        environment.extend(self.environment);
        let mut secret_files = base.secret_files;
        secret_files.extend(self.secret_files);
        Self {
            level: self.level.or(base.level),
            command: self.command.or(base.command),
            mode: self.mode.or(base.mode),
            task: self.task.over(base.task),
            task_at: self.task_at,
            environment,
            environment_files: self.environment_files.or(base.environment_files),
            secret_files,
            limits: self.limits.over(base.limits),
            restart: self.restart.over(base.restart),
            egress: self.egress.or(base.egress),
            common: self.common.or(base.common),
            may_request: self.may_request.or(base.may_request),
            read_only_paths: self.read_only_paths.or(base.read_only_paths),
            read_write_paths: self.read_write_paths.or(base.read_write_paths),
            needs: self.needs.or(base.needs),
            tools: tools(self.tools, base.tools),
            bad: &self.bad | &base.bad,
        }
    }

    /// The agent, with flock's own defaults for what nobody wrote.
    pub(super) fn config(&self) -> AgentConfig {
        let paths = |list: &Option<Vec<Placed<PathBuf>>>| {
            list.iter().flatten().map(|path| path.value.clone()).collect()
        };
        let secret = |(name, file): (&String, &Placed<PathBuf>)| (name.clone(), file.value.clone());
        AgentConfig {
            level: self.level.unwrap_or(Level::Process),
            command: self.command.as_ref().map(|words| words.value.clone()).unwrap_or_default(),
            mode: self.mode.unwrap_or(Mode::Task),
            task: self.task.config(),
            environment: self.environment.clone(),
            environment_files: paths(&self.environment_files),
            secret_files: self.secret_files.iter().map(secret).collect(),
            limits: self.limits.config(),
            restart: self.restart.config(),
            egress: self.egress.clone().unwrap_or(Egress::Bus),
            common: self.common.unwrap_or(Access::ReadOnly),
            may_request: self.may_request.iter().flatten().map(|id| id.value.clone()).collect(),
            read_only_paths: paths(&self.read_only_paths),
            read_write_paths: paths(&self.read_write_paths),
            needs: self.needs.clone().unwrap_or_default(),
            tools: self.tools.as_ref().map(|tools| tools.value.config()),
        }
    }
}

fn tools(
    own: Option<Placed<ToolsPart>>,
    base: Option<Placed<ToolsPart>>,
) -> Option<Placed<ToolsPart>> {
    match (own, base) {
        (Some(own), Some(base)) => Some(Placed { value: own.value.over(base.value), at: own.at }),
        (own, base) => own.or(base),
    }
}

impl TaskPart {
    fn over(self, base: Self) -> Self {
        Self {
            timeout: self.timeout.or(base.timeout),
            output_limit: self.output_limit.or(base.output_limit),
            parallel: self.parallel.or(base.parallel),
            input: self.input.or(base.input),
            input_at: self.input_at,
            keep: self.keep.or(base.keep),
        }
    }

    fn config(&self) -> TaskConfig {
        TaskConfig {
            timeout: self.timeout.unwrap_or(Duration::from_secs(600)),
            output_limit: self.output_limit.unwrap_or(MIB),
            parallel: self.parallel.unwrap_or(2),
            input: self.input.unwrap_or(Input::Stdin),
            keep: self.keep.unwrap_or(100),
        }
    }
}

impl LimitsPart {
    fn over(self, base: Self) -> Self {
        Self {
            cpu: self.cpu.or(base.cpu),
            memory: self.memory.or(base.memory),
            swap: self.swap.or(base.swap),
            tasks: self.tasks.or(base.tasks),
            io_weight: self.io_weight.or(base.io_weight),
            open_files: self.open_files.or(base.open_files),
            runtime: self.runtime.or(base.runtime),
            tmp: self.tmp.or(base.tmp),
            message: self.message.or(base.message),
            disk: self.disk.or(base.disk),
            files: self.files.or(base.files),
        }
    }

    fn config(&self) -> Limits {
        Limits {
            cpu_usec_per_sec: self.cpu.unwrap_or(500_000),
            memory: self.memory.unwrap_or(256 * MIB),
            swap: self.swap.unwrap_or(0),
            tasks: self.tasks.unwrap_or(50),
            io_weight: self.io_weight.unwrap_or(100),
            open_files: self.open_files.unwrap_or(1024),
            runtime: self.runtime.unwrap_or(None),
            tmp: self.tmp.unwrap_or(64 * MIB),
            message: self.message.unwrap_or(MIB),
            disk: self.disk.as_ref().and_then(|disk| disk.value),
            files: self.files.as_ref().and_then(|files| files.value),
        }
    }
}

impl RestartPart {
    fn over(self, base: Self) -> Self {
        Self {
            policy: self.policy.or(base.policy),
            delay: self.delay.or(base.delay),
            max_delay: self.max_delay.or(base.max_delay),
            attempts: self.attempts.or(base.attempts),
            window: self.window.or(base.window),
        }
    }

    fn config(&self) -> Restart {
        let delay = self.delay.as_ref().map_or(Duration::from_secs(1), |delay| delay.value);
        // Whoever wrote only a long first pause did not mean a shorter longest one.
        let max_delay = self.max_delay.as_ref().map_or(MAX_DELAY.max(delay), |max| max.value);
        Restart {
            policy: self.policy.unwrap_or(RestartPolicy::OnFailure),
            delay,
            max_delay,
            attempts: self.attempts.unwrap_or(5),
            window: self.window.unwrap_or(Duration::from_secs(60)),
        }
    }
}
