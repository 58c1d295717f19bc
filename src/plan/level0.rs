//! Level 0, the workspace: own directory, own view of the file system, limits, egress, lifecycle.
//!
//! Every level stands on this one. On its own it is no boundary: agents of level 0 share a user.

use std::time::Duration;

use crate::config::{Access, AgentConfig, Egress, Input, Mode, RestartPolicy};
use crate::names::{AgentId, LIB_DIR, Level};
use crate::plan::root::Bind;
use crate::plan::{Property, RootPlan, UserPlan, Value};
use crate::{spelled, tools};

/// `infinity` for systemd.
const NO_LIMIT: u64 = u64::MAX;
/// The mount flag of `BindPaths=`, with submounts.
const MS_REC: u64 = 16_384;
/// The calls with which a process gives up rights for good.
const LANDLOCK: [&str; 3] =
    ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"];
/// A temporary file system that holds mount points and nothing else.
pub(super) const CLOSED: &str = "ro,mode=0755,nosuid,nodev,size=64k";
/// `AF_INET` and `AF_INET6` in `IPAddress…=`.
const FAMILY: (i32, i32) = (2, 10);

/// Everything about the transient unit that holds at every level.
pub(super) fn properties(
    id: &AgentId,
    agent: &AgentConfig,
    user: &UserPlan,
    root: &RootPlan,
) -> Vec<Property> {
    let mut all = lifecycle(id, agent);
    all.extend(restart(agent));
    all.extend(command(id, agent));
    all.extend(identity(user));
    all.extend(view(agent, user, root));
    all.extend(limits(agent));
    all.extend(egress(agent));
    all.extend(log(id, agent));
    all
}

/// Where the unit stands among the others, and how it ends.
fn lifecycle(id: &AgentId, agent: &AgentConfig) -> Vec<Property> {
    vec![
        Property::new("Description", format!("flock agent {id} (level {})", agent.level.number())),
        Property::new("Slice", id.slice()),
        // The handle never names this unit: a reference from it would pin the name after a stop.
        Property::new("StopPropagatedFrom", vec![id.handle_unit()]),
        Property::new("After", ["flock-net.service", "flock-bus.service"]),
        // A failed unit stays loaded, so that its exit status can be read until the next launch.
        Property::new("CollectMode", "inactive"),
        Property::new("Type", "exec"),
        // The same for a clean exit, unless it is started again anyway.
        Property::new("RemainAfterExit", agent.restart.policy != RestartPolicy::Always),
        Property::new("NotifyAccess", "none"),
        Property::new("KillMode", "control-group"),
        Property::new("TimeoutStopUSec", usec(Duration::from_secs(20))),
        Property::new("RuntimeMaxUSec", agent.limits.runtime.map_or(NO_LIMIT, usec)),
    ]
}

/// Restarts are PID 1's: they go on while flockd is down.
fn restart(agent: &AgentConfig) -> Vec<Property> {
    let policy = match agent.restart.policy {
        RestartPolicy::Never => "no",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Always => "always",
    };
    vec![
        Property::new("Restart", policy),
        // What systemd could not set up (no such program, no such path) is not there a second
        // later either: see "process exit codes" in systemd.exec(5).
        Property::new("RestartPreventExitStatus", Value::Statuses((200..=243).collect(), vec![])),
        Property::new("RestartUSec", usec(agent.restart.delay)),
        // Before 254 the pause does not grow.
        Property::since(254, "RestartMode", "direct"),
        Property::since(254, "RestartSteps", 5u32),
        Property::since(254, "RestartMaxDelayUSec", usec(agent.restart.max_delay)),
        Property::new("StartLimitIntervalUSec", usec(agent.restart.window)),
        Property::new("StartLimitBurst", agent.restart.attempts),
    ]
}

