//! `flockctl doctor` on whatever host this is: what it says must hold together everywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("flock.toml"), text).unwrap();
    fs::set_permissions(folder.path().join("flock.toml"), fs::Permissions::from_mode(0o644))
        .unwrap();
    folder
}

fn program() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("flockctl").to_path_buf()
}

fn doctor(command: &mut Command, folder: &Path, arguments: &[&str]) -> Output {
    let config = folder.join("flock.toml");
    command.arg("--config").arg(config).arg("doctor").args(arguments).output().unwrap()
}

fn findings(output: &Output) -> Vec<Value> {
    match serde_json::from_slice(&output.stdout).unwrap() {
        Value::Array(findings) => findings,
        other => panic!("{other}"),
    }
}

fn verdict<'a>(findings: &'a [Value], subject: &str) -> &'a str {
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("no {subject} in {findings:?}"))["verdict"].as_str().unwrap()
}

#[test]
fn every_fault_has_a_remedy_and_decides_the_exit_code() {
    let folder = folder("");
    let output = doctor(&mut Command::new(program()), folder.path(), &["--json"]);
    let findings = findings(&output);
    assert!(findings.len() >= 18, "{findings:?}");
    for finding in &findings {
        let well = finding["verdict"] == "ok";
        assert_eq!(finding["remedy"].is_null(), well, "{finding}");
        assert!(well || finding["remedy"].as_str().unwrap().len() > 5, "{finding}");
        assert!(!finding["found"].as_str().unwrap().contains('\n'), "{finding}");
    }
    let fails = findings.iter().filter(|finding| finding["verdict"] == "fail").count();
    assert_eq!(output.status.code(), Some(i32::from(fails > 0)));
    assert_eq!(verdict(&findings, "configuration"), "ok");
    // What every machine that builds flock has.
    for subject in ["seccomp", "openat2", "user namespaces", "levels"] {
        assert_eq!(verdict(&findings, subject), "ok", "{subject}");
    }

    let text = doctor(&mut Command::new(program()), folder.path(), &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("FAIL  ")).count(), fails, "{text}");
    assert_eq!(text.lines().filter(|line| !line.starts_with("  ")).count(), findings.len());
}

#[test]
fn a_configuration_that_is_not_valid_hides_nothing_else() {
    let folder = folder("[host]\nno-such-key = 1\n");
    let output = doctor(&mut Command::new(program()), folder.path(), &["--json"]);
    let findings = findings(&output);
    assert_eq!(verdict(&findings, "configuration"), "fail");
    assert_eq!(findings[0]["remedy"], "flockctl check");
    assert_eq!(verdict(&findings, "seccomp"), "ok");
    assert_eq!(output.status.code(), Some(1));
}

/// A block of the operator's is judged, not the default one.
#[test]
fn the_block_of_the_configuration_is_what_is_judged() {
    let folder = folder("[host]\nuid-block = \"50000-59000\"\n");
    let output = doctor(&mut Command::new(program()), folder.path(), &["--json"]);
    assert_eq!(verdict(&findings(&output), "user ids"), "warn", "login.defs gives these to people");
}

#[test]
fn without_root_it_says_what_it_cannot_see() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("FLOCK_TEST_NO_SKIP").is_none(), "this test needs root");
        eprintln!(
            "SKIPPED without_root_it_says_what_it_cannot_see: it needs root to become nobody"
        );
        return;
    }
    let folder = folder("");
    let copy = folder.path().join("flockctl");
    fs::copy(program(), &copy).unwrap();
    let mut nobody = Command::new("/usr/bin/setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(copy);
    let output = doctor(&mut nobody, folder.path(), &["--json"]);
    let findings = findings(&output);
    for subject in ["access lists", "egress table"] {
        assert_eq!(verdict(&findings, subject), "warn", "{subject}");
        let finding = findings.iter().find(|finding| finding["subject"] == subject).unwrap();
        assert_eq!(finding["remedy"], "sudo flockctl doctor");
    }
    assert_eq!(verdict(&findings, "seccomp"), "ok");
}
