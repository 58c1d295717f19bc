//! The verbs that read and write the configuration: check, explain, agent add, agent remove.
//!
//! `FLOCK_BLESS=1 cargo test --test cli_config` writes the golden texts anew.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use flock::config::{self, Config};
use flock::names::AgentId;
use flock::plan::{Plan, Property, Uids, Value, explain, plan};

/// A folder with this main file and no other.
fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    write(&folder, "flock.toml", text);
    folder
}

fn write(folder: &tempfile::TempDir, name: &str, text: &str) {
    let path = folder.path().join(name);
    let parent = path.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
}

/// Runs flockctl on the folder's configuration: exit code, standard output, standard error. The
/// folder's name, which is another each time, is cut out.
fn flockctl(folder: &tempfile::TempDir, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("flockctl").unwrap();
    command.arg("--config").arg(folder.path().join("flock.toml")).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| {
        let prefix = format!("{}/", folder.path().display());
        String::from_utf8(bytes).unwrap().replace(&prefix, "")
    };
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const GOOD: &str = "[defaults]\ncommand = [\"/bin/sh\"]\n";

#[test]
fn check_says_what_each_agent_is() {
    let folder = folder(
        r#"
        bus.server = "/bin/sh"
        [defaults]
        command = ["/bin/sh"]
        [agents.agent-1]
        [agents.agent-2]
        level = 0
        egress = "unrestricted"
        [agents.long-name]
        egress = ["api.example.com:443", "[2001:db8::1]:80"]
        needs = ["jit"]
        "#,
    );
    let (code, out, error) = flockctl(&folder, &["check"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(
        out,
        "ok: 3 agents\n  \
           agent-1    level 1, process isolation; egress: the bus only\n  \
           agent-2    level 0, workspace (not a security boundary); egress: unrestricted\n  \
           long-name  level 1, process isolation; egress: the bus, api.example.com:443, [2001:db8::1]:80\n\
         warning: agent-2: egress is unrestricted: it may connect to anything\n\
         warning: long-name: jit: memory may be writable and executable\n\
         warning: agent-2: level 0 is no security boundary: agents of it share one user\n"
    );
}

#[test]
fn check_warns_of_what_is_missing_on_this_host() {
    let folder = folder(
        r#"
        [host]
        uid-block = "1000-1100"
        unenforced-limits = "allow"
        [bus]
        server = "/nonexistent/nats-server"
        [agents.a]
        command = ["/usr/bin/no-such-program"]
        environment-files = ["/nonexistent/a.env"]
        secret-files = { key = "/nonexistent/key" }
        read-only-paths = ["/nonexistent/model"]
        [agents.b]
        command = ["/usr/share"]
        [agents.c]
        command = ["/etc/fonts/no-program.conf"]
        read-only-paths = ["/etc/fonts"]
        [agents.d]
        command = ["/shared/agents/d/run.sh"]
        "#,
    );
    let (code, out, _) = flockctl(&folder, &["check"]);
    assert_eq!(code, 0);
    for line in [
        "warning: host.uid-block 1000-1100 overlaps 1000-60705, from which people's accounts are taken",
        "warning: host.unenforced-limits: agents run without the limits that this host lacks",
        "warning: bus.server: /nonexistent/nats-server does not exist",
        "warning: a: /usr/bin/no-such-program does not exist",
        "warning: a: /nonexistent/a.env does not exist",
        "warning: a: /nonexistent/key does not exist",
        "warning: a: /nonexistent/model does not exist",
        "warning: b: /usr/share is a directory, not a program",
    ] {
        assert!(out.lines().any(|found| found == line), "{line:?} not in\n{out}");
    }
    assert!(!out.contains("run.sh"), "what lies in the shared tree is the agent's: {out}");
}

#[test]
fn check_names_a_file_on_the_command_line() {
    let folder = folder(GOOD);
    write(&folder, "other/flock.toml", "[agents.x]\nlevel = 2\n");
    let other = folder.path().join("other/flock.toml");
    let (code, out, error) = flockctl(&folder, &["check", other.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (78, ""));
    let expected = "\
flockctl: the configuration has 2 faults:
other/flock.toml:1:9: agent x has no command
  1 | [agents.x]
    |         ^ command = [\"/usr/bin/program\", \"argument\"] here or in [defaults]
other/flock.toml:2:9: agents.x.level: level 2 (container) is not in this version of flock
  2 | level = 2
    |         ^ 0 (workspace, no security boundary) or 1 (process isolation)
";
    assert_eq!(error, expected);
}

#[test]
fn check_says_what_is_wrong_with_the_installed_file() {
    // The default path, and no installation needed: this one is not there, or it is valid.
    let output = Command::cargo_bin("flockctl").unwrap().arg("check").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    if !Path::new("/etc/flock").exists() {
        assert_eq!(output.status.code(), Some(78));
        assert!(error.contains("/etc/flock: there is no such file or directory"), "{error}");
    }
}

/// What the package installs passes, and so does everything that is commented out in it.
#[test]
fn the_shipped_configuration_is_valid_with_and_without_its_comments() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/flock.toml");
    let text = fs::read_to_string(path).unwrap();
    let shipped = parse(&text);
    let ids: Vec<&str> = shipped.agents.keys().map(AgentId::as_str).collect();
    assert_eq!(ids, ["agent-1", "agent-2", "agent-3"]);
    let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line != "#";
    let all: String = text
        .lines()
        .map(|line| if is_setting(line) { &line[1..] } else { line }.to_owned() + "\n")
        .collect();
    let spoken = parse(&all);
    assert_eq!((&spoken.host, &spoken.bus), (&shipped.host, &shipped.bus), "defaults as they are");
    for id in shipped.agents.keys() {
        assert_eq!(spoken.agents[id], shipped.agents[id], "defaults as they are");
    }
    assert_eq!(spoken.agents.len(), 4);
}

fn parse(text: &str) -> Config {
    config::parse(&[("flock.toml".into(), text.to_owned())]).unwrap_or_else(|f| panic!("{f}"))
}

fn plan_of(text: &str) -> Plan {
    let config = parse(text);
    let id = config.agents.keys().next().unwrap().clone();
    plan(&config, &Uids::from([(id.clone(), 65_537)]), &id).unwrap()
}

const EXPLAINED: [(&str, &str); 4] = [
    ("plain", "[agents.agent-1]\ncommand = [\"/bin/sh\"]\n"),
    (
        "workspace",
        "[agents.agent-1]\nlevel = 0\ncommand = [\"/bin/sh\"]\ncommon = \"read-write\"\n",
    ),
    (
        "loosened",
        r#"
        [host]
        unenforced-limits = "allow"
        [agents.agent-1]
        mode = "service"
        command = ["/opt/researcher/run", "--fast"]
        read-only-paths = ["/opt/researcher"]
        read-write-paths = ["/srv/data"]
        environment-files = ["/etc/flock/secrets/a.env"]
        secret-files = { api-key = "/etc/flock/secrets/example.key" }
        egress = ["api.example.com:443"]
        needs = ["jit"]
        restart = { policy = "always", attempts = 3, window = "5min" }
        limits = { cpu = "150%", swap = "1GiB", runtime = "8h", message = "64KiB" }
        may-request = ["critic"]
        [agents.critic]
        command = ["/bin/sh"]
        may-request = ["agent-1"]
        [agents.other]
        command = ["/bin/sh"]
        may-request = ["agent-1"]
        [channels.review]
        members = ["agent-1", "critic"]
        "#,
    ),
    (
        "tools",
        r#"
        [agents.agent-1]
        level = 0
        command = ["/bin/sh"]
        [agents.agent-1.tools]
        direct = ["/usr/bin/env"]
        [agents.agent-1.tools.git]
        command = ["/usr/bin/git"]
        allow = [["status"], ["log", "-**"]]
        ask = [["push", "origin", "*"]]
        deny = [["push", "origin", "main"]]
        [agents.agent-1.tools.deploy]
        command = ["/usr/local/bin/deploy", "--to", "the server"]
        decision = "ask"
        "#,
    ),
];

#[test]
fn explanations_are_as_expected() {
    for (name, text) in EXPLAINED {
        let found = explain(&plan_of(text));
        let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden"].iter().collect();
        let golden = golden.join(format!("explain-{name}.txt"));
        if std::env::var_os("FLOCK_BLESS").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        assert_eq!(fs::read_to_string(&golden).unwrap(), found, "{}", golden.display());
    }
}

/// A protection that is not in the plan, or is too weak, or is not for every systemd, is not
/// claimed: each line of "What it cannot do" goes away with its property.
#[test]
fn nothing_is_claimed_that_the_plan_does_not_hold() {
    let full = plan_of(EXPLAINED[0].1);
    let claims = |plan: &Plan| -> Vec<String> {
        let text = explain(plan);
        let part = text.split("What it cannot do\n").nth(1).unwrap_or("");
        part.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let all = claims(&full);
    assert!(all.len() > 15, "{all:?}");
    let without = |change: &dyn Fn(&mut Property)| {
        let mut plan = full.clone();
        plan.unit.properties.iter_mut().for_each(change);
        claims(&plan)
    };
    for property in &full.unit.properties {
        let mut plan = full.clone();
        plan.unit.properties.retain(|other| other.name != property.name);
        let left = claims(&plan);
        assert!(left.len() <= all.len() && left.iter().all(|line| all.contains(line)), "{left:?}");
    }
    let weak = without(&|property| match &mut property.value {
        Value::Bool(value) => *value = false,
        Value::U64(value) => *value = u64::MAX,
        Value::Str(value) => *value = "no".to_owned(),
        Value::Strs(value) => value.clear(),
        Value::List(allow, _) => *allow = !*allow,
        _ => {}
    });
    assert_eq!(weak, Vec::<String>::new());
    let new = without(&|property| property.since = 255);
    assert_eq!(new, Vec::<String>::new());
}

#[test]
fn explain_uses_the_subjects_of_the_bus() {
    use flock::bus::subject;
    let text = explain(&plan_of(EXPLAINED[0].1));
    let id = AgentId::parse("agent-1").unwrap();
    for name in [subject::events(&id), subject::heartbeat(&id), subject::RESULT.to_owned()] {
        assert!(text.contains(&name), "{name} not in {text}");
    }
}

#[test]
fn an_agent_without_a_user_is_explained_with_the_uid_that_it_would_get() {
    let folder = folder(&format!("{GOOD}[agents.agent-1]\n"));
    let (code, out, error) = flockctl(&folder, &["explain", "agent-1"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.starts_with("agent-1: level 1, process isolation\n"), "{out}");
    if !Path::new("/var/lib/flock/uids.json").exists() {
        assert!(out.contains("agent-1 has not been applied yet: uid 65537 is the one"), "{out}");
    }
    let (code, _, error) = flockctl(&folder, &["explain", "agent-2"]);
    assert_eq!(
        (code, error.as_str()),
        (1, "flockctl: no agent agent-2 is configured; there are: agent-1\n")
    );
}

#[test]
fn an_agent_is_added_to_a_file_of_its_own() {
    let folder = folder(GOOD);
    let (code, out, error) = flockctl(
        &folder,
        &[
            "agent",
            "add",
            "researcher",
            "--level",
            "0",
            "--mode",
            "service",
            "--egress",
            "api.example.com:443,192.0.2.1:80",
            "--command",
            "/usr/bin/python3",
            "-u",
            "--",
            "it's \"quoted\" \\ é",
        ],
    );
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(
        out,
        "wrote agents.d/researcher.toml\nnext: flockctl apply && flockctl start researcher\n"
    );
    let path = folder.path().join("agents.d/researcher.toml");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let config = config::load(&folder.path().join("flock.toml")).unwrap();
    let agent = &config.agents[&AgentId::parse("researcher").unwrap()];
    assert_eq!(agent.command, ["/usr/bin/python3", "-u", "--", "it's \"quoted\" \\ é"]);
    assert_eq!((agent.level.number(), agent.mode), (0, config::Mode::Service));
    let left: Vec<_> = fs::read_dir(folder.path().join("agents.d")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing else is left: {left:?}");
}

/// What the file suggests in comments is valid too.
#[test]
fn the_template_of_an_added_agent_is_valid() {
    let folder = folder(GOOD);
    assert_eq!(flockctl(&folder, &["agent", "add", "a"]).0, 0);
    let text = fs::read_to_string(folder.path().join("agents.d/a.toml")).unwrap();
    let (head, suggested) = text.split_once("[agents.a]\n").unwrap();
    assert!(head.lines().all(|line| line.is_empty() || line.starts_with("# ")));
    let spoken = suggested.replace("# limits", "limits").replace("\n# ", "\n");
    let config = parse(&format!("{GOOD}[agents.a]\n{spoken}"));
    let agent = config.agents.values().next().unwrap();
    assert_eq!((agent.needs.len(), agent.secret_files.len(), agent.environment.len()), (1, 1, 1));
}

#[test]
fn what_is_there_is_never_overwritten() {
    let folder = folder(GOOD);
    assert_eq!(flockctl(&folder, &["agent", "add", "a"]).0, 0);
    let path = folder.path().join("agents.d/a.toml");
    let before = fs::read_to_string(&path).unwrap();
    let (code, _, error) = flockctl(&folder, &["agent", "add", "a", "--level", "0"]);
    assert_eq!(code, 1);
    assert!(error.contains("agents.d/a.toml: the file is there already"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);

    write(&folder, "agents.d/more.toml", "[agents.b]\n");
    let (code, _, error) = flockctl(&folder, &["agent", "add", "b"]);
    assert_eq!(code, 78);
    assert!(error.contains("agent b is defined twice: the first time at"), "{error}");
    assert!(!folder.path().join("agents.d/b.toml").exists());
}

#[test]
fn an_agent_that_would_not_be_valid_is_not_added() {
    let folder = folder(GOOD);
    for (arguments, expected) in [
        (vec!["--level", "2"], "level 2 (container) is not in this version of flock"),
        (vec!["--mode", "job"], "a.mode: \"job\" is not known"),
        (vec!["--egress", "localhost:80"], "\"localhost:80\" is refused"),
        (vec!["--egress", ""], "\"\" is refused"),
        (vec!["--egress", "bus,unrestricted"], "\"bus\" is refused"),
        (vec!["--command", "python3"], "\"python3\" is refused: it is not an absolute path"),
        (vec!["--command", "/bin/sh", "-c", "a\nb"], "a line break stands in it"),
        (vec!["--command", "/opt/a/run"], "the agent does not see \"/opt/a/run\""),
    ] {
        let (code, _, error) =
            flockctl(&folder, &[&["agent", "add", "a"][..], &arguments].concat());
        assert_eq!(code, 78, "{arguments:?}: {error}");
        assert!(
            error.starts_with("flockctl: agent a is not added: the configuration has"),
            "{error}"
        );
        assert!(error.contains(expected), "{expected:?} not in {error}");
        assert!(!folder.path().join("agents.d").exists(), "{arguments:?}");
    }
}

#[test]
fn nothing_is_added_to_a_configuration_that_is_not_valid() {
    let folder = folder("[defaults]\nlevle = 1\n");
    let (code, _, error) = flockctl(&folder, &["agent", "add", "a", "--command", "/bin/sh"]);
    assert_eq!(code, 78);
    assert!(error.contains("did you mean level?"), "{error}");
    assert!(!folder.path().join("agents.d").exists());
}

#[test]
fn hostile_ids_are_refused_by_the_command_line() {
    let folder = folder(GOOD);
    let huge = "a".repeat(65_536);
    for id in ["../x", "", "A", "a/b", "a\nb", "%n", "é", "bus", huge.as_str(), "a.toml", "-rf"] {
        for verb in ["add", "remove"] {
            let (code, _, error) = flockctl(&folder, &["agent", verb, id]);
            assert_eq!(code, 2, "{id:?}: {error}");
        }
        assert_eq!(flockctl(&folder, &["explain", id]).0, 2, "{id:?}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn of_many_at_once_exactly_one_adds_an_agent() {
    let folder = folder(GOOD);
    let add = || flockctl(&folder, &["agent", "add", "a"]).0;
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(add)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|&code| code == 0 || code == 1), "{codes:?}");
    let left: Vec<_> = fs::read_dir(folder.path().join("agents.d")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn an_agent_is_removed_with_its_file_and_the_rest_is_said() {
    let folder = folder(&format!("{GOOD}[agents.main]\n"));
    assert_eq!(flockctl(&folder, &["agent", "add", "gone"]).0, 0);
    write(&folder, "agents.d/two.toml", "[agents.one]\n\n[agents.two]\n");
    let (code, out, error) = flockctl(&folder, &["agent", "remove", "gone"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.starts_with("removed agents.d/gone.toml\n"), "{out}");
    assert!(out.contains("its data stays: rm -r /var/lib/flock/shared/agents/gone\n"), "{out}");
    assert!(!folder.path().join("agents.d/gone.toml").exists());

    let (code, _, error) = flockctl(&folder, &["agent", "remove", "two"]);
    assert_eq!(code, 1);
    assert!(
        error.contains(
            "agents.d/two.toml holds more than this agent: delete its tables there, from line 3 on"
        ),
        "{error}"
    );
    let (code, _, error) = flockctl(&folder, &["agent", "remove", "main"]);
    assert_eq!(code, 1);
    assert!(
        error.contains(
            "flock.toml holds more than this agent: delete its tables there, from line 3 on"
        ),
        "{error}"
    );
    let (code, _, error) = flockctl(&folder, &["agent", "remove", "gone"]);
    assert_eq!(code, 1);
    assert!(error.contains("no agent gone is configured; there are: main, one, two"), "{error}");
    assert!(folder.path().join("agents.d/two.toml").exists());
}
