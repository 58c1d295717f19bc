//! Small helpers for text that people read.

use std::fmt::Write as _;

/// `text` with every character that could steer a terminal or break a line made visible.
///
/// Tabs become blanks. Text that came from an agent goes through here before it is shown.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            c if c.is_control() || is_invisible(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Characters that reorder or hide the text around them (Unicode bidi and zero-width controls).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A number of bytes for people: `256 MiB`, `1.5 GiB`, `17 B`.
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut left = number;
    let mut rest = 0;
    while left >= 1024 && unit + 1 < UNITS.len() {
        rest = left % 1024;
        left /= 1024;
        unit += 1;
    }
    let tenth = rest * 10 / 1024;
    if tenth == 0 {
        format!("{left} {}", UNITS[unit])
    } else {
        format!("{left}.{tenth} {}", UNITS[unit])
    }
}

/// A span of seconds for people: `42s`, `3min 5s`, `2h 10min`, `4d 3h`.
#[must_use]
pub fn span(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let two = |big: u64, unit: &str, small: u64, rest: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit} {small}{rest}"),
    };
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => two(m, "min", s, "s"),
        (0, ..) => two(h, "h", m, "min"),
        _ => two(d, "d", h, "h"),
    }
}

/// `json` (compact, one line) with every character that could steer a terminal as a `\u` escape.
///
/// JSON itself leaves DEL, the C1 controls and the bidi controls as they are.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_control() || is_invisible(c) {
            // All of them are in the basic plane, so one unit is the character.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_cannot_reach_a_terminal() {
        let out = printable("a\x1b]0;x\x07b\n\u{202e}c\u{9b}");
        assert!(!out.chars().any(|c| c.is_control() || is_invisible(c)), "{out}");
        assert!(out.starts_with("a\\u{1b}]0;x"));
        assert_eq!(printable("grün 漢"), "grün 漢");
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(268_435_456), "256 MiB");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!(span(59), "59s");
        assert_eq!(span(7_800), "2h 10min");
        assert_eq!(span(90_000), "1d 1h");
        assert_eq!(
            (span(60), span(3_600), span(86_400)),
            ("1min".into(), "1h".into(), "1d".into())
        );
    }

    #[test]
    fn json_stays_json_and_harmless() {
        let text = "a\u{9b}b\u{202e}c\u{7f}\x1bd";
        let json = printable_json(&serde_json::to_string(text).unwrap());
        assert!(!json.chars().any(|c| c.is_control() || is_invisible(c)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