/// What runs, with which variables. Nothing secret: every local user can read a unit's properties.
fn command(id: &AgentId, agent: &AgentConfig) -> Vec<Property> {
    let argv = match agent.mode {
        Mode::Service => agent.command.clone(),
        Mode::Task | Mode::JsonLines => {
            [format!("{LIB_DIR}/flock-agent")].into_iter().chain(agent.command.clone()).collect()
        }
    };
    let home = format!("/shared/agents/{id}");
    let mut environment = vec![
        format!("AGENT_ID={id}"),
        "SHARED_DIR=/shared".to_owned(),
        format!("HOME={home}"),
        "XDG_RUNTIME_DIR=/run/agent".to_owned(),
        "LANG=C.UTF-8".to_owned(),
    ];
    environment.extend(tasks(agent));
    if agent.tools.is_some() {
        environment.push(format!("{}=/{}", tools::RULES_VARIABLE, tools::RULES_FILE));
    }
    environment.extend(agent.environment.iter().map(|(name, value)| format!("{name}={value}")));
    // The identity comes last, so that no other file can put another one in its place.
    let mut files: Vec<_> = agent.environment_files.iter().map(|p| text(p)).collect();
    files.push(text(&id.identity_file()));
    vec![
        // Written down under this name it is lost on systemd before 255.
        Property::new("ExecStart", kept(&argv)).until(255),
        Property::since(
            255,
            "ExecStartEx",
            Value::Exec(vec![(argv[0].clone(), argv, vec!["no-env-expand".into()])]),
        ),
        Property::new("WorkingDirectory", home),
        Property::new("Environment", environment),
        Property::new(
            "EnvironmentFiles",
            Value::Files(files.into_iter().map(|f| (f, false)).collect()),
        ),
    ]
}

/// The command as systemd before 255 keeps it over a daemon-reload.
fn kept(argv: &[String]) -> Value {
    let argv = match spelled::is_needed(argv) {
        false => argv.to_vec(),
        true => {
            let reader = [format!("{LIB_DIR}/flock-agent"), spelled::ROLE.to_owned()];
            reader.into_iter().chain(argv.iter().map(|word| spelled::spell(word))).collect()
        }
    };
    Value::Command(vec![(argv[0].clone(), argv, false)])
}

/// What flock-agent is told of the agent's tasks.
fn tasks(agent: &AgentConfig) -> Vec<String> {
    let task = &agent.task;
    let input = match (agent.mode, task.input) {
        (Mode::Service, _) => return Vec::new(),
        (Mode::JsonLines, _) => "json-lines",
        (Mode::Task, Input::Stdin) => "stdin",
        (Mode::Task, Input::Argument) => "argument",
    };
    vec![
        format!("FLOCK_TASK_INPUT={input}"),
        format!("FLOCK_TASK_TIMEOUT={}", task.timeout.as_secs()),
        format!("FLOCK_TASK_OUTPUT_LIMIT={}", task.output_limit),
        format!("FLOCK_TASK_PARALLEL={}", task.parallel),
        format!("FLOCK_TASK_KEEP={}", task.keep),
    ]
}

fn identity(user: &UserPlan) -> Vec<Property> {
    vec![
        Property::new("User", user.name.clone()),
        Property::new("Group", user.name.clone()),
        Property::new("NoNewPrivileges", true),
        Property::new("UMask", 0o077u32),
        Property::new("RemoveIPC", true),
    ]
}

/// The agent's file system: its own skeleton as `/`, and what is bound into it.
///
/// No socket of the host is in it: `/run` is empty. `ProtectSystem=strict` stands at level 1.
///
/// The temporary directories are file systems of the agent's own with a size and a number of
/// files. `PrivateTmp=` and `RuntimeDirectory=` would put them on the host's `/tmp` and `/run`,
/// where one agent could use up what PID 1 and every other agent need.
fn view(agent: &AgentConfig, user: &UserPlan, root: &RootPlan) -> Vec<Property> {
    let of = |access| {
        let wanted = move |bind: &&Bind| bind.access == access;
        let form = |b: &Bind| (text(&b.source), text(&b.target), b.optional, MS_REC);
        Value::Binds(root.binds.iter().filter(wanted).map(form).collect())
    };
    let scratch = format!("mode=1777,nosuid,nodev,size={},nr_inodes=16k", agent.limits.tmp);
    let own = format!("mode=0700,uid={0},gid={0},nosuid,nodev,size=4m,nr_inodes=1k", user.uid);
    let tmpfs = |path: &str, options: &str| (path.to_owned(), options.to_owned());
    vec![
        Property::new("RootDirectory", text(&root.dir)),
        Property::new("MountAPIVFS", true),
        Property::new("BindReadOnlyPaths", of(Access::ReadOnly)),
        Property::new("BindPaths", of(Access::ReadWrite)),
        Property::new(
            "TemporaryFileSystem",
            Value::Pairs(vec![
                tmpfs("/shared", CLOSED),
                tmpfs("/tmp", &scratch),
                tmpfs("/var/tmp", &scratch),
                tmpfs("/dev/shm", &format!("{scratch},noexec")),
                tmpfs("/run/agent", &own),
            ]),
        ),
        // The one that these make themselves is open to everybody and has no size.
        Property::new("TemporaryFileSystem", Value::Pairs(vec![tmpfs("/run", CLOSED)])).until(257),
        // 257 binds the journal's sockets into a RootDirectory=; standard output works without.
        Property::since(257, "BindLogSockets", false),
    ]
}

