//! How one value is read: the kinds of value that several keys share.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::cite::{Placed, Report, shown};
use super::file::{Table, Value, either, nearest};
use super::rules::quantities;
use crate::text;

/// The most entries of one list or table.
pub(super) const LIST_MAX: usize = 256;

/// A value without its place.
pub(super) fn plain<T>(placed: Option<Placed<T>>) -> Option<T> {
    placed.map(|placed| placed.value)
}

/// Reads text by a rule; what it refuses is quoted with the reason.
pub(super) fn by_rule<T>(
    value: &Value<'_>,
    report: &mut Report<'_>,
    may: &str,
    rule: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let text = value.text(report, may)?;
    match rule(text) {
        Ok(read) => Some(read),
        Err(why) => {
            value.refuse(report, format!("{} is refused: {why}", shown(text)), may);
            None
        }
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    value: &Value<'_>,
    report: &mut Report<'_>,
    words: &[(&str, T)],
) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let may = either(&quoted.iter().map(String::as_str).collect::<Vec<_>>());
    let text = value.text(report, &may)?;
    let found = words.iter().find(|(name, _)| *name == text);
    if found.is_none() {
        let may = nearest(text, &names).map_or(may, |near| format!("did you mean {near:?}?"));
        value.refuse(report, format!("{} is not known", shown(text)), &may);
    }
    found.map(|(_, choice)| *choice)
}

/// Reads every member of a list by a rule; none if one of them is refused.
pub(super) fn list<T>(
    value: &Value<'_>,
    report: &mut Report<'_>,
    may: &str,
    mut rule: impl FnMut(&Value<'_>, &mut Report<'_>) -> Option<T>,
) -> Option<Vec<Placed<T>>> {
    let members = value.array(report, may)?;
    if members.len() > LIST_MAX {
        value.refuse(
            report,
            format!("it has {} entries", members.len()),
            &format!("at most {LIST_MAX} entries"),
        );
        return None;
    }
    let read = |member: &Value<'_>| {
        rule(member, report).map(|value| Placed { value, at: member.at.clone() })
    };
    // All are read before one that is bad ends it.
    let read: Vec<Option<Placed<T>>> = members.iter().map(read).collect();
    read.into_iter().collect()
}

/// A list in which nothing stands twice.
pub(super) fn set<T: PartialEq>(
    value: &Value<'_>,
    report: &mut Report<'_>,
    may: &str,
    rule: impl FnMut(&Value<'_>, &mut Report<'_>) -> Option<T>,
) -> Option<Vec<Placed<T>>> {
    let items = list(value, report, may, rule)?;
    let twice = |(n, item): &(usize, &Placed<T>)| {
        items[..*n].iter().any(|before| before.value == item.value)
    };
    match items.iter().enumerate().find(twice) {
        Some((n, item)) => {
            let message = format!("{}[{n}]: this stands in the list already", value.path);
            report.fault(&item.at, message, "only once");
            None
        }
        None => Some(items),
    }
}

/// `value`, if it lies in the range.
pub(super) fn in_range<T: PartialOrd>(value: T, range: &RangeInclusive<T>) -> Result<T, String> {
    if range.contains(&value) { Ok(value) } else { Err("it is out of range".to_owned()) }
}

/// A number of bytes, as text with a unit or as a bare integer.
pub(super) fn size(
    table: &mut Table<'_>,
    key: &'static str,
    report: &mut Report<'_>,
    range: RangeInclusive<u64>,
) -> Option<u64> {
    let [from, to] = [*range.start(), *range.end()].map(|n| text::bytes(n).replace(' ', ""));
    let may = format!("a size from {from} to {to}, such as \"256MiB\"");
    plain(table.read(key, report, |value, report| {
        if value.is_integer() {
            let bound = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            let range = bound(*range.start())..=bound(*range.end());
            return value.integer(report, range, &may)?.try_into().ok();
        }
        by_rule(value, report, &may, |text| in_range(quantities::size(text)?, &range))
    }))
}

/// A whole number.
pub(super) fn count<T: TryFrom<i64>>(
    table: &mut Table<'_>,
    key: &'static str,
    report: &mut Report<'_>,
    range: RangeInclusive<i64>,
) -> Option<T> {
    let may = format!("a whole number from {} to {}", range.start(), range.end());
    plain(
        table
            .read(key, report, |value, report| value.integer(report, range, &may)?.try_into().ok()),
    )
}

/// A duration.
pub(super) fn span(
    table: &mut Table<'_>,
    key: &'static str,
    report: &mut Report<'_>,
    range: RangeInclusive<Duration>,
) -> Option<Placed<Duration>> {
    let [from, to] = [range.start(), range.end()].map(written);
    let may = format!("a duration from {from} to {to}, such as \"30s\" or \"10min\"");
    table.read(key, report, |value, report| {
        by_rule(value, report, &may, |text| in_range(quantities::duration(text)?, &range))
    })
}

/// A duration as it may be written in the configuration.
fn written(span: &Duration) -> String {
    match (span.as_secs(), span.subsec_millis()) {
        (days, 0) if days > 0 && days % 86_400 == 0 => format!("{}d", days / 86_400),
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}ms", span.as_millis()),
    }
}
