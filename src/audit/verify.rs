//! Checks the whole chain over all files, and what the journal knows against it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::chain::{GENESIS, Parsed, Record};
use crate::audit::log::{aside_detail, kind_of};
use crate::audit::witness::Witness;
use crate::audit::{AuditError, Log, What};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many records form the chain, up to the first fault.
    pub records: u64,
    /// The number of the last one.
    pub last: u64,
    /// When the first was written.
    pub from: Option<Timestamp>,
    /// When the last was written.
    pub to: Option<Timestamp>,
    /// How many of them the journal knows as well.
    pub witnessed: u64,
    /// What is no fault and good to know.
    pub notes: Vec<String>,
    /// The first fault; none means that the log is whole.
    pub fault: Option<Fault>,
}

/// Where the log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// In which file.
    pub file: PathBuf,
    /// At which line, from 1.
    pub line: u64,
    /// What was done.
    pub kind: FaultKind,
    /// For people.
    pub text: String,
}

/// What was done to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A record is not the one that was written.
    Changed,
    /// Records are missing.
    Removed,
    /// A line stands there that was not written.
    Inserted,
    /// Records stand in another order.
    Reordered,
    /// The last record was not written to its end, and none came after it yet.
    Torn,
}

impl FaultKind {
    /// The word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Inserted => "inserted",
            Self::Reordered => "reordered",
            Self::Torn => "torn",
        }
    }
}

/// A place for people.
#[derive(Clone, Debug)]
struct Place {
    file: PathBuf,
    line: u64,
}

impl Place {
    fn fault(&self, kind: FaultKind, text: impl Into<String>) -> Fault {
        Fault { file: self.file.clone(), line: self.line, kind, text: text.into() }
    }
}

/// Checks a log against itself and against what the journal knows. Ask the journal first: a record
/// is on disk before the journal is told.
///
/// # Errors
/// When a file cannot be read; what is wrong inside is the report's.
pub fn verify(log: &Log, witnesses: &[Witness]) -> Result<Report, AuditError> {
    let lines = read(log)?;
    let mut walk = Walk::new(log, &lines);
    for (place, text) in &lines {
        if let Err(fault) = walk.step(place, text) {
            walk.report.fault = Some(fault);
            break;
        }
    }
    if walk.report.fault.is_none() {
        walk.report.fault = walk.end().or_else(|| walk.compare(witnesses));
    }
    Ok(walk.report)
}

/// Every line with its place, without its end; an unfinished last line keeps the lack of it in mind
/// by what it is.
fn read(log: &Log) -> Result<Vec<(Place, Vec<u8>)>, AuditError> {
    let mut lines = Vec::new();
    for (path, file, length) in log.files()? {
        read_file(&path, file, length, &mut lines).map_err(|cause| AuditError::System {
            step: "read",
            path: path.clone(),
            cause,
        })?;
    }
    Ok(lines)
}

