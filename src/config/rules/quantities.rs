//! Sizes, durations, percentages and blocks of user ids. Arithmetic is checked throughout.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::names::UidBlock;

/// Splits `256MiB` into the number and the rest. A sign, a blank or a fraction is no number.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

/// Bytes: `256MiB`, `1GiB`, or a bare number.
pub(in crate::config) fn size(text: &str) -> Result<u64, String> {
    let Some((number, unit)) = split(text) else {
        return Err("it must begin with a whole number".to_owned());
    };
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        other => return Err(unknown_size_unit(number, other)),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "it is larger than any computer".to_owned())
}

/// Decimal units differ from binary ones by up to a tenth, so they are not guessed at.
fn unknown_size_unit(number: u64, unit: &str) -> String {
    let letter = unit.chars().next().map_or('?', |c| c.to_ascii_uppercase());
    match unit.len() {
        1..=3 if "KMGT".contains(letter) => format!("write {number}{letter}iB"),
        _ if unit.starts_with(['.', ',']) => {
            "it must be a whole number of a smaller unit".to_owned()
        }
        _ => "the unit must be B, KiB, MiB, GiB or TiB".to_owned(),
    }
}

/// A span of time: `500ms`, `30s`, `10min`, `1h`, `2d`.
pub(in crate::config) fn duration(text: &str) -> Result<Duration, String> {
    let Some((number, unit)) = split(text) else {
        return Err("it must begin with a whole number".to_owned());
    };
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("it has no unit: write {number}s")),
        "m" => return Err(format!("write {number}min")),
        _ if unit.starts_with(['.', ',']) => {
            return Err("it must be a whole number of a smaller unit".to_owned());
        }
        _ => return Err("the unit must be ms, s, min, h or d".to_owned()),
    };
    let millis = number.checked_mul(factor);
    millis.map(Duration::from_millis).ok_or_else(|| "it is longer than any computer".to_owned())
}

/// A share of one core: `50%` is half a core, `200%` two. Gives microseconds per second.
pub(in crate::config) fn percent(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('%').and_then(split).filter(|(_, rest)| rest.is_empty());
    let Some((number, _)) = number else {
        return Err("it is no whole percentage".to_owned());
    };
    if !(1..=100_000).contains(&number) {
        return Err("it is out of range".to_owned());
    }
    Ok(number * 10_000)
}

/// User ids that belong to others on every systemd host, and whose they are.
const TAKEN: [(RangeInclusive<u32>, &str); 3] = [
    (61_184..=65_519, "systemd gives to dynamic users"),
    (65_534..=65_535, "the kernel gives to nobody and to no user"),
    (524_288..=1_879_048_191, "systemd gives to containers"),
];

/// A block of user ids: `65536-99999`.
pub(in crate::config) fn uid_block(text: &str) -> Result<UidBlock, String> {
    let parts = text.split_once('-').and_then(|(first, last)| {
        let (first, rest) = split(first)?;
        let (last, tail) = split(last)?;
        (rest.is_empty() && tail.is_empty()).then_some((first, last))
    });
    let Some((first, last)) = parts else {
        return Err("it is not two numbers with a dash between them".to_owned());
    };
    if first < 1000 {
        return Err("ids below 1000 belong to the system".to_owned());
    }
    let (Ok(first), Ok(last @ ..=0x7fff_ffff)) = (u32::try_from(first), u32::try_from(last)) else {
        return Err("ids end at 2147483647".to_owned());
    };
    if last < first || last - first < 15 {
        return Err("it must hold at least 16 ids".to_owned());
    }
    for (range, owner) in TAKEN {
        if first <= *range.end() && *range.start() <= last {
            let (start, end) = (range.start(), range.end());
            return Err(format!("it overlaps {start}-{end}, which {owner}"));
        }
    }
    Ok(UidBlock { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("256MiB"), Ok(268_435_456));
        assert_eq!(size("1TiB"), Ok(1 << 40));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("17B"), Ok(17));
        assert_eq!(size("512MB"), Err("write 512MiB".to_owned()));
        assert_eq!(size("2g"), Err("write 2GiB".to_owned()));
        let bad = [
            "",
            "-1",
            "+1",
            "1e30",
            "1.5GiB",
            "MiB",
            "512XB",
            "1 GiB",
            " 1",
            "NaN",
            "\u{661}",
            "18014398509481984MiB",
            "18446744073709551616",
            "1\0",
        ];
        for text in bad {
            assert!(size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(duration("2m"), Err("write 2min".to_owned()));
        assert_eq!(duration("90"), Err("it has no unit: write 90s".to_owned()));
        for text in ["", "-1s", "1h30min", "s", "infinity", "1 s", "213503982334602d"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(percent("50%"), Ok(500_000));
        assert_eq!(percent("100000%"), Ok(1_000_000_000));
        for text in ["", "%", "0%", "100001%", "-5%", "50", "1.5%", "50 %", "50%%"] {
            assert!(percent(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn blocks_of_user_ids() {
        assert_eq!(uid_block("65536-99999"), Ok(UidBlock::DEFAULT));
        assert!(uid_block("65536-65551").is_ok());
        let bad = [
            "",
            "65536",
            "65536-",
            "-99999",
            "a-b",
            "65536-65550",
            "99999-65536",
            "0-99999",
            "999-60000",
            "60000-61184",
            "65519-99999",
            "65535-99999",
            "100000-524288",
            "1879048191-2000000000",
            "2147480000-2147483648",
            "65536-4294967295",
            "65536--1",
            "65536-18446744073709551616",
        ];
        for text in bad {
            assert!(uid_block(text).is_err(), "{text:?}");
        }
    }
}
