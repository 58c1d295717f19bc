//! `docs/attacks.md` and the tests say the same: every row has its test, every test its row, and
//! nothing of the catalogue is passed over in silence. What the rows say of levels and layers is held
//! against the table itself by `tests/attacks/run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_row(text: &str) -> bool {
    let (head, tail) = text.split_at_checked(3).unwrap_or(("", ""));
    head.bytes().take(2).all(|c| c.is_ascii_uppercase())
        && head.ends_with('-')
        && tail.len() >= 2
        && tail.as_bytes()[..2].iter().all(u8::is_ascii_digit)
}

/// The cells of every line of a table whose first cell is a row's number.
fn rows(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<String> =
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        if is_row(&cells[0]) {
            assert_eq!(cells.len(), 6, "{line}");
            assert!(found.insert(cells[0].clone(), cells).is_none(), "twice: {line}");
        }
    }
    found
}

/// The rows that the section without tests names.
fn without_a_test(page: &str) -> BTreeSet<String> {
    let (_, section) = page.split_once("## Rows of the catalogue without a test here").unwrap();
    let lists = section.lines().filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    lists
        .flat_map(|(_, list)| list.split(", "))
        .filter(|id| is_row(id))
        .map(str::to_owned)
        .collect()
}

/// The rows that programs stand for: `row("KN-01", …`, and the like.
fn programs() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "py") || path.ends_with("table.py") {
            continue;
        }
        for part in fs::read_to_string(path).unwrap().split("(\"").skip(1) {
            let id = part.split('"').next().unwrap();
            if is_row(id) && id.len() <= 6 {
                assert!(found.insert(id.to_owned()), "{id} stands twice");
            }
        }
    }
    assert!(found.len() > 90, "the programs were not found");
    found
}

/// `test_limits.test_x`, `src/a.rs::x`, `tests/bus/isolation.py::words`: whether it is there.
fn is_there(test: &str) -> bool {
    if let Some((file, name)) = test.split_once("::") {
        let text = read(file);
        assert!(!name.is_empty(), "{test}: names nothing");
        return if file.ends_with(".rs") {
            text.contains(&format!("fn {name}("))
        } else {
            text.contains(name)
        };
    }
    let Some((module, name)) = test.split_once('.') else { return false };
    read(&format!("tests/system/{module}.py")).contains(&format!("def {name}("))
}

#[test]
fn every_row_has_its_test_and_every_test_its_row() {
    let page = read("docs/attacks.md");
    let (rows, programs) = (rows(&page), programs());
    for (id, cells) in &rows {
        let tests: Vec<&str> = cells[5].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{id} names no test");
        for test in tests {
            let good = if test == "tests/attacks" { programs.contains(id) } else { is_there(test) };
            assert!(good, "{id}: there is no {test}");
        }
        for level in [&cells[2], &cells[3]] {
            let said = level.trim_matches('*').split(" (").next().unwrap();
            assert!(["stopped", "contained", "not promised"].contains(&said), "{id}: {level}");
        }
    }
    let unseen: Vec<_> = programs.iter().filter(|id| !rows.contains_key(*id)).collect();
    assert!(unseen.is_empty(), "programs that docs/attacks.md does not name: {unseen:?}");
}

#[test]
fn nothing_of_the_catalogue_is_passed_over() {
    let page = read("docs/attacks.md");
    let (tested, untested) = (rows(&page), without_a_test(&page));
    let catalogue = read("tests/attacks/catalogue.txt");
    let catalogue: BTreeSet<&str> = catalogue.lines().collect();
    assert!(catalogue.len() > 200, "the catalogue was not found");
    for id in &catalogue {
        match (tested.contains_key(*id), untested.contains(*id)) {
            (true, false) | (false, true) => {}
            (true, true) => panic!("{id} has a test and is said to have none"),
            (false, false) => panic!("{id} is passed over in docs/attacks.md"),
        }
    }
    let strange: Vec<_> = untested.iter().filter(|id| !catalogue.contains(id.as_str())).collect();
    assert!(strange.is_empty(), "not of the catalogue: {strange:?}");
}

/// The tables of `docs/promises.md` whose rows are promises: number, promise, levels, held by, tested in.
fn promises() -> Vec<Vec<String>> {
    let page = read("docs/promises.md");
    let (page, _) = page.split_once("## What no level here promises").unwrap();
    let lines = page.lines().filter(|line| line.starts_with('|') && !line.starts_with("| ---"));
    let rows = lines.map(|line| {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    });
    rows.filter(|cells| cells[0] != "number").collect()
}

#[test]
fn every_promise_has_a_number_its_levels_and_tests_that_are_there() {
    let attacks = rows(&read("docs/attacks.md"));
    let mut numbers = Vec::new();
    for cells in promises() {
        assert_eq!(cells.len(), 5, "number, promise, levels, held by, tested in: {cells:?}");
        let number = cells[0].strip_prefix("P-").and_then(|n| n.parse::<u32>().ok());
        numbers.push(number.unwrap_or_else(|| panic!("no number: {cells:?}")));
        assert!(["0, 1", "1"].contains(&cells[2].as_str()), "levels: {cells:?}");
        let tests: Vec<&str> = cells[4].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {cells:?}");
        for test in tests {
            assert!(stands(test), "{}: there is no {test}", cells[0]);
        }
        // `FS-01`, `NW-01` after the tests: rows of the attacks.
        let outside = cells[4].split('`').step_by(2).flat_map(|text| text.split([' ', ',', ';']));
        for id in outside.filter(|word| is_row(word)) {
            let row = attacks.get(id).unwrap_or_else(|| panic!("{}: no row {id}", cells[0]));
            let level = if cells[2] == "1" { &row[3] } else { &row[2] };
            assert!(!level.contains("not promised"), "{}: {id} is not promised", cells[0]);
        }
    }
    let all: Vec<u32> = (1..=u32::try_from(numbers.len()).unwrap()).collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, all, "each number once, and none is left out");
}

/// A module of `tests/system`, a file, a module of the sources (`audit::tests`), or `cargo test NAME`.
fn stands(test: &str) -> bool {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let module = test.strip_prefix("cargo test ").unwrap_or(test);
    let source = top.join("src").join(module.replace("::", "/"));
    let parent = source.parent().map(Path::to_path_buf).unwrap_or_default();
    [
        top.join(format!("tests/system/{test}.py")),
        top.join("tests/system").join(test),
        top.join(test),
        source.with_extension("rs"),
        source.clone(),
        parent.with_extension("rs"),
        top.join("tests").join(module.replace("::", "/")).with_extension("rs"),
        top.join("tests").join(module),
    ]
    .iter()
    .any(|path| path.exists())
        || test.strip_suffix('*').is_some_and(|start| {
            let (folder, name) = start.rsplit_once('/').unwrap_or(("", start));
            fs::read_dir(top.join(folder)).is_ok_and(|entries| {
                entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(name))
            })
        })
}