fn read_file(
    path: &Path,
    file: File,
    length: u64,
    lines: &mut Vec<(Place, Vec<u8>)>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(file.take(length));
    for line in 1.. {
        let mut text = Vec::new();
        if reader.read_until(b'\n', &mut text)? == 0 {
            break;
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        lines.push((Place { file: path.to_owned(), line }, text));
    }
    Ok(())
}

/// How far the chain was followed.
struct Walk {
    report: Report,
    hash: String,
    /// The last record's place.
    at: Place,
    /// Lines behind it that are no records.
    aside: Vec<(Place, Vec<u8>)>,
    /// Where each number stands first; the hashes of those that were followed.
    places: BTreeMap<u64, u64>,
    hashes: BTreeMap<u64, (String, Place)>,
    /// Lines seen, over all files.
    index: u64,
}

impl Walk {
    fn new(log: &Log, lines: &[(Place, Vec<u8>)]) -> Self {
        let mut places = BTreeMap::new();
        for ((_, text), index) in lines.iter().zip(1..) {
            if let Parsed::Whole(record) = Record::parse(text) {
                places.entry(record.n).or_insert(index);
            }
        }
        Self {
            report: Report::default(),
            hash: GENESIS.to_owned(),
            at: Place { file: log.current(), line: 0 },
            aside: Vec::new(),
            places,
            hashes: BTreeMap::new(),
            index: 0,
        }
    }

    fn step(&mut self, place: &Place, text: &[u8]) -> Result<(), Fault> {
        self.index += 1;
        let record = match Record::parse(text) {
            Parsed::Whole(record) => record,
            Parsed::Changed(_) | Parsed::Foreign => {
                self.aside.push((place.clone(), text.to_vec()));
                return Ok(());
            }
        };
        self.accept_aside(&record)?;
        self.links(place, &record)?;
        self.report.records += 1;
        self.report.last = record.n;
        self.report.from.get_or_insert(record.at);
        self.report.to = Some(record.at);
        self.hashes.insert(record.n, (record.hash.clone(), place.clone()));
        self.hash = record.hash;
        self.at = place.clone();
        Ok(())
    }

    /// Lines that are no records are right only if the next record says so, and of a torn one.
    fn accept_aside(&mut self, record: &Record) -> Result<(), Fault> {
        let aside = std::mem::take(&mut self.aside);
        let Some((place, first)) = aside.first() else { return Ok(()) };
        let rest = join(&aside);
        let torn = kind_of(&rest) == What::LogTorn
            && record.what == What::LogTorn.word()
            && record.detail == aside_detail(&rest);
        match torn {
            true => {
                let (file, line) = (place.file.display(), place.line);
                self.report.notes.push(format!(
                    "{file}:{line}: a record that was not written to its end was set aside, as \
                     after a power cut"
                ));
                Ok(())
            }
            false => Err(not_a_record(place, first)),
        }
    }

    fn links(&self, place: &Place, record: &Record) -> Result<(), Fault> {
        let expected = self.report.last + 1;
        let n = record.n;
        if n > expected {
            return Err(match self.places.get(&expected) {
                Some(index) if *index > self.index => place.fault(
                    FaultKind::Reordered,
                    format!("record {n} stands before record {expected}"),
                ),
                _ => place.fault(
                    FaultKind::Removed,
                    match n - expected {
                        1 => format!("record {expected} is missing before this one"),
                        _ => format!("records {expected} to {} are missing before this", n - 1),
                    },
                ),
            });
        }
        if n < expected {
            let text = format!("a second record {n} stands after record {}", self.report.last);
            return Err(place.fault(FaultKind::Inserted, text));
        }
        if record.prev != self.hash {
            let (at, text) = match self.report.last {
                0 => (place, "the first record names one before it".to_owned()),
                last => (
                    &self.at,
                    format!("record {last} is not the one that record {n} was written after"),
                ),
            };
            return Err(at.fault(FaultKind::Changed, text));
        }
        Ok(())
    }

    /// What stands behind the last record.
    fn end(&self) -> Option<Fault> {
        let (place, first) = self.aside.first()?;
        Some(match kind_of(&join(&self.aside)) {
            What::LogTorn => place.fault(
                FaultKind::Torn,
                "the last record was not written to its end, as after a power cut; the next one \
                 sets it aside",
            ),
            _ => not_a_record(place, first),
        })
    }

    /// After the package was purged a new log begins, and the journal may still know the old one.
    /// What was told before a removal, and nothing of which is in this log, counts for nothing here.
    fn of_this_log<'a>(&mut self, witnesses: &'a [Witness]) -> &'a [Witness] {
        let is_here = |witness: &Witness| {
            self.hashes.get(&witness.n).is_some_and(|(hash, _)| *hash == witness.hash)
        };
        let first = witnesses.iter().position(is_here).unwrap_or(witnesses.len());
        let removed = witnesses[..first].iter().rposition(|witness| witness.released);
        let (before, of_this) = witnesses.split_at(removed.map_or(0, |at| at + 1));
        if before.is_empty() {
            return witnesses;
        }
        self.report.notes.push(format!(
            "the journal also knows a log from before flock was removed, {} records of it",
            before.len()
        ));
        of_this
    }

    /// The journal may know less (it is bounded), never other records and never more.
    fn compare(&mut self, witnesses: &[Witness]) -> Option<Fault> {
        let last = self.report.last;
        let witnesses = self.of_this_log(witnesses);
        for witness in witnesses {
            match self.hashes.get(&witness.n) {
                Some((hash, _)) if *hash == witness.hash => self.report.witnessed += 1,
                Some((_, place)) => {
                    let n = witness.n;
                    return Some(place.fault(
                        FaultKind::Changed,
                        format!("the journal knows another record {n}: the log was written anew"),
                    ));
                }
                None => {}
            }
        }
        let newest = witnesses.iter().map(|witness| witness.n).max().filter(|n| *n > last)?;
        let text = match last {
            0 => format!("the journal knows record {newest}, and the log has none"),
            _ => format!("the journal knows record {newest}, the log ends at {last}"),
        };
        Some(self.at.fault(FaultKind::Removed, text))
    }
}

fn join(lines: &[(Place, Vec<u8>)]) -> Vec<u8> {
    let texts: Vec<&[u8]> = lines.iter().map(|(_, text)| text.as_slice()).collect();
    texts.join(&b'\n')
}

fn not_a_record(place: &Place, text: &[u8]) -> Fault {
    match Record::parse(text) {
        Parsed::Changed(record) => place
            .fault(FaultKind::Changed, format!("record {} does not match its own hash", record.n)),
        _ => place.fault(FaultKind::Inserted, "this line is no record"),
    }
}