fn limits(agent: &AgentConfig) -> Vec<Property> {
    let limits = &agent.limits;
    let memory_policy = match agent.mode {
        // One task that runs out of memory fails alone; flock-agent reports it and lives on.
        Mode::Task | Mode::JsonLines => "continue",
        Mode::Service => "stop",
    };
    vec![
        Property::new("CPUAccounting", true),
        Property::new("CPUQuotaPerSecUSec", limits.cpu_usec_per_sec),
        Property::new("MemoryAccounting", true),
        Property::new("MemoryMax", limits.memory),
        Property::new("MemorySwapMax", limits.swap),
        Property::new("TasksAccounting", true),
        Property::new("TasksMax", limits.tasks),
        Property::new("IOAccounting", true),
        Property::new("IOWeight", limits.io_weight),
        Property::new("LimitNOFILE", limits.open_files),
        Property::new("LimitCORE", 0u64),
        Property::new("OOMPolicy", memory_policy),
        // Under pressure the kernel takes an agent before the bus, flockd or a login.
        Property::new("OOMScoreAdjust", 500i32),
    ]
}

/// The second wall behind the nftables table, and the ways around both closed: other socket
/// families (`AF_VSOCK` reaches the hypervisor), and io_uring, which opens sockets past seccomp.
fn egress(agent: &AgentConfig) -> Vec<Property> {
    let mut all = vec![
        Property::new("RestrictAddressFamilies", Value::List(true, families(agent))),
        Property::new("SystemCallArchitectures", ["native"]),
        Property::new("SystemCallErrorNumber", 1i32),
        Property::new("IPAccounting", true),
    ];
    all.extend(syscall_filter(agent));
    let any = vec![(FAMILY.0, vec![0; 4], 0), (FAMILY.1, vec![0; 16], 0)];
    if agent.egress == Egress::Unrestricted {
        // flock-agents.slice denies; what is allowed here wins over it.
        all.push(Property::new("IPAddressAllow", Value::Addresses(any)));
    } else {
        all.push(Property::new("IPAddressDeny", Value::Addresses(any)));
        let bus = vec![(FAMILY.0, vec![127, 0, 0, 1], 32)];
        all.push(Property::new("IPAddressAllow", Value::Addresses(bus)));
    }
    all
}

/// The first list sets the meaning of those after it, so both levels are written here.
fn syscall_filter(agent: &AgentConfig) -> Vec<Property> {
    let list = |allow, calls: &[&str]| {
        let calls = calls.iter().map(|&c| c.to_owned()).collect();
        Property::new("SystemCallFilter", Value::List(allow, calls))
    };
    let around_the_fence = ["io_uring_setup", "io_uring_enter", "io_uring_register"];
    let mut lists = match agent.level {
        Level::Workspace => vec![list(false, &around_the_fence)],
        Level::Process => vec![
            list(true, &["@system-service"]),
            list(
                false,
                &[&around_the_fence[..], &["userfaultfd", "@keyring", "@privileged"]].concat(),
            ),
        ],
    };
    if agent.level >= Level::Process && agent.tools.is_some() {
        // With these flock-agent confines the command; @system-service of 252 lacks them.
        lists.push(list(true, &LANDLOCK));
    }
    lists
}

fn families(agent: &AgentConfig) -> Vec<String> {
    let mut families = vec!["AF_UNIX", "AF_INET"];
    if agent.egress != Egress::Bus {
        families.push("AF_INET6");
    }
    if agent.egress == Egress::Unrestricted {
        // getaddrinfo(3) asks for the interfaces before it asks a name server.
        families.push("AF_NETLINK");
    }
    families.into_iter().map(str::to_owned).collect()
}

fn log(id: &AgentId, agent: &AgentConfig) -> Vec<Property> {
    vec![
        Property::new("StandardInput", "null"),
        Property::new("StandardOutput", "journal"),
        Property::new("StandardError", "journal"),
        // What a command writes is text: `<0>` before it would be an emergency, which journald
        // writes on every terminal. flock-agent speaks to the journal for its command.
        Property::new("SyslogLevelPrefix", agent.mode != Mode::Service),
        Property::new("SyslogIdentifier", format!("flock-{id}")),
        Property::new("LogExtraFields", Value::Fields(vec![format!("FLOCK_AGENT={id}")])),
        Property::new("LogRateLimitIntervalUSec", usec(Duration::from_secs(30))),
        Property::new("LogRateLimitBurst", 10_000u32),
    ]
}

fn usec(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(NO_LIMIT)
}

/// Paths are checked to be plain text when the configuration is read.
fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
