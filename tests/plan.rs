//! What a plan says, pinned: a change of the sandbox shows as a change of these files.
//!
//! `FLOCK_BLESS=1` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use flock::config;
use flock::names::AgentId;
use flock::plan::{Plan, Value, plan, render};

fn plan_of(toml: &str) -> Plan {
    let config = config::parse(&[(PathBuf::from("flock.toml"), toml.to_owned())]).unwrap();
    let id = AgentId::parse("agent-1").unwrap();
    plan(&config, &BTreeMap::from([(id.clone(), 65_537)]), &id).unwrap()
}

const PLAIN: &str = "[agents.agent-1]\ncommand = [\"/bin/sh\"]\n";
const WORKSPACE: &str = "[agents.agent-1]\nlevel = 0\ncommand = [\"/bin/sh\"]\n";
const LOOSENED: &str = r#"
[agents.agent-1]
mode = "service"
command = ["/opt/mine/agent", "--fast"]
egress = "unrestricted"
common = "read-write"
needs = ["jit"]
read-only-paths = ["/opt/mine"]
read-write-paths = ["/srv/data"]
environment-files = ["/etc/flock/secrets/a.env"]
secret-files = { key = "/etc/flock/secrets/key" }
restart = { policy = "always" }
may-request = ["critic"]
limits = { message = "64KiB" }
[agents.critic]
command = ["/bin/sh"]
may-request = ["agent-1"]
[channels.review]
members = ["agent-1", "critic"]
[bus]
rate = "unlimited"
"#;

const TOOLS: &str = r#"
[agents.agent-1]
command = ["/usr/bin/python3", "/opt/a.py"]
[agents.agent-1.tools]
direct = ["/bin/sh"]
[agents.agent-1.tools.git]
command = ["/usr/bin/git", "--no-pager"]
allow = [["status"], ["log", "-**"]]
ask = [["push", "origin", "*"]]
deny = [["push", "origin", "main"]]
[agents.agent-1.tools.make]
command = ["/usr/bin/make"]
timeout = "10min"
"#;

#[test]
fn plans_are_as_pinned() {
    for (name, toml) in
        [("level-1", PLAIN), ("level-0", WORKSPACE), ("loosened", LOOSENED), ("tools", TOOLS)]
    {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/plan-{name}.txt"));
        let found = render(&plan_of(toml));
        if std::env::var_os("FLOCK_BLESS").is_some() {
            fs::write(&file, &found).unwrap();
        }
        let wanted = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(found, wanted, "{}: FLOCK_BLESS=1 writes it anew", file.display());
    }
}

#[test]
fn each_level_contains_the_one_below() {
    // The filter of level 1 allows a list instead of denying one, and says so in its golden file.
    let of = |toml| -> BTreeSet<String> {
        let properties = plan_of(toml).unit.properties;
        let kept = properties.into_iter().filter(|p| {
            !matches!(
                p.name,
                "SystemCallFilter" | "Description" | "User" | "Group" | "TemporaryFileSystem"
            )
        });
        kept.map(|p| format!("{p:?}")).collect()
    };
    let (workspace, process) = (of(WORKSPACE), of(PLAIN));
    let lost: Vec<_> = workspace.difference(&process).collect();
    assert!(lost.is_empty(), "level 1 lacks {lost:?}");
    assert!(process.len() > workspace.len() + 15);
}

/// Name, D-Bus type, and the releases that take the property in StartTransientUnit.
fn known_properties() -> BTreeMap<String, (String, Vec<u16>)> {
    let text = include_str!("golden/systemd-properties.txt");
    let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split(' ');
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        (name.to_owned(), (kind.to_owned(), words.filter_map(|word| word.parse().ok()).collect()))
    });
    rows.collect()
}

/// The D-Bus type that a value is sent with.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "b",
        Value::I32(_) => "i",
        Value::U32(_) => "u",
        Value::U64(_) => "t",
        Value::Str(_) => "s",
        Value::Strs(_) => "as",
        Value::List(..) => "(bas)",
        Value::Statuses(..) => "(aiai)",
        Value::Pairs(_) => "a(ss)",
        Value::Files(_) => "a(sb)",
        Value::Binds(_) => "a(ssbt)",
        Value::Addresses(_) => "a(iayu)",
        Value::Exec(_) => "a(sasas)",
        Value::Command(_) => "a(sasb)",
        Value::Fields(_) => "aay",
    }
}

/// One name that a release does not know fails the whole start, so each release must be sent only
/// what it takes, in the form in which it takes it.
#[test]
fn every_release_is_sent_only_what_it_takes() {
    let known = known_properties();
    let mut sent = BTreeMap::from([(252, 0), (255, 0), (257, 0)]);
    for toml in [PLAIN, WORKSPACE, LOOSENED, TOOLS] {
        for (release, count) in &mut sent {
            for property in plan_of(toml).unit.properties.iter().filter(|p| p.is_for(*release)) {
                let (form, takers) = known.get(property.name).unwrap_or_else(|| {
                    panic!("{}: not in tests/golden/systemd-properties.txt", property.name)
                });
                assert!(takers.contains(release), "{release} does not take {}", property.name);
                assert_eq!(kind(&property.value), form, "{}", property.name);
                *count += 1;
            }
        }
    }
    // A newer release is sent more, or it would be given less than it can hold.
    assert!(sent[&252] > 200 && sent[&255] > sent[&252], "{sent:?}");
}

#[test]
fn the_rules_lie_where_the_agent_reads_them_and_cannot_write() {
    let plan = plan_of(TOOLS);
    let text = &plan.root.files[Path::new("etc/flock/tools.json")];
    let rules: flock::tools::Rules = serde_json::from_str(text).unwrap();
    assert_eq!(Some(rules), plan.tools);
    assert!(!plan_of(PLAIN).root.files.contains_key(Path::new("etc/flock/tools.json")));
}

#[test]
fn no_secret_stands_in_a_plan() {
    let plan = plan_of(LOOSENED);
    let text = format!("{:?}", plan.unit.properties);
    assert!(!text.contains("PASSWORD"), "{text}");
    assert!(text.contains("/var/lib/flock/identity/agent-1.env"));
}

#[test]
fn the_identity_is_read_after_every_other_file() {
    let rendered = render(&plan_of(LOOSENED));
    let line = rendered.lines().find(|l| l.trim_start().starts_with("EnvironmentFiles=")).unwrap();
    assert!(line.ends_with("/var/lib/flock/identity/agent-1.env"), "{line}");
}
