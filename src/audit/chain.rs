//! One line of the audit log: a JSON object whose last key is the hash of all that stands before it.
//!
//! `{"n":2,"at":"…","who":{…},"what":"…","object":"…","detail":"…","prev":"<hash of record 1>"` is
//! hashed with SHA-256, and `,"hash":"<that>"}` is added. So a shell can check a line as well:
//! `printf %s "${line%,\"hash\":*}" | sha256sum`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::{Entry, Who};

/// What the first record names as the one before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What stands between the content and its hash.
const SEAM: &[u8] = b",\"hash\":\"";
/// How long the end of a line is: the hash and what stands around it.
const END: usize = SEAM.len() + GENESIS.len() + 2;
/// The longest name, object and detail, in bytes of text.
const NAME_MAX: usize = 128;
const OBJECT_MAX: usize = 512;
const DETAIL_MAX: usize = 2048;

/// One record as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number; the first is 1, none is left out.
    pub n: u64,
    /// When, by this host's clock.
    pub at: Timestamp,
    /// Who.
    pub who: Who,
    /// What: [`crate::audit::What::word`], or a word of a later version.
    pub what: String,
    /// To what.
    pub object: String,
    /// More about it.
    pub detail: String,
    /// The hash of the record before.
    pub prev: String,
    /// The hash of this one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl Record {
    /// The record that follows the one with number `n` and hash `prev`, and its line without the
    /// line's end.
    ///
    /// # Errors
    /// When it has no JSON form, which no text can cause.
    pub fn after(n: u64, prev: &str, entry: &Entry) -> Result<(Self, Vec<u8>), serde_json::Error> {
        let who = Who { name: bounded(&entry.who.name, NAME_MAX), ..entry.who.clone() };
        let mut record = Self {
            n: n + 1,
            at: Timestamp::now(),
            who,
            what: entry.what.word().to_owned(),
            object: bounded(&entry.object, OBJECT_MAX),
            detail: bounded(&entry.detail, DETAIL_MAX),
            prev: prev.to_owned(),
            hash: String::new(),
        };
        let mut line = serde_json::to_vec(&record)?;
        // The closing brace comes after the hash.
        line.pop();
        record.hash = hash(&line);
        line.extend_from_slice(SEAM);
        line.extend_from_slice(record.hash.as_bytes());
        line.extend_from_slice(b"\"}");
        Ok((record, line))
    }

    /// Reads a line without its end.
    #[must_use]
    pub fn parse(line: &[u8]) -> Parsed {
        let Ok(record) = serde_json::from_slice::<Self>(line) else { return Parsed::Foreign };
        let whole = has_an_end(line) && record.hash == hash(&line[..line.len() - END]);
        match whole {
            true => Parsed::Whole(record),
            false => Parsed::Changed(record),
        }
    }
}

/// Whether a line ends as a whole record does: with a hash, right or wrong.
pub fn has_an_end(line: &[u8]) -> bool {
    let end = line.len().checked_sub(END).map(|at| &line[at..]);
    end.is_some_and(|end| end.starts_with(SEAM) && end.ends_with(b"\"}"))
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A record that matches its hash.
    Whole(Record),
    /// A record that does not.
    Changed(Record),
    /// No record.
    Foreign,
}

/// SHA-256 in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// At most `max` bytes of a text, and how much was cut.
fn bounded(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{} … ({} bytes more)", &text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{How, What};

    fn entry(detail: &str) -> Entry {
        let who = Who { uid: 1000, name: "ann".into(), how: How::Socket };
        Entry::new(who, What::TaskSend, "agent-1", detail)
    }

    #[test]
    fn a_line_is_a_record_and_every_changed_byte_shows() {
        let (record, line) = Record::after(6, GENESIS, &entry("x\"\n\u{1b}")).unwrap();
        assert_eq!(Record::parse(&line), Parsed::Whole(record.clone()));
        assert_eq!(record.n, 7);
        assert!(!line.contains(&b'\n') && !line.contains(&0x1b));
        for at in 0..line.len() {
            let mut bad = line.clone();
            bad[at] ^= 1;
            assert!(!matches!(Record::parse(&bad), Parsed::Whole(_)), "byte {at}");
        }
        for end in 0..line.len() {
            assert_eq!(Record::parse(&line[..end]), Parsed::Foreign);
        }
    }

    #[test]
    fn a_long_detail_is_cut_and_says_so() {
        let (record, line) = Record::after(0, GENESIS, &entry(&"ä".repeat(5000))).unwrap();
        assert!(record.detail.ends_with("… (7952 bytes more)"), "{}", record.detail);
        assert!(line.len() < 4096);
        // Text that JSON has to escape is the longest.
        let (_, line) = Record::after(0, GENESIS, &entry(&"\u{1}".repeat(5000))).unwrap();
        assert!(line.len() < 16 * 1024, "{}", line.len());
    }
}
