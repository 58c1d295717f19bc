//! What is written for people says what the programs do: examples, defaults, keys, verbs.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use flock::config::{self, Config};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn parse(files: &[(&str, String)]) -> Config {
    let files: Vec<_> =
        files.iter().map(|(name, text)| (PathBuf::from(name), text.clone())).collect();
    config::parse(&files).unwrap_or_else(|faults| panic!("{faults}"))
}

/// The code between `.nf` and `.fi` of a section of a manual page.
fn section(page: &str, title: &str) -> String {
    let (_, rest) = page.split_once(&format!(".SH {title}\n")).expect(title);
    let (_, code) = rest.split_once(".nf\n").expect(title);
    code.split_once("\n.fi").expect(title).0.to_owned()
}

/// A file without the comment it begins with.
fn body(path: &str) -> String {
    let text = read(path);
    let code = text.lines().skip_while(|line| line.starts_with(['#', '/']) || line.is_empty());
    code.collect::<Vec<_>>().join("\n")
}

/// The configuration in the comment at the head of a file.
fn head(path: &str) -> String {
    let text = read(path);
    let lines = text.lines().map_while(|line| line.strip_prefix('#'));
    let code: Vec<_> = lines.skip_while(|line| !line.trim_start().starts_with('[')).collect();
    assert!(code.len() > 2, "{path} shows no configuration");
    code.join("\n")
}

#[test]
fn the_shipped_configuration_is_valid_and_as_documented() {
    let config = parse(&[("flock.toml", read("packaging/flock.toml"))]);
    let ids: Vec<_> = config.agents.keys().map(|id| id.as_str()).collect();
    assert_eq!(ids, ["agent-1", "agent-2", "agent-3"]);
    let minimal = "[defaults]\ncommand = [\"/bin/sh\"]\n[agents.agent-1]\n[agents.agent-2]\n[agents.agent-3]\n";
    assert_eq!(config, parse(&[("flock.toml", minimal.to_owned())]), "it spells out the defaults");
}

#[test]
fn the_manual_page_names_the_real_defaults() {
    let page = read("docs/man/flock.toml.5");
    let with_agent = |defaults: &str| {
        let agent = "[agents.a]\ncommand = [\"/bin/sh\"]\n".to_owned();
        parse(&[("flock.toml", defaults.to_owned()), ("agents.d/a.toml", agent)])
    };
    assert_eq!(with_agent(&section(&page, "DEFAULTS")), with_agent(""));
    parse(&[("flock.toml", section(&page, "EXAMPLE"))]);
}

#[test]
fn the_manual_page_names_every_key() {
    let page = read("docs/man/flock.toml.5");
    let mut keys = 0;
    for source in ["src/config/part.rs", "src/config/check.rs", "src/config/tools.rs"] {
        for list in read(source).split("_KEYS: &[&str] =").skip(1) {
            let list = list.split_once("];").expect("the end of a list").0;
            for key in list.split('"').skip(1).step_by(2) {
                assert!(page.contains(key), "{key} of {source} is not in flock.toml(5)");
                keys += 1;
            }
        }
    }
    assert!(keys > 30, "the lists of keys were not found: {keys}");
}

#[test]
fn the_examples_are_valid_and_stand_in_the_readme_as_they_are() {
    let readme = read("README.md");
    for example in ["agent.py", "agent.mjs", "my-agents.toml"] {
        let code = body(&format!("docs/examples/{example}"));
        assert!(
            code.lines().count() >= 8 && readme.contains(&code),
            "README.md differs: {example}"
        );
    }
    parse(&[
        ("flock.toml", read("packaging/flock.toml")),
        ("agents.d/my-agents.toml", read("docs/examples/my-agents.toml")),
        ("agents.d/lines.toml", head("docs/examples/json_lines.py")),
    ]);
}

#[test]
fn the_examples_without_a_library_are_short_and_their_configuration_is_valid() {
    for example in ["plain.py", "plain.mjs", "plain.sh", "ask.py", "answer.py"] {
        let text = read(&format!("docs/examples/{example}"));
        assert!(text.lines().count() < 40, "{example} has {} lines", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{example}: a line is long");
        let library = ["import nats", "\"nats\"", "nats-py", "natscli"];
        assert!(library.iter().all(|word| !text.contains(word)), "{example} needs a library");
    }
    let config = parse(&[
        ("flock.toml", read("packaging/flock.toml")),
        ("agents.d/plain-agents.toml", read("docs/examples/plain-agents.toml")),
    ]);
    for (name, program) in [("python", "plain.py"), ("node", "plain.mjs"), ("shell", "plain.sh")] {
        let agent = config.agents.iter().find(|(id, _)| id.as_str() == format!("plain-{name}"));
        assert!(agent.is_some_and(|(_, agent)| agent.command[1].ends_with(program)), "{name}");
    }
}

#[test]
fn every_verb_has_a_page_and_completions() {
    let pages = tempfile::tempdir().unwrap();
    let flockctl = || Command::cargo_bin("flockctl").unwrap();
    flockctl().arg("man").arg(pages.path()).assert().success();
    let help = String::from_utf8(flockctl().arg("--help").output().unwrap().stdout).unwrap();
    let verbs = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let scripts = ["bash", "zsh", "fish"].map(|shell| {
        String::from_utf8(flockctl().args(["completions", shell]).output().unwrap().stdout).unwrap()
    });
    let mut seen = 0;
    for verb in verbs.lines().filter_map(|line| line.split_whitespace().next()) {
        if verb != "help" {
            let page = pages.path().join(format!("flockctl-{verb}.1"));
            assert!(page.exists(), "no page for flockctl {verb}");
            assert!(scripts.iter().all(|script| script.contains(verb)), "no completion for {verb}");
            seen += 1;
        }
    }
    assert!(seen > 0, "no verb was found in:\n{help}");
    for hidden in ["man", "completions"] {
        assert!(!pages.path().join(format!("flockctl-{hidden}.1")).exists(), "{hidden} is hidden");
    }
}

#[test]
fn hidden_verbs_say_what_is_wrong() {
    let flockctl = || Command::cargo_bin("flockctl").unwrap();
    let failed = flockctl().args(["man", "/nonexistent"]).assert().code(1);
    let stderr = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(stderr.contains("/nonexistent") && stderr.contains("name a directory"), "{stderr}");
    flockctl().args(["completions", "tcsh"]).assert().code(2);
}

#[test]
fn the_changelog_has_its_form() {
    let text = read("CHANGELOG.md");
    let headings: Vec<_> = text.lines().filter(|line| line.starts_with("## ")).collect();
    assert_eq!(headings.first(), Some(&"## [Unreleased]"));
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    for line in text.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(kinds.contains(&line), "### {line}: one of {kinds:?}");
    }
    for line in &headings[1..] {
        let version = line.strip_prefix("## [").and_then(|rest| rest.split_once("] - "));
        let dated = version.is_some_and(|(_, date)| date.len() == 10 && date.starts_with("20"));
        assert!(dated, "{line}: write ## [1.2.3] - 2026-01-31");
    }
}
