//! What PID 1 says of an agent, as plain data.

/// One line of PID 1's list of units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// `active`, `activating`, `deactivating`, `failed`, `inactive`, `reloading`.
    pub active: String,
    /// The service's own word: `running`, `exited`, `auto-restart`, `failed`, …
    pub sub: String,
    /// Whether a job (start, stop, restart) waits for this unit.
    pub job: bool,
}

impl Row {
    /// Whether the unit has ended for good with a failure: no restart is planned or queued.
    #[must_use]
    pub fn is_final_failure(&self) -> bool {
        self.active == "failed" && !self.job
    }

    /// Whether the processes ended without an error and the unit is kept so that this can be read.
    #[must_use]
    pub fn is_clean_end(&self) -> bool {
        self.active == "active" && self.sub == "exited" && !self.job
    }

    /// Whether the unit is up, and nobody asked to change that.
    #[must_use]
    pub fn is_settled_active(&self) -> bool {
        self.active == "active" && !self.job
    }
}

/// The transient unit's properties that `status` and the records of an end are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Names this start of the agent; hexadecimal, empty when there was none.
    pub invocation: String,
    /// systemd's verdict on the last end: `success`, `exit-code`, `signal`, `oom-kill`, …
    pub result: String,
    /// How the main process ended: one of the `CLD_` constants.
    pub exit_code: i32,
    /// Its exit status, or the signal's number.
    pub exit_status: i32,
    /// The main process, 0 when there is none.
    pub main_pid: u32,
    /// Restarts by PID 1 since the unit was started.
    pub restarts: u32,
    /// When the main process was forked, monotonic microseconds.
    pub forked_usec: u64,
    /// When the unit last became active, monotonic microseconds.
    pub active_usec: u64,
    /// When the unit last became active, microseconds since 1970.
    pub active_since_usec: u64,
    /// When the main process ended, monotonic microseconds.
    pub ended_usec: u64,
    /// The restart policy in systemd's words: `no`, `on-failure`, `always`.
    pub policy: String,
    /// Starts allowed within `window_usec`.
    pub burst: u32,
    /// The window of `burst`.
    pub window_usec: u64,
    /// The longest the agent may run.
    pub runtime_max_usec: Option<u64>,
    /// What it has and may have.
    pub usage: Usage,
    /// The Unix user it runs as.
    pub user: String,
    /// Its cgroup.
    pub cgroup: String,
    /// Whether the kernel holds its processes still.
    pub frozen: bool,
}

/// What an agent uses, and its limits. `None`: this host does not count it, or there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// The most it ever had in this start.
    pub memory_peak: Option<u64>,
    /// The limit of `memory`.
    pub memory_max: Option<u64>,
    /// CPU time in nanoseconds.
    pub cpu_nsec: Option<u64>,
    /// CPU microseconds per second.
    pub cpu_quota_usec: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// The limit of `tasks`.
    pub tasks_max: Option<u64>,
}

impl Facts {
    /// Whether the last start ended before the agent's program was executed.
    #[must_use]
    pub fn never_ran(&self) -> bool {
        self.forked_usec > 0 && self.active_usec < self.forked_usec
    }

    /// Whether PID 1 would have started it again, had it not started it too often already.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        let restarts = match self.policy.as_str() {
            "always" => true,
            "on-failure" => self.result != "success",
            _ => false,
        };
        self.result == "start-limit-hit"
            || (restarts && self.burst > 0 && self.restarts >= self.burst)
    }
}
