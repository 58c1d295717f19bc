//! Golden tests of everything that `flockctl status` prints.
//!
//! `FLOCK_UPDATE_GOLDEN=1 cargo test` writes the files anew; the difference is for review.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{
    Access, AgentConfig, BusConfig, Config, Egress, HistoryConfig, HostConfig, HostPort, Input,
    Limits, Mode, Need, Restart, RestartPolicy, Sync, TaskConfig, VerifyConfig,
};
use crate::history::Counts;
use crate::names::{AgentId, Level, UidBlock};
use crate::status::boundary::Standing;
use crate::status::facts::{Facts, Row, Usage};
use crate::status::health::{Part, View};
use crate::status::report::{Report, Sources, report};
use crate::status::state::Seen;
use crate::status::{detail, table};

fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FLOCK_UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, wanted, "{} differs", path.display());
}

fn id(text: &str) -> AgentId {
    AgentId::parse(text).unwrap()
}

fn agent(level: Level, egress: Egress, needs: Vec<Need>) -> AgentConfig {
    AgentConfig {
        may_request: [].into(),
        level,
        command: vec!["/bin/sh".into()],
        mode: Mode::Task,
        task: TaskConfig {
            timeout: Duration::from_secs(600),
            output_limit: 1 << 20,
            parallel: 2,
            input: Input::Stdin,
            keep: 100,
        },
        environment: BTreeMap::new(),
        environment_files: Vec::new(),
        secret_files: BTreeMap::new(),
        limits: Limits {
            message: 1 << 20,
            disk: None,
            files: None,
            cpu_usec_per_sec: 500_000,
            memory: 256 << 20,
            swap: 0,
            tasks: 50,
            io_weight: 100,
            open_files: 1024,
            runtime: None,
            tmp: 64 << 20,
        },
        restart: Restart {
            policy: RestartPolicy::OnFailure,
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            attempts: 5,
            window: Duration::from_secs(60),
        },
        egress,
        common: Access::ReadOnly,
        read_only_paths: Vec::new(),
        read_write_paths: Vec::new(),
        needs,
        tools: None,
    }
}

fn config() -> Config {
    let hosts = Egress::Hosts(vec![HostPort { host: "api.example.com".into(), port: 443 }]);
    Config {
        file: None,
        channels: [].into(),
        host: HostConfig { uid_block: UidBlock::DEFAULT, allow_unenforced_limits: false },
        bus: BusConfig {
            port: 14222,
            server: "/usr/sbin/nats-server".into(),
            sync: Sync::Always,
            rate: None,
        },
        history: HistoryConfig::default(),
        verify: VerifyConfig::default(),
        agents: BTreeMap::from([
            (id("agent-1"), agent(Level::Process, hosts, vec![Need::Jit])),
            (id("agent-2"), agent(Level::Workspace, Egress::Unrestricted, vec![])),
            (id("agent-3"), agent(Level::Process, Egress::Bus, vec![])),
            (id("agent-4"), agent(Level::Process, Egress::Bus, vec![])),
            (id("agent-5"), agent(Level::Process, Egress::Bus, vec![])),
        ]),
    }
}

fn facts(user: &str) -> Facts {
    Facts {
        invocation: "0123456789abcdef0123456789abcdef".into(),
        result: "success".into(),
        main_pid: 4242,
        forked_usec: 1,
        active_usec: 2,
        active_since_usec: 1_700_000_000_000_000,
        policy: "on-failure".into(),
        burst: 5,
        window_usec: 60_000_000,
        user: user.into(),
        cgroup: format!("/flock.slice/{user}"),
        usage: Usage {
            memory: Some(12 << 20),
            memory_peak: Some(30 << 20),
            memory_max: Some(256 << 20),
            cpu_nsec: Some(3_210_000_000),
            cpu_quota_usec: Some(500_000),
            tasks: Some(7),
            tasks_max: Some(50),
        },
        ..Facts::default()
    }
}

