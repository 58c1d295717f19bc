//! Points in time as people write them: `-1h`, `2d`, `today`, `2026-11-21 10:00`, RFC 3339.

use jiff::civil::{Date, DateTime, Time};
use jiff::{Span, Timestamp, Zoned};

/// What is said when a text is no time.
const MAY: &str = "use for example 2h, 3d, today, 10:00, 2026-11-21 or \"2026-11-21 10:00\"";

/// A point in time, for the command line: in the time zone of whoever asks.
///
/// # Errors
/// When the text is no time.
pub fn point(text: &str) -> Result<Timestamp, String> {
    at(text, &Zoned::now()).ok_or_else(|| MAY.to_owned())
}

fn at(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.trim();
    let zone = now.time_zone();
    let zoned = |when: DateTime| Some(when.to_zoned(zone.clone()).ok()?.timestamp());
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return Some(now.start_of_day().ok()?.timestamp()),
        "yesterday" => return Some(now.yesterday().ok()?.start_of_day().ok()?.timestamp()),
        _ => {}
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant);
    }
    if let Ok(date) = text.parse::<Date>() {
        // Also what has a time after it.
        let whole = text.parse::<DateTime>().unwrap_or_else(|_| date.at(0, 0, 0, 0));
        return zoned(whole);
    }
    if let Ok(time) = text.parse::<Time>() {
        return zoned(now.date().to_datetime(time));
    }
    let age = text.strip_prefix('-').unwrap_or(text);
    let age: Span = age.strip_suffix(" ago").unwrap_or(age).parse().ok()?;
    (age.is_positive()).then(|| now.checked_sub(age).ok())?.map(|past| past.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_times_in_many_ways() {
        let now: Zoned = "2026-11-21T12:30:00+01:00[Europe/Berlin]".parse().unwrap();
        let found = |text: &str| at(text, &now).map(|time| time.to_string());
        let good = [
            ("now", "2026-11-21T11:30:00Z"),
            ("today", "2026-11-20T23:00:00Z"),
            ("yesterday", "2026-11-19T23:00:00Z"),
            ("-1h", "2026-11-21T10:30:00Z"),
            ("90min", "2026-11-21T10:00:00Z"),
            ("2d", "2026-11-19T11:30:00Z"),
            ("1h 30m ago", "2026-11-21T10:00:00Z"),
            ("10:00", "2026-11-21T09:00:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-11-20 10:00", "2026-11-20T09:00:00Z"),
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"),
        ];
        for (text, expected) in good {
            assert_eq!(found(text).as_deref(), Some(expected), "{text}");
        }
        let long = "9".repeat(10_000);
        for bad in ["", "-", "soon", "0s", "--1h", "999999y", "2026-13-01", "\u{1b}[2J", &long] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }
}
