//! What an agent can and cannot reach, in plain words, for `flockctl explain`.
//!
//! Every sentence stands on something that is in the Plan. A protection is claimed only if its
//! property is there, with the value that protects, for every systemd that flock supports.

use std::fmt::Write as _;

use super::promise::promises;
use crate::config::{Access, Egress};
use crate::names::{AgentId, Level};
use crate::plan::{Plan, Value};
use crate::text;
use crate::tools::words;

/// Says what the agent can reach, and what keeps it from the rest.
#[must_use]
pub fn explain(plan: &Plan) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}: level {}, {}", plan.agent, plan.level.number(), plan.level.word());
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = writeln!(out, "\n{title}");
        }
        for line in lines {
            let _ = writeln!(out, "  {line}");
        }
    };
    section("Who it is", who(plan));
    section("Tools", tools(plan));
    section("Files", files(plan));
    section("Network", network(plan));
    section("Bus", bus(plan));
    section("Other agents", others(plan));
    section("What it cannot do", promises(&plan.unit));
    section("What it may use up", limits(plan));
    section("When it ends", ending(plan));
    section("Loosened by the configuration", plan.loosened.clone());
    out
}

/// Its program and its user.
fn who(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(Value::Exec(commands)) = plan.unit.value("ExecStartEx") {
        lines.extend(commands.iter().map(|(_, argv, _)| format!("Program: {}", words(argv))));
    }
    lines.extend(work(plan).map(str::to_owned));
    let (name, uid) = (&plan.user.name, plan.user.uid);
    let whose = match plan.level {
        Level::Workspace => "all agents of level 0 share it",
        Level::Process => "no other agent has it",
    };
    lines.push(match plan.unit.value("User") {
        Some(Value::Str(user)) if user == name => format!("Unix user: {name} (uid {uid}); {whose}"),
        Some(Value::Str(user)) => format!("Unix user: {user}"),
        _ => "Unix user: root".to_owned(),
    });
    lines.push("Every user of this host can read this command and its plain variables.".to_owned());
    lines
}

/// How its command gets a task.
fn work(plan: &Plan) -> Option<&'static str> {
    let Some(Value::Strs(variables)) = plan.unit.value("Environment") else { return None };
    match variables.iter().find_map(|variable| variable.strip_prefix("FLOCK_TASK_INPUT="))? {
        "stdin" => Some("The command runs once for each task, with the text on standard input."),
        "argument" => Some(
            "The command runs once for each task, with the text as an argument: every user of this \
             host can read it meanwhile.",
        ),
        "json-lines" => {
            Some("The command runs all the time: a line of JSON for each task and each result.")
        }
        _ => None,
    }
}

/// What its command may start, and what is honest to say of it.
fn tools(plan: &Plan) -> Vec<String> {
    let Some(rules) = &plan.tools else { return Vec::new() };
    let mut lines = vec![
        "The kernel lets its command start its own program, and nothing else but:".to_owned(),
        "  stand-ins for the tools below, which ask flock-agent".to_owned(),
    ];
    lines.extend(rules.direct.iter().map(|path| format!("  {}, at any time", path.display())));
    for (name, tool) in &rules.tools {
        let bounds = format!(
            "at most {}, {} of output",
            text::span(tool.timeout),
            text::bytes(tool.output_limit)
        );
        lines.push(format!("{name}: runs {}; {bounds}", words(&tool.command)));
        for (action, shapes) in [("deny", &tool.deny), ("ask", &tool.ask), ("allow", &tool.allow)] {
            lines.extend(shapes.iter().map(|shape| format!("  {action:5}  {shape}")));
        }
        let what = if tool.has_shapes() { "anything else" } else { "any arguments" };
        lines.push(format!("  {:5}  {what}", tool.rest.to_string()));
    }
    if rules.asks() {
        lines.push(
            "What asks waits for flockctl approve or deny; without an answer it is denied."
                .to_owned(),
        );
    }
    lines.push(
        "A tool runs outside these rules: what it starts, and what its own configuration makes it \
         do, is not looked at."
            .to_owned(),
    );
    lines.push(
        "A program that can map code itself (an interpreter, the loader) can get around all this."
            .to_owned(),
    );
    lines.push(match plan.level {
        Level::Workspace => {
            "At level 0 all agents share a user: these rules are guard-rails, not a \
                             boundary."
                .to_owned()
        }
        Level::Process => "The boundary is the sandbox (user, root directory, network, secrets); \
                           these rules are guard-rails inside it."
            .to_owned(),
    });
    lines
}