fn seen(active: &str, sub: &str, facts: Facts) -> Seen {
    let row = |active: &str, sub: &str| Row { active: active.into(), sub: sub.into(), job: false };
    let handle = Some(row("active", "exited"));
    Seen { unit: Some((row(active, sub), facts)), handle, failed: None, last: None }
}

/// Five agents in five states, and one that is no longer configured.
fn agents() -> BTreeMap<AgentId, Seen> {
    let failed = Facts {
        result: "oom-kill".into(),
        exit_code: 2,
        exit_status: 9,
        restarts: 5,
        main_pid: 0,
        usage: Usage { memory: None, tasks: None, ..facts("x").usage },
        ..facts("flock-agent-3")
    };
    let looping = Facts {
        result: "exit-code".into(),
        exit_code: 1,
        exit_status: 7,
        restarts: 3,
        main_pid: 0,
        ..facts("flock-agent-4")
    };
    // Before the installed flock-agent was put in its place.
    let early = Facts { active_since_usec: 1_699_999_980_000_000, ..facts("flock-workspace") };
    BTreeMap::from([
        (id("agent-1"), seen("active", "running", facts("flock-agent-1"))),
        (id("agent-2"), seen("active", "running", early)),
        (id("agent-3"), seen("failed", "failed", failed)),
        (id("agent-4"), seen("activating", "auto-restart", looping)),
        (id("agent-5"), Seen::default()),
        (id("old"), seen("active", "exited", facts("flock-old"))),
    ])
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_007_800).unwrap()
}

fn view() -> View {
    View {
        version: "0.1.0".into(),
        since: now(),
        bus: Part::fine(),
        egress: Part::fine(),
        systemd: Part::fine(),
        config: Part::fine(),
        asks: 2,
        boundary: BTreeMap::from([(
            id("agent-2"),
            Standing {
                held: 160,
                violations: vec!["write it [file.write] (agent-1): written\u{1b}[2J".into()],
                done: Some("frozen (systemctl thaw flock-agent@agent-2.service)".into()),
                ..Standing::default()
            },
        )]),
        measuring: Part::fine(),
        history: Part::fine(),
        tasks: Some(Counts { queued: 3, running: 1, failed_last_day: 2 }),
        heartbeats: BTreeMap::from([
            (id("agent-1"), Timestamp::from_second(1_700_007_788).unwrap()),
            (id("agent-2"), Timestamp::from_second(1_700_007_000).unwrap()),
        ]),
    }
}

fn made(view: Option<&View>, missing: &[&'static str]) -> Report {
    report(&Sources {
        config: Some(&config()),
        unread: None,
        seen: &agents(),
        enabled: &BTreeSet::from([id("agent-1")]),
        view: view.ok_or("flockd is not running (the agents do not need it)"),
        missing_controllers: missing,
        unheld: &BTreeMap::from([(id("agent-2"), "limits.disk: no quotas".to_owned())]),
        // Between the start of agent-2 and of the others.
        program_since: Timestamp::from_second(1_699_999_990).ok(),
        now: now(),
    })
}

#[test]
fn the_table_shows_states_reasons_and_warnings() {
    check("status-table.txt", &table::render(&made(Some(&view()), &[])));
}

#[test]
fn without_flockd_and_controllers_the_table_says_so() {
    check("status-table-bare.txt", &table::render(&made(None, &["memory", "pids"])));
}

#[test]
fn the_json_form_is_stable() {
    let json = serde_json::to_string_pretty(&made(Some(&view()), &[])).unwrap() + "\n";
    check("status.json", &json);
}

#[test]
fn one_agent_is_shown_in_full() {
    let report = made(Some(&view()), &[]);
    let log = ["2023-11-14 22:13:20 info  ready".to_owned()];
    check("status-detail.txt", &detail::render(&report, &report.agents[0], &log));
}

#[test]
fn a_hostile_reason_cannot_break_the_table() {
    let mut report = made(Some(&view()), &[]);
    report.agents[2].reason = Some("\x1b]52;c;eA==\x07\nagent-9 running".into());
    let text = table::render(&report);
    assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("agent-9")).count(), 0);
}
