//! What a plan says, pinned: a change of the sandbox shows as a change of these files.
//!
//! `FLOCK_BLESS=1` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use flock::config;
use flock::names::AgentId;
use flock::plan::{Plan, plan, render};

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
