//! The configuration: one golden message per rule, files that pass, hostile files, and what
//! `load` believes.
//!
//! `FLOCK_BLESS=1 cargo test --test config` writes the messages anew.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flock::config::{self, Config, Egress, Faults};
use flock::names::{AgentId, Level};
use proptest::prelude::*;

fn cases(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(folder);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_dir() || path.extension().is_some_and(|end| end == "toml"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// The texts of a case: one file, or a folder with `flock.toml` and `agents.d`.
fn texts(case: &Path) -> Vec<(PathBuf, String)> {
    let file = |path: PathBuf, name: PathBuf| (name, fs::read_to_string(path).unwrap());
    if !case.is_dir() {
        return vec![file(case.to_owned(), case.file_name().unwrap().into())];
    }
    let mut files = vec![file(case.join("flock.toml"), "flock.toml".into())];
    let more = fs::read_dir(case.join("agents.d")).unwrap();
    let mut names: Vec<_> = more.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let name = Path::new("agents.d").join(name);
        files.push(file(case.join(&name), name));
    }
    files
}

#[test]
fn every_bad_file_gives_its_message() {
    let mut wrong = Vec::new();
    for case in cases("bad") {
        let Err(faults) = config::parse(&texts(&case)) else {
            wrong.push(format!("{}: passes, but must not", case.display()));
            continue;
        };
        let message = format!("{faults}\n");
        assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "{message:?}");
        let golden = case.with_extension("txt");
        if std::env::var_os("FLOCK_BLESS").is_some() {
            fs::write(&golden, &message).unwrap();
        }
        match fs::read_to_string(&golden) {
            Ok(expected) if expected == message => {}
            Ok(expected) => wrong.push(format!("expected:\n{expected}\nfound:\n{message}")),
            Err(error) => wrong.push(format!("{}: {error}; it is:\n{message}", golden.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_message_has_its_bad_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/bad");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "txt") {
            let case = path.with_extension("toml").exists() || path.with_extension("").is_dir();
            assert!(case, "{}: a message without a file", path.display());
        }
    }
}

#[test]
fn every_good_file_passes() {
    for case in cases("good") {
        if let Err(faults) = config::parse(&texts(&case)) {
            panic!("{}: {faults}", case.display());
        }
    }
}

fn one(text: &str) -> Result<Config, Faults> {
    config::parse(&[("flock.toml".into(), text.to_owned())])
}

#[test]
fn an_agents_own_keys_win_over_the_defaults() {
    let config = one(r#"
        [defaults]
        level = 0
        command = ["/bin/sh"]
        environment = { A = "1", B = "1" }
        limits = { memory = "1GiB", tasks = 7 }
        restart = { attempts = 9 }
        task = { parallel = 3 }
        egress = "unrestricted"
        read-only-paths = ["/opt/a", "/opt/b"]
        [agents.plain]
        [agents.own]
        level = 1
        environment = { B = "2" }
        limits.tasks = 8
        restart = { delay = "1min" }
        task = { timeout = "5s" }
        egress = []
        read-only-paths = ["/opt/c"]
    "#)
    .unwrap();
    let plain = &config.agents[&AgentId::parse("plain").unwrap()];
    let own = &config.agents[&AgentId::parse("own").unwrap()];
    assert_eq!((plain.level, own.level), (Level::Workspace, Level::Process));
    assert_eq!(own.command, ["/bin/sh"]);
    assert_eq!((own.environment["A"].as_str(), own.environment["B"].as_str()), ("1", "2"));
    assert_eq!((own.limits.memory, own.limits.tasks), (1 << 30, 8));
    assert_eq!((plain.limits.tasks, plain.limits.swap), (7, 0));
    assert_eq!((own.restart.attempts, own.restart.delay.as_secs()), (9, 60));
    assert_eq!(own.restart.max_delay.as_secs(), 60, "a longest pause is not below the first");
    assert_eq!((own.task.parallel, own.task.timeout.as_secs()), (3, 5));
    assert_eq!((&plain.egress, &own.egress), (&Egress::Unrestricted, &Egress::Bus));
    assert_eq!(own.read_only_paths, [PathBuf::from("/opt/c")]);
}

#[test]
fn everybody_is_in_the_channel_flock_unless_the_configuration_says_otherwise() {
    let agents = "[defaults]\ncommand = [\"/bin/sh\"]\n[agents.a]\n[agents.b]\n";
    let members = |more: &str| -> Vec<(String, String)> {
        let config = one(&format!("{agents}{more}")).unwrap();
        let text = |ids: &std::collections::BTreeSet<AgentId>| {
            ids.iter().map(AgentId::as_str).collect::<Vec<_>>().join(" ")
        };
        config.channels.iter().map(|(name, ids)| (name.to_string(), text(ids))).collect()
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(members(""), [pair("flock", "a b")]);
    assert_eq!(members("[channels.flock]\nmembers = [\"b\"]"), [pair("flock", "b")]);
    assert_eq!(members("[channels.flock]\nmembers = []"), []);
    let both = [pair("flock", "a b"), pair("x", "a")];
    assert_eq!(members("[channels.x]\nmembers = [\"a\"]"), both);
}

#[test]
fn what_the_defaults_may_request_holds_for_all_but_the_one_asked() {
    let config = one(r#"
        [defaults]
        command = ["/bin/sh"]
        may-request = ["critic"]
        [agents.coder]
        [agents.critic]
        [agents.alone]
        may-request = []
    "#)
    .unwrap();
    let id = |text| AgentId::parse(text).unwrap();
    assert_eq!(config.agents[&id("coder")].may_request, [id("critic")].into());
    assert!(config.agents[&id("critic")].may_request.is_empty());
    assert_eq!(config.requesters_of(&id("critic")).collect::<Vec<_>>(), [&id("coder")]);
}

#[test]
fn an_empty_file_is_a_configuration_without_agents() {
    let config = one("").unwrap();
    assert!(config.agents.is_empty());
    assert_eq!(config.bus.port, 14_222);
    assert_eq!((config.history.keep.as_secs(), config.history.max_size), (30 * 86_400, 1 << 30));
}

#[test]
fn the_history_is_kept_as_written() {
    let config = one("[history]\nkeep = \"1h\"\nmax-size = \"16MiB\"\n").unwrap();
    assert_eq!((config.history.keep.as_secs(), config.history.max_size), (3600, 16 << 20));
}

#[test]
fn absent_empty_and_bus_allow_the_same() {
    for egress in ["", "egress = []", "egress = \"bus\""] {
        let text = format!("[agents.a]\ncommand = [\"/bin/sh\"]\n{egress}\n");
        let config = one(&text).unwrap();
        assert_eq!(config.agents.values().next().unwrap().egress, Egress::Bus, "{egress}");
    }
}

/// What a name may not be written for, it may not lead to either: the egress table asks this.
#[test]
fn addresses_of_this_host_and_of_metadata_services_are_refused() {
    let refused = |text: &str| config::refused_address(text.parse().unwrap()).is_some();
    for text in [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ] {
        assert!(refused(text), "{text}");
    }
    for text in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", "fd00::1"] {
        assert!(!refused(text), "{text}");
    }
}

#[test]
fn a_value_in_the_environment_is_never_shown() {
    let faults = one("[agents.a]\ncommand = [\"/bin/sh\"]\n\
        environment = { OPENAI_KEY = \"sk-hidden\", BAD-NAME = \"sk-hidden\", X = \"sk-hidden\\u0000\" }\n")
    .unwrap_err()
    .to_string();
    assert!(faults.contains("OPENAI_KEY"), "{faults}");
    assert!(!faults.contains("sk-hidden"), "{faults}");
}

#[test]
fn a_flood_of_faults_is_counted_and_cut() {
    let faults = one(&"x = 1\n".repeat(1000)).unwrap_err();
    assert_eq!((faults.list.len(), faults.count), (100, 1000));
    assert!(faults.to_string().ends_with("... and 900 more"));
}

#[test]
fn hostile_texts_end_quickly() {
    let texts = [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(500_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        format!("{} = 1", "a.".repeat(500_000)),
        format!("[agents{}]", ".a".repeat(500_000)),
        "=".repeat(1_000_000),
        "x=\n".repeat(300_000),
        (0..60_000).map(|n| format!("x{n} = y\n")).collect(),
        (0..60_000).map(|n| format!("x{n} = 1\n")).collect(),
        (0..40_000).map(|n| format!("[agents.a{n}]\n")).collect(),
        format!("[agents.a]\negress=[{}]", "\"a.b:1\",".repeat(100_000)),
        format!("agents = {{ {} }}", "\u{202e}".repeat(300_000)),
        "\0".repeat(1_000_000),
    ];
    for text in texts {
        let start = Instant::now();
        let faults = one(&text).unwrap_err();
        let head: String = text.chars().take(20).collect();
        assert!(start.elapsed() < Duration::from_secs(20), "{head:?} took {:?}", start.elapsed());
        assert!(faults.to_string().len() < 200_000, "{head:?}");
    }
}

#[test]
fn a_block_of_user_ids_can_be_used_up() {
    let agents = |number: usize| {
        let tables = (0..number).map(|n| format!("[agents.a{n}]\n")).collect::<String>();
        one(&format!(
            "host.uid-block = \"70000-70015\"\n[defaults]\ncommand = [\"/bin/sh\"]\n{tables}"
        ))
    };
    assert!(agents(15).is_ok());
    let faults = agents(16).unwrap_err().to_string();
    assert!(faults.contains("more than 15 agents with a user of their own"), "{faults}");
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in any::<String>()) {
        let _ = one(&text).map_err(|faults| faults.to_string());
    }

    #[test]
    fn any_text_that_looks_like_a_configuration_is_read_without_panic(
        words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..60)
    ) {
        let text: String = words.concat();
        let _ = one(&text).map_err(|faults| faults.to_string());
    }

    #[test]
    fn a_value_that_passes_is_what_was_written(memory in 16_u64..16_777_216, tasks in 4_u64..4_000_000) {
        let text = format!(
            "[agents.a]\ncommand = [\"/bin/sh\"]\nlimits = {{ memory = \"{memory}MiB\", tasks = {tasks} }}\n"
        );
        let config = one(&text).unwrap();
        let limits = &config.agents.values().next().unwrap().limits;
        prop_assert_eq!((limits.memory, limits.tasks), (memory << 20, tasks));
    }

    #[test]
    fn no_string_with_a_control_character_passes(text in ".*\\pC.*") {
        prop_assume!(text.contains(char::is_control));
        let quoted = toml::Value::String(text).to_string();
        let file = format!("[agents.a]\ncommand = [\"/bin/sh\", {quoted}]\n");
        prop_assert!(one(&file).is_err());
    }
}

const WORDS: [&str; 32] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\n",
    "\"",
    "'",
    "\"\"\"",
    "#",
    " ",
    "agents",
    "defaults",
    "limits",
    "memory",
    "egress",
    "environment",
    "command",
    "a",
    "1",
    "0x1",
    "-1",
    "1e9",
    "true",
    "1979-05-27",
    "\u{202e}",
    "é",
    "\\u0000",
];

/// A folder of our own with a good configuration.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    write(&folder.path().join("flock.toml"), b"[defaults]\ncommand = [\"/bin/sh\"]\n");
    fs::create_dir(folder.path().join("agents.d")).unwrap();
    fs::set_permissions(folder.path().join("agents.d"), fs::Permissions::from_mode(0o750)).unwrap();
    folder
}

fn write(path: &Path, text: &[u8]) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refused(folder: &tempfile::TempDir, expected: &str) {
    let faults = config::load(&folder.path().join("flock.toml")).unwrap_err().to_string();
    assert!(faults.contains(expected), "expected {expected:?} in {faults}");
}

#[test]
fn agents_d_is_read_in_order_and_other_files_are_left_out() {
    let folder = folder();
    let more = folder.path().join("agents.d");
    write(&more.join("b.toml"), b"[agents.b]\n");
    write(&more.join("a.toml"), b"[agents.a]\n");
    write(&more.join("c.toml.dpkg-new"), b"not TOML at all");
    write(&more.join("README"), b"not TOML at all");
    symlink("nowhere", more.join(".#a.toml")).unwrap();
    let path = folder.path().join("flock.toml");
    let config = config::load(&path).unwrap();
    let ids: Vec<&str> = config.agents.keys().map(AgentId::as_str).collect();
    assert_eq!(ids, ["a", "b"]);
    let files = config::read(&path).unwrap();
    let places = config::places(&files);
    let place = &places[&AgentId::parse("b").unwrap()];
    assert_eq!((place.path.as_path(), place.line), (more.join("b.toml").as_path(), 1));
}

#[test]
fn a_configuration_without_agents_d_is_read() {
    let folder = folder();
    fs::remove_dir(folder.path().join("agents.d")).unwrap();
    assert!(config::load(&folder.path().join("flock.toml")).is_ok());
}

#[test]
fn a_missing_file_is_said() {
    let folder = folder();
    fs::remove_file(folder.path().join("flock.toml")).unwrap();
    write(&folder.path().join("agents.d/a.toml"), b"[agents.a]\nlevel = 7\n");
    let faults = config::load(&folder.path().join("flock.toml")).unwrap_err();
    assert_eq!(faults.count, 2, "what is wrong elsewhere is said too, and nothing more: {faults}");
    refused(&folder, "flock.toml: there is no such file or directory");
    let nowhere = config::load(Path::new("/nonexistent/flock.toml")).unwrap_err().to_string();
    assert!(nowhere.contains("/nonexistent: there is no such file or directory"), "{nowhere}");
}

#[test]
fn files_that_others_can_write_are_refused() {
    let main = folder();
    mode(&main.path().join("flock.toml"), 0o646);
    refused(&main, "flock.toml: everybody can write it (mode 0646): chmod go-w");
    mode(&main.path().join("flock.toml"), 0o660);
    refused(&main, "flock.toml: its group can write it (mode 0660): chmod go-w");

    let more = folder();
    write(&more.path().join("agents.d/a.toml"), b"[agents.a]\n");
    mode(&more.path().join("agents.d/a.toml"), 0o666);
    refused(&more, "agents.d/a.toml: everybody can write it");
    mode(&more.path().join("agents.d"), 0o777);
    refused(&more, "agents.d: everybody can write it");

    let around = folder();
    mode(around.path(), 0o777);
    refused(&around, "everybody can write it (mode 0777)");
    mode(around.path(), 0o1777);
    assert!(config::load(&around.path().join("flock.toml")).is_ok(), "sticky, like /tmp");
}

#[test]
fn files_of_another_user_are_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a file away; a file of root's is good for everybody.
        return;
    }
    for victim in ["flock.toml", "agents.d", "agents.d/a.toml", "."] {
        let folder = folder();
        write(&folder.path().join("agents.d/a.toml"), b"[agents.a]\n");
        std::os::unix::fs::chown(folder.path().join(victim), Some(54_321), None).unwrap();
        refused(&folder, "user 54321 owns it: it must be root's");
    }
}

