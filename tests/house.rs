//! Rules of the house: which module may use which, and what every file owes its reader.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One direction: a module may use those named here and itself. What is not in the table is a fault.
const ARROWS: &[(&str, &[&str])] = &[
    ("names", &[]),
    ("text", &[]),
    ("fail", &[]),
    ("lines", &[]),
    ("spelled", &[]),
    ("tools", &["text"]),
    ("config", &["names", "text", "tools", "fail"]),
    ("plan", &["names", "text", "config", "tools", "spelled"]),
    ("audit", &["names", "text", "host"]),
    ("host", &["names", "text", "config", "plan", "fail"]),
    ("bus", &["names", "text", "fail"]),
    ("agent", &["names", "text", "lines", "bus", "tools", "spelled"]),
    ("history", &["names", "text", "bus"]),
    ("journal", &["names", "text", "lines"]),
    ("status", &["names", "text", "config", "plan", "host", "history"]),
    ("steps", &["names", "text", "fail", "config", "plan", "host", "bus", "status"]),
    // The probe runs as an agent and knows nothing but what it is told.
    ("probe", &["names", "text", "host"]),
    ("verify", &["names", "text", "config", "plan", "host", "bus", "status", "steps", "probe"]),
    ("tasks", &["names", "text", "bus", "control"]),
    (
        "control",
        &["names", "text", "lines", "config", "status", "bus", "history", "journal", "audit"],
    ),
    ("daemon", &["*"]),
    ("cli", &["*"]),
];

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 30, "the sources were not found");
    found
}

/// `src/host/egress/rules.rs` and `src/host.rs` belong to `host`; `lib.rs` and `bin/` to nobody.
fn module(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.iter().next()?.to_str()?.trim_end_matches(".rs").to_owned();
    (first != "lib" && first != "bin").then_some(first)
}

/// The modules after each `crate::` in the text, groups in braces included.
fn used(text: &str) -> BTreeSet<String> {
    let word =
        |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                found.extend(group.split(',').map(|part| word(part.trim())));
            }
            None => {
                found.insert(word(rest));
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn arrows_point_one_way() {
    let mut faults = Vec::new();
    for path in sources() {
        let Some(own) = module(&path) else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == own) else {
            faults.push(format!("{}: no arrows are stated for the module {own}", path.display()));
            continue;
        };
        for other in used(&fs::read_to_string(&path).unwrap()) {
            if other != own && !allowed.contains(&"*") && !allowed.contains(&other.as_str()) {
                faults.push(format!("{}: {own} may not use {other}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no //! at the head of {silent:?}");
}

#[test]
fn unsafe_stands_in_one_file() {
    let word = concat!("un", "safe ");
    let holders: BTreeSet<_> = sources()
        .into_iter()
        .filter(|path| {
            fs::read_to_string(path)
                .unwrap()
                .lines()
                .any(|l| l.trim_start().contains(word) && !l.trim_start().starts_with("//"))
        })
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    assert!(holders.iter().all(|name| name == "sys.rs"), "{holders:?}");
}

#[test]
fn binaries_hold_no_logic() {
    for path in sources().into_iter().filter(|p| p.parent().unwrap().ends_with("bin")) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|l| !l.starts_with("//") && !l.trim().is_empty()).count();
        assert!(code <= 3, "{}: {code} lines of code", path.display());
    }
}

#[test]
fn the_top_level_is_what_the_readme_shows() {
    let wanted = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "Vagrantfile",
        "clippy.toml",
        "docs",
        "nftables",
        "packaging",
        "rustfmt.toml",
        "shared",
        "src",
        "tests",
        "units",
    ];
    let found: BTreeSet<String> = fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    assert_eq!(found, wanted.iter().map(|s| (*s).to_owned()).collect());
}

#[test]
fn files_stay_small_enough_to_be_read() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter_map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            (code > 400).then(|| format!("{}: {code} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "over 400 lines without tests: {long:?}");
}