/// What lies in its root directory.
fn files(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.unit.value("RootDirectory").is_none() {
        lines.push("It sees the host's own root directory.".to_owned());
    } else {
        lines.push("Its / is a directory of its own. Of the host it finds in it:".to_owned());
    }
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let word = match access {
            Access::ReadWrite => "read, write",
            Access::ReadOnly => "read only",
        };
        for bind in plan.root.binds.iter().filter(|bind| bind.access == access) {
            let (target, source) = (bind.target.display(), bind.source.display());
            let from = if bind.source == bind.target || bind.target.starts_with("/shared") {
                String::new()
            } else {
                format!(" (the host's {source})")
            };
            lines.push(format!("  {word:11}  {target}{from}"));
        }
    }
    for secret in &plan.root.secrets {
        let (path, source) = (secret.path.display(), secret.source.display());
        lines.push(format!("  {:11}  /{path}, a copy of {source}", "secret"));
    }
    if let Some(Value::Pairs(own)) = plan.unit.value("TemporaryFileSystem") {
        let own: Vec<&str> = own.iter().map(|(path, _)| path.as_str()).collect();
        let own: Vec<&str> = own.into_iter().filter(|path| *path != "/shared").collect();
        lines.push(format!("In memory, its own, gone when it ends: {}.", own.join(", ")));
    }
    lines.push(
        "Where it may read or write, the owner and mode of each file still count.".to_owned(),
    );
    if let Some(Value::Files(files)) = plan.unit.value("EnvironmentFiles") {
        let files: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        lines.push(format!("PID 1 sets variables for it from {}.", files.join(", ")));
    }
    lines
}

/// The bus, the exceptions, and the two walls around them.
fn network(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("It may connect to the bus at 127.0.0.1:{}.", plan.bus_port)];
    match &plan.egress {
        Egress::Bus => {}
        Egress::Hosts(hosts) => {
            for host in hosts {
                lines.push(format!("It may connect to {} port {} (TCP).", host.host, host.port));
            }
            lines.push("A name stands for the addresses that flock found for it.".to_owned());
        }
        Egress::Unrestricted => {
            lines
                .push("It may connect to anything this host can reach, inside and out.".to_owned());
            return lines;
        }
    }
    lines.push("The egress table of the kernel refuses its user everything else.".to_owned());
    if plan.level == Level::Workspace {
        let shared =
            "The table knows users: what it opens for one agent of level 0, it opens for all.";
        lines.push(shared.to_owned());
    }
    if denies_any(plan.unit.value("IPAddressDeny")) {
        lines.push("Its unit refuses it too, on its own (IPAddressDeny=any).".to_owned());
    }
    lines
}

/// Whether every IPv4 and IPv6 address is in the list.
fn denies_any(value: Option<&Value>) -> bool {
    let Some(Value::Addresses(list)) = value else { return false };
    let whole =
        |length: usize| list.iter().any(|(_, address, bits)| address.len() == length && *bits == 0);
    whole(4) && whole(16)
}

/// The contract of the bus with its own id in it, and with whom it talks.
fn bus(plan: &Plan) -> Vec<String> {
    let (id, bus) = (&plan.agent, &plan.bus);
    let mut lines = vec![
        "It has an account of its own; nats-server puts its id on whatever it sends.".to_owned(),
        format!(
            "  receives  tasks.* (tasks for it, for all, and its share of the queue), broadcast, \
             agent.{id}.control"
        ),
        format!("  sends     task.result, agent.{id}.events, agent.{id}.heartbeat, agent.{id}.ask"),
    ];
    for name in &bus.channels {
        lines.push(format!(
            "  channel   channel.{name} to speak, channel.{name}.* to hear; the last word of the subject \
             is who spoke"
        ));
    }
    for asked in &bus.may_request {
        lines.push(format!("  requests  agent.{asked}.requests: it may ask {asked}, who answers"));
    }
    if !bus.requesters.is_empty() {
        let askers: Vec<&str> = bus.requesters.iter().map(AgentId::as_str).collect();
        lines.push(format!("  answers   agent.{id}.requests.*: {} may ask it", askers.join(", ")));
    }
    lines.push("Nothing else can be subscribed to or published.".to_owned());
    let rate = match (bus.rate, plan.level) {
        (None, _) => return lines,
        (Some(rate), Level::Workspace) => {
            format!("all agents of level 0 together {} a second", text::bytes(rate))
        }
        (Some(rate), Level::Process) => format!("{} a second", text::bytes(rate)),
    };
    lines.push(format!(
        "It sends messages of at most {}, and {rate}: the kernel drops what is more.",
        text::bytes(bus.message)
    ));
    lines
}