#[test]
fn links_pipes_and_directories_are_refused() {
    let link = folder();
    fs::rename(link.path().join("flock.toml"), link.path().join("real.toml")).unwrap();
    symlink("real.toml", link.path().join("flock.toml")).unwrap();
    refused(&link, "flock.toml: it is a symbolic link");

    let more = folder();
    symlink("../flock.toml", more.path().join("agents.d/a.toml")).unwrap();
    refused(&more, "agents.d/a.toml: it is a symbolic link");

    let whole = folder();
    fs::rename(whole.path().join("agents.d"), whole.path().join("real.d")).unwrap();
    symlink("real.d", whole.path().join("agents.d")).unwrap();
    refused(&whole, "agents.d: it is not a directory, or a symbolic link");

    let directory = folder();
    fs::create_dir(directory.path().join("agents.d/a.toml")).unwrap();
    refused(&directory, "agents.d/a.toml: it is not a regular file");

    let pipe = folder();
    let status = std::process::Command::new("mkfifo")
        .arg(pipe.path().join("agents.d/a.toml"))
        .status()
        .unwrap();
    assert!(status.success());
    refused(&pipe, "agents.d/a.toml: it is not a regular file");
}

#[test]
fn files_that_are_no_text_are_refused() {
    let folder = folder();
    let main = folder.path().join("flock.toml");
    write(&main, b"\xef\xbb\xbf[host]\n");
    refused(&folder, "it begins with a byte order mark: save it as plain UTF-8");
    write(&main, b"[host]\n# caf\xe9\n");
    refused(&folder, "line 2 is not UTF-8");
    write(&main, &vec![b'#'; 10 << 20]);
    let start = Instant::now();
    refused(&folder, "it is larger than 1 MiB");
    assert!(start.elapsed() < Duration::from_secs(2));
    write(&main, &vec![b'\n'; 1 << 20]);
    assert!(config::load(&main).is_ok());
}

#[test]
fn a_path_that_leads_to_a_forbidden_one_is_refused() {
    let folder = folder();
    let data = tempfile::tempdir_in("/var/lib")
        .or_else(|_| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")))
        .unwrap();
    let link = data.path().canonicalize().unwrap().join("link");
    symlink("/etc", &link).unwrap();
    let text = format!("[agents.a]\nread-write-paths = [{link:?}]\n");
    write(&folder.path().join("agents.d/a.toml"), text.as_bytes());
    refused(&folder, "it leads to \"/etc\"");
}
