//! Reads the audit log for people. It shows what is there; `verify` says whether that is right.

use std::io::{BufRead as _, BufReader, Read as _};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::chain::{Parsed, Record};
use crate::audit::{AuditError, Log};

/// Which records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// This was done.
    pub what: Option<String>,
    /// To this agent or other object.
    pub object: Option<String>,
    /// At most so many, the newest.
    pub lines: Option<u32>,
}

impl Filter {
    fn takes(&self, record: &Record) -> bool {
        let names = |object: &String| {
            record.object.split([' ', ',']).any(|word| word == object) || record.who.name == *object
        };
        self.since.is_none_or(|since| record.at >= since)
            && self.what.as_ref().is_none_or(|what| record.what == *what)
            && self.object.as_ref().is_none_or(names)
    }
}

/// The records that the filter takes, the oldest first. Lines that are no records are left out.
///
/// # Errors
/// When a file cannot be read.
pub fn read(log: &Log, filter: &Filter) -> Result<Vec<Record>, AuditError> {
    let most = filter.lines.map_or(usize::MAX, |lines| lines as usize);
    let mut found = std::collections::VecDeque::new();
    for (path, file, length) in log.files()? {
        let fault = |cause| AuditError::System { step: "read", path: path.clone(), cause };
        for line in BufReader::new(file.take(length)).split(b'\n') {
            let (Parsed::Whole(record) | Parsed::Changed(record)) =
                Record::parse(&line.map_err(fault)?)
            else {
                continue;
            };
            if filter.takes(&record) {
                found.push_back(record);
                if found.len() > most {
                    found.pop_front();
                }
            }
        }
    }
    Ok(found.into())
}
