//! Commands without characters that systemd before 255 writes down wrongly.
//!
//! A daemon-reload makes a transient unit from the file that systemd keeps of it. Until 254 `;`, `$`
//! and `` ` `` of a command are written there with an escape that the reader refuses: the agent would
//! run on and never start again. There the words are spelled, and `flock-agent` reads them.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The first word of `flock-agent` that is to read the others and become what they say.
pub const ROLE: &str = "spelled";

/// Whether systemd before 255 would lose this command.
#[must_use]
pub fn is_needed(words: &[String]) -> bool {
    words.iter().any(|word| word.contains([';', '$', '`']))
}

/// The word in characters that every systemd keeps: the others as `%` and two digits.
#[must_use]
pub fn spell(word: &str) -> String {
    let mut spelled = String::with_capacity(word.len());
    for c in word.chars() {
        match c {
            ';' | '$' | '`' | '%' => {
                let _ = write!(spelled, "%{:02x}", u32::from(c));
            }
            c => spelled.push(c),
        }
    }
    spelled
}

/// What a spelled word says; `None` when it is none.
#[must_use]
pub fn read(spelled: &OsStr) -> Option<OsString> {
    let mut bytes = spelled.as_bytes().iter().copied();
    let mut word = Vec::with_capacity(spelled.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            word.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        word.push(u8::from_str_radix(digits, 16).ok()?);
    }
    Some(OsString::from_vec(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_comes_back_and_nothing_unsafe_is_written() {
        for word in ["", "plain", "a;b", "$HOME ${X} $$", "`id`", "100%", "%24", "%", "ä;\n\"\\"] {
            let spelled = spell(word);
            assert!(!is_needed(std::slice::from_ref(&spelled)), "{spelled}");
            assert_eq!(read(OsStr::new(&spelled)).unwrap(), word);
        }
        assert_eq!(spell("sleep 1; echo $X"), "sleep 1%3b echo %24X");
        for bad in ["%", "%2", "%zz", "a%"] {
            assert_eq!(read(OsStr::new(bad)), None, "{bad}");
        }
    }
}
