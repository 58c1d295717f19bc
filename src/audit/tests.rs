//! Every kind of tampering, power cuts at every byte, and writers at the same time.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::audit::{Entry, FaultKind, Filter, How, Log, Report, What, Who, Witness, read, verify};

fn entry(detail: &str) -> Entry {
    let who = Who { uid: 1000, name: "ann".into(), how: How::Socket };
    Entry::new(who, What::TaskSend, "agent-1", detail)
}

/// A log with records that are named by their detail, and what the journal would know.
fn log_of(dir: &Path, count: u64) -> (Log, Vec<Witness>) {
    let log = Log::below(dir);
    for n in 1..=count {
        assert_eq!(log.record(&entry(&format!("record {n}"))).unwrap(), n);
    }
    (log.clone(), known(&log))
}

fn known(log: &Log) -> Vec<Witness> {
    let records = read(log, &Filter::default()).unwrap();
    records
        .into_iter()
        .map(|record| Witness {
            n: record.n,
            hash: record.hash,
            released: record.what == What::Released.word(),
        })
        .collect()
}

fn file(dir: &Path) -> String {
    fs::read_to_string(dir.join("audit.log")).unwrap()
}

/// Rewrites the lines of the log.
fn rewrite(dir: &Path, change: impl Fn(&mut Vec<String>)) {
    let mut lines: Vec<String> = file(dir).lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(dir.join("audit.log"), lines.join("\n") + "\n").unwrap();
}

fn fault(report: &Report) -> Option<(FaultKind, u64)> {
    report.fault.as_ref().map(|fault| (fault.kind, fault.line))
}

#[test]
fn what_was_recorded_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (log, witnesses) = log_of(dir.path(), 5);
    let report = verify(&log, &witnesses).unwrap();
    assert_eq!((report.records, report.last, report.witnessed), (5, 5, 5));
    assert_eq!(report.fault, None);
    assert!(report.from <= report.to && report.from.is_some());
    // A log that was never written to is whole, unless the journal knows better.
    let empty = tempfile::tempdir().unwrap();
    let none = Log::below(empty.path());
    assert_eq!(verify(&none, &[]).unwrap(), Report::default());
    let report = verify(&none, &witnesses).unwrap();
    assert_eq!(report.fault.unwrap().text, "the journal knows record 5, and the log has none");
}

#[test]
fn every_kind_of_tampering_is_found_and_named() {
    type Change = fn(&mut Vec<String>);
    let forged = |n: u64, prev: &str| {
        let (_, line) = crate::audit::Record::after(n - 1, prev, &entry("forged")).unwrap();
        String::from_utf8(line).unwrap()
    };
    let cases: [(Change, FaultKind, u64); 7] = [
        (|lines| lines[2] = lines[2].replace("record 3", "record X"), FaultKind::Changed, 3),
        (|lines| drop(lines.remove(2)), FaultKind::Removed, 3),
        (|lines| drop(lines.remove(0)), FaultKind::Removed, 1),
        (|lines| lines.insert(2, lines[0].clone()), FaultKind::Inserted, 3),
        (|lines| lines.insert(2, "{\"n\":3}".to_owned()), FaultKind::Inserted, 3),
        (|lines| lines.swap(2, 3), FaultKind::Reordered, 3),
        (|lines| lines[4] = lines[4].replace("ann", "bob"), FaultKind::Changed, 5),
    ];
    for (index, (change, kind, line)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = log_of(dir.path(), 5);
        rewrite(dir.path(), change);
        assert_eq!(fault(&verify(&log, &[]).unwrap()), Some((kind, line)), "case {index}");
    }
    // With the right hash: the record that comes after it tells.
    let dir = tempfile::tempdir().unwrap();
    let (log, witnesses) = log_of(dir.path(), 5);
    rewrite(dir.path(), |lines| lines[2] = forged(3, &witnesses[1].hash));
    assert_eq!(fault(&verify(&log, &[]).unwrap()), Some((FaultKind::Changed, 3)));
    rewrite(dir.path(), |lines| lines.insert(3, forged(4, &witnesses[2].hash)));
    assert_eq!(fault(&verify(&log, &[]).unwrap()), Some((FaultKind::Changed, 3)));
}

#[test]
fn what_only_the_journal_can_know_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (log, witnesses) = log_of(dir.path(), 5);
    rewrite(dir.path(), |lines| lines.truncate(3));
    assert_eq!(verify(&log, &[]).unwrap().fault, None);
    let report = verify(&log, &witnesses).unwrap();
    assert_eq!(fault(&report), Some((FaultKind::Removed, 3)));
    assert_eq!(report.fault.unwrap().text, "the journal knows record 5, the log ends at 3");
    // Somebody goes on after the cut: the numbers are there again, the records are others.
    log.record(&entry("other")).unwrap();
    log.record(&entry("other")).unwrap();
    assert_eq!(verify(&log, &[]).unwrap().fault, None);
    assert_eq!(fault(&verify(&log, &witnesses).unwrap()), Some((FaultKind::Changed, 4)));
    // The journal forgets the old ones, which is no fault.
    assert_eq!(verify(&log, &known(&log)[3..]).unwrap().fault, None);
}

