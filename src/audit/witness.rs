//! The journal as a second witness: each record's number and hash, stamped by journald.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::audit::chain::Record;
use crate::audit::{AuditError, What};
use crate::host::journald;

/// The program that reads the journal.
const JOURNALCTL: &str = "/usr/bin/journalctl";
/// Marks these entries; made for this with `journalctl --new-id128`.
const MESSAGE_ID: &str = "6b1c3f0a54c94b0f9a3d0e7f2d8c41aa";

/// A record that the journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Its number.
    pub n: u64,
    /// Its hash.
    pub hash: String,
    /// Whether it says that flock was removed: after a purge another log begins.
    pub released: bool,
}

/// Tells the journal of a record. A journal that does not answer is not waited for: the record is on
/// disk, and the next one's witness covers it by the chain.
pub fn send(record: &Record) {
    let who = &record.who;
    let fields = [
        ("MESSAGE", format!("audit {}: {} {}", record.n, record.what, record.object)),
        ("MESSAGE_ID", MESSAGE_ID.to_owned()),
        ("PRIORITY", "6".to_owned()),
        ("SYSLOG_IDENTIFIER", "flock-audit".to_owned()),
        ("FLOCK_AUDIT_N", record.n.to_string()),
        ("FLOCK_AUDIT_HASH", record.hash.clone()),
        ("FLOCK_AUDIT_WHAT", record.what.clone()),
        ("FLOCK_AUDIT_OBJECT", record.object.clone()),
        ("FLOCK_AUDIT_UID", who.uid.to_string()),
        ("FLOCK_AUDIT_NAME", who.name.clone()),
    ];
    let _ = journald::send(&fields);
}

/// All records that the journal knows, in its order. Only what root wrote counts: an agent can write
/// such fields as well, and journald stamps whose they are.
///
/// # Errors
/// When journalctl cannot be run or fails.
pub fn witnesses() -> Result<Vec<Witness>, AuditError> {
    let fault = |error: std::io::Error| AuditError::Journal(format!("{JOURNALCTL}: {error}"));
    let mut child = Command::new(JOURNALCTL)
        .args(["--output=json", "--quiet", "--no-pager", "--output-fields"])
        .arg("FLOCK_AUDIT_N,FLOCK_AUDIT_HASH,FLOCK_AUDIT_WHAT")
        .args([format!("MESSAGE_ID={MESSAGE_ID}"), "_UID=0".to_owned()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(fault)?;
    let mut found = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            found.extend(parse(&line.map_err(fault)?));
        }
    }
    let status = child.wait().map_err(fault)?;
    // Without a match journalctl says 1 and nothing else.
    match status.success() || found.is_empty() && status.code() == Some(1) {
        true => Ok(found),
        false => Err(AuditError::Journal(format!("{JOURNALCTL}: {status}"))),
    }
}

fn parse(line: &str) -> Option<Witness> {
    let fields: Value = serde_json::from_str(line).ok()?;
    let n = fields.get("FLOCK_AUDIT_N")?.as_str()?.parse().ok()?;
    let what = fields.get("FLOCK_AUDIT_WHAT")?.as_str()?;
    let hash = fields.get("FLOCK_AUDIT_HASH")?.as_str()?.to_owned();
    Some(Witness { n, hash, released: what == What::Released.word() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_with_both_fields_are_witnesses() {
        let good = r#"{"FLOCK_AUDIT_N":"7","FLOCK_AUDIT_HASH":"ab","FLOCK_AUDIT_WHAT":"up","__CURSOR":"x"}"#;
        assert_eq!(parse(good), Some(Witness { n: 7, hash: "ab".into(), released: false }));
        assert!(parse(&good.replace("up", "released")).unwrap().released);
        for bad in ["", "{}", &good.replace("\"7\"", "[\"7\",\"8\"]")] {
            assert_eq!(parse(bad), None);
        }
    }
}