/// What it sees of its neighbours, and they of it.
fn others(plan: &Plan) -> Vec<String> {
    let say = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    let mut lines: Vec<String> = match plan.level {
        Level::Workspace => say(&[
            "This is a workspace, not a boundary: other agents of level 0 run as the same user.",
            "Each can signal the other, and read its files, memory and bus password through /proc.",
        ]),
        Level::Process => say(&["Other agents run as other users: it cannot signal them."]),
    };
    let invisible = plan.unit.value("ProtectProc") == Some(&Value::Str("invisible".to_owned()));
    lines.push(if invisible {
        "It sees no process of another user.".to_owned()
    } else {
        "It sees every process of this host, with its command line.".to_owned()
    });
    let own = format!("/shared/agents/{}", plan.agent);
    let mut targets = plan.root.binds.iter().map(|bind| &bind.target);
    if targets.all(|target| target.starts_with(&own) || !target.starts_with("/shared/agents")) {
        lines.push("No other agent's directory is in its root.".to_owned());
    }
    if plan.unit.value("PrivateNetwork") != Some(&Value::Bool(true)) {
        lines.push(
            "It shares the host's network namespace: abstract Unix sockets, the host's and other \
             agents', are not fenced off."
                .to_owned(),
        );
    }
    if plan.tree.common == Access::ReadWrite {
        lines.push("In common, agents read and change each other's files.".to_owned());
    }
    lines
}

/// The limits that the unit sets, in the order in which people ask for them.
fn limits(plan: &Plan) -> Vec<String> {
    let number = |name| match plan.unit.value(name) {
        Some(Value::U64(number)) => Some(*number),
        _ => None,
    };
    let bytes = |number| if number == 0 { "none".to_owned() } else { text::bytes(number) };
    let mut lines = Vec::new();
    let mut say = |name, form: &dyn Fn(u64) -> String| lines.extend(number(name).map(form));
    say("CPUQuotaPerSecUSec", &|n| format!("CPU: {}% of one core", n / 10_000));
    say("MemoryMax", &|n| format!("memory: {}, its files in memory included", bytes(n)));
    say("MemorySwapMax", &|n| format!("swap: {}", bytes(n)));
    say("TasksMax", &|n| format!("processes and threads: {n}"));
    say("LimitNOFILE", &|n| format!("open files: {n} per process"));
    say("IOWeight", &|n| format!("share of disk time: {n} (100 is usual)"));
    lines.push(disk(plan));
    let mut say = |name, form: &dyn Fn(u64) -> String| lines.extend(number(name).map(form));
    say("RuntimeMaxUSec", &|n| match n {
        u64::MAX => "time: no limit".to_owned(),
        n => format!("time: {}, then it is ended", text::span(n / 1_000_000)),
    });
    lines
}

/// What it may keep on disk. The quota is its user's: it counts wherever a file lies.
fn disk(plan: &Plan) -> String {
    let bytes = plan.quota.bytes.map(text::bytes);
    let files = plan.quota.files.map(|number| format!("{number} files"));
    let quota: Vec<String> = bytes.into_iter().chain(files).collect();
    match quota.is_empty() {
        true => "disk: no limit".to_owned(),
        false => format!("disk: {} on each file system that it may write to", quota.join(" and ")),
    }
}

/// What PID 1 does when it ends.
fn ending(plan: &Plan) -> Vec<String> {
    let when = match plan.unit.value("Restart") {
        Some(Value::Str(policy)) if policy == "on-failure" => "It is started again when it fails",
        Some(Value::Str(policy)) if policy == "always" => "It is started again, however it ends",
        _ => return vec!["It is not started again.".to_owned()],
    };
    let (Some(Value::U32(burst)), Some(Value::U64(window))) =
        (plan.unit.value("StartLimitBurst"), plan.unit.value("StartLimitIntervalUSec"))
    else {
        return vec![format!("{when}.")];
    };
    let window = text::span(window / 1_000_000);
    vec![format!("{when}, by PID 1; after {burst} starts within {window} it stays failed.")]
}