#[test]
fn a_log_that_was_purged_is_no_part_of_the_next_one() {
    let released = Entry { what: What::Released, ..entry("") };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (log, _) = log_of(first.path(), 5);
    log.record(&released).unwrap();
    let mut witnesses = known(&log);
    // Removed and installed again: the same log.
    log.record(&entry("again")).unwrap();
    assert_eq!(verify(&log, &known(&log)).unwrap().fault, None);
    rewrite(first.path(), |lines| lines.truncate(4));
    assert_eq!(fault(&verify(&log, &witnesses).unwrap()), Some((FaultKind::Removed, 4)));
    // Purged and installed again: another one, and it is held to what the journal knows of it.
    let (log, new) = log_of(second.path(), 3);
    witnesses.extend(new);
    let report = verify(&log, &witnesses).unwrap();
    assert_eq!((report.witnessed, report.notes.len(), report.fault), (3, 1, None));
    // Removed once more.
    log.record(&released).unwrap();
    witnesses.extend(known(&log).split_off(3));
    let report = verify(&log, &witnesses).unwrap();
    assert_eq!((report.witnessed, report.notes.len(), report.fault), (4, 1, None));
    rewrite(second.path(), |lines| lines.truncate(2));
    assert_eq!(fault(&verify(&log, &witnesses).unwrap()), Some((FaultKind::Removed, 2)));
}

#[test]
fn a_record_that_a_power_cut_tore_is_set_aside_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let (log, witnesses) = log_of(dir.path(), 3);
    let whole = fs::read(&path).unwrap();
    let two = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
    for end in two..=whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let torn = end > two && end < whole.len() - 1;
        let seen = fault(&verify(&log, &[]).unwrap());
        assert_eq!(seen, torn.then_some((FaultKind::Torn, 3)), "cut at {end}");
        let n = log.record(&entry("after")).unwrap();
        let report = verify(&log, &witnesses[..2]).unwrap();
        assert_eq!(report.fault, None, "cut at {end}");
        // The torn one is replaced by the record that says so; a whole one stays, its end is added.
        let expected = if end == two { 3 } else { 4 };
        assert_eq!((n, report.last, report.notes.len()), (expected, expected, usize::from(torn)));
        let text = fs::read(&path).unwrap();
        assert!(text.starts_with(&whole[..end]), "nothing is cut off");
    }
    // What the file system left empty.
    fs::write(&path, [&whole[..two], &[0; 300]].concat()).unwrap();
    assert_eq!(fault(&verify(&log, &[]).unwrap()), Some((FaultKind::Torn, 3)));
    assert_eq!(log.record(&entry("after")).unwrap(), 4);
    assert_eq!(verify(&log, &witnesses[..2]).unwrap().fault, None);
}

#[test]
fn a_last_record_that_was_changed_is_not_taken_for_torn() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = log_of(dir.path(), 3);
    rewrite(dir.path(), |lines| lines[2] = lines[2].replace("ann", "bob"));
    assert_eq!(log.record(&entry("after")).unwrap(), 4);
    assert_eq!(fault(&verify(&log, &[]).unwrap()), Some((FaultKind::Changed, 3)));
    // A text in a record's place blocks nothing either.
    fs::write(dir.path().join("audit.log"), "hello\n").unwrap();
    assert_eq!(log.record(&entry("after")).unwrap(), 2);
}

#[test]
fn the_chain_goes_on_over_files() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::below(dir.path()).with_file_max(1000);
    for n in 1..=40 {
        assert_eq!(log.record(&entry("x")).unwrap(), n);
    }
    let names = fs::read_dir(dir.path()).unwrap();
    let names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.contains(&"audit.log.9".to_owned()), "{names:?}");
    let report = verify(&log, &known(&log)).unwrap();
    assert_eq!((report.records, report.fault), (40, None));
    fs::remove_file(dir.path().join("audit.log.2")).unwrap();
    let report = verify(&log, &[]).unwrap();
    let fault = report.fault.unwrap();
    assert_eq!((fault.kind, fault.line), (FaultKind::Removed, 1));
    assert!(fault.file.ends_with("audit.log.3"), "{fault:?}");
}

#[test]
fn show_gives_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = log_of(dir.path(), 3);
    let other = Entry { what: What::Stop, object: "a b".into(), ..entry("") };
    log.record(&other).unwrap();
    let with = |filter: Filter| {
        read(&log, &filter).unwrap().into_iter().map(|record| record.n).collect::<Vec<_>>()
    };
    assert_eq!(with(Filter { lines: Some(2), ..Filter::default() }), [3, 4]);
    assert_eq!(with(Filter { what: Some("stop".into()), ..Filter::default() }), [4]);
    assert_eq!(with(Filter { object: Some("b".into()), ..Filter::default() }), [4]);
    assert_eq!(with(Filter { since: Some(jiff::Timestamp::MAX), ..Filter::default() }), [0; 0]);
}

/// Run by the test below, as other processes.
#[test]
#[ignore = "a part of several_processes_write_at_the_same_time"]
fn writer() {
    let dir = std::env::var_os("FLOCK_TEST_AUDIT").expect("run by another test");
    let log = Log::below(Path::new(&dir));
    for _ in 0..50 {
        log.record(&entry("parallel")).unwrap();
    }
}

#[test]
fn several_processes_write_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "audit::tests::writer"])
            .env("FLOCK_TEST_AUDIT", dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let children = [start(), start(), start()];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let report = verify(&Log::below(dir.path()), &[]).unwrap();
    assert_eq!((report.records, report.fault), (150, None));
}
