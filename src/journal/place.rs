//! Where an entry stands in the journal, and which of two comes later.

use std::collections::BTreeMap;

/// A place in the journal, read from journald's cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cursor as journald writes it.
    cursor: String,
    /// Which numbering.
    numbering: String,
    number: u64,
    /// Which boot, and when in it, in microseconds.
    boot: String,
    monotonic: u64,
    /// Microseconds by the clock.
    realtime: u64,
    /// A hash of what the entry says.
    content: String,
}

impl Place {
    /// Reads a cursor; `None` for a text that journald did not write, which is never given to a
    /// program.
    #[must_use]
    pub fn parse(cursor: &str) -> Option<Self> {
        let parts: Option<BTreeMap<&str, &str>> =
            cursor.split(';').map(|part| part.split_once('=')).collect();
        let parts = parts?;
        let hex = |name: &str| {
            let value = *parts.get(name)?;
            let plain = !value.is_empty() && value.bytes().all(|c| c.is_ascii_hexdigit());
            plain.then(|| value.to_owned())
        };
        let number = |name: &str| u64::from_str_radix(&hex(name)?, 16).ok();
        Some(Self {
            numbering: hex("s")?,
            number: number("i")?,
            boot: hex("b")?,
            monotonic: number("m")?,
            realtime: number("t")?,
            content: hex("x")?,
            cursor: cursor.to_owned(),
        })
    }

    /// As journald writes it.
    #[must_use]
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    /// Whether both are the same entry. An entry that was copied from `/run` to `/var` has another
    /// number there.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same_numbering = self.numbering == other.numbering;
        (self.number == other.number || !same_numbering)
            && self.boot == other.boot
            && self.monotonic == other.monotonic
            && self.content == other.content
    }

    /// Whether this entry was written after `other`, when the journal itself cannot be asked: by
    /// journald's own numbers, which neither a set clock nor a new file disturbs.
    #[must_use]
    pub fn is_after(&self, other: &Self, this_boot: &str) -> bool {
        if self.boot != other.boot {
            // A power cut can take back what journald had not yet on disk, and its numbers with it;
            // the clock of a machine without a battery begins anew.
            return self.boot == this_boot || self.realtime > other.realtime;
        }
        if self.numbering == other.numbering && self.number != other.number {
            return self.number > other.number;
        }
        self.monotonic > other.monotonic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(s: &str, i: u64, b: &str, m: u64, t: u64) -> Place {
        Place::parse(&format!("s={s};i={i:x};b={b};m={m:x};t={t:x};x=abc")).unwrap()
    }

    #[test]
    fn only_what_journald_writes_is_a_place() {
        let real = "s=739ad463348b4ceca5a9e69c95a3c93f;i=4ece7;b=6c7c6013a8d74f0a9d0a5e5b0b2f5b3c;m=4fc72436e;t=4c508a72423d9;x=d3e5610681098c10";
        assert_eq!(Place::parse(real).unwrap().cursor(), real);
        for bad in ["", "s=1", "--file=/etc/shadow", &real.replace("s=7", "s=/"), &real[..40]] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_entry_is_known_again_and_order_needs_no_clock() {
        let one = place("a", 5, "b1", 100, 1000);
        assert!(one.is(&place("a", 5, "b1", 100, 1000)));
        assert!(one.is(&place("c", 9, "b1", 100, 1000)), "copied to another file");
        assert!(!one.is(&place("a", 6, "b1", 100, 1000)), "the same text at the same time");
        assert!(!one.is(&place("a", 5, "b2", 100, 1000)), "a number that was given again");
        let after = |other: &Place| other.is_after(&one, "b2");
        assert!(after(&place("a", 6, "b1", 100, 900)), "the clock was set back");
        assert!(!after(&place("a", 4, "b1", 100, 2000)));
        assert!(after(&place("c", 1, "b1", 101, 900)));
        assert!(after(&place("a", 3, "b2", 1, 2)), "this boot, although its clock began anew");
        assert!(!after(&place("a", 9, "b0", 1, 2)) && after(&place("a", 9, "b3", 1, 2000)));
        assert!(!after(&one));
    }
}
