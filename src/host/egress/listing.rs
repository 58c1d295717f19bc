//! The listing of a table as data, and the differences of two.
//!
//! What nft prints is compared with what flock renders, both read by the same reader: so that a
//! construct the reader does not know cannot pass unseen, it stands in the one and not the other.

use std::collections::{BTreeMap, BTreeSet};

use super::rules;

/// The most differences that are named; the first says enough.
const NAMED_MAX: usize = 5;

/// One chain, set or whatever else stands in a table, by its head (`chain agents`). The table
/// itself stands under `table inet flock`, with its flags.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    /// In order.
    lines: Vec<String>,
    /// In any order.
    elements: BTreeSet<String>,
}

/// In what the table that is loaded differs from the planned one, for people.
pub(super) fn differences(loaded: &str, planned: &str) -> Vec<String> {
    let (mut loaded, planned) = (read(loaded), read(planned));
    forgive_counted(&mut loaded, &planned);
    let heads: BTreeSet<&String> = loaded.keys().chain(planned.keys()).collect();
    let mut found = Vec::new();
    for head in heads {
        match (loaded.get(head), planned.get(head)) {
            (Some(is), Some(should)) => compare(head, is, should, &mut found),
            (None, _) => found.push(format!("{head} is missing")),
            (_, None) => found.push(format!("{head} is not flock's")),
        }
    }
    if found.len() > NAMED_MAX {
        let more = found.len() - NAMED_MAX;
        found.truncate(NAMED_MAX);
        found.push(format!("and {more} more"));
    }
    found
}

/// The kernel puts a user into this set with its first packet, under the limit of the rule. One that
/// stands there with another limit is not the kernel's.
fn forgive_counted(loaded: &mut BTreeMap<String, Block>, planned: &BTreeMap<String, Block>) {
    let rules = planned.values().flat_map(|block| &block.lines);
    let start = format!("update @{} {{ meta skuid ", rules::RATES);
    let mut limits = rules.filter_map(|rule| rule.split_once(&start)?.1.split_once(" }"));
    let Some((limit, _)) = limits.next() else { return };
    if let Some(block) = loaded.get_mut(&format!("set {}", rules::RATES)) {
        block.elements.retain(|element| {
            let counted = element.split_once(' ').is_some_and(|(uid, rest)| {
                uid.bytes().all(|c| c.is_ascii_digit()) && rest == limit
            });
            !counted
        });
    }
}

fn compare(head: &str, is: &Block, should: &Block, found: &mut Vec<String>) {
    let rows = is.lines.len().max(should.lines.len());
    for row in 0..rows {
        match (is.lines.get(row), should.lines.get(row)) {
            (Some(is), Some(should)) if is == should => continue,
            (Some(is), Some(should)) => {
                found.push(format!("{head} has {is:?} where {should:?} should stand"));
            }
            (Some(is), None) => found.push(format!("{head} has {is:?} in addition")),
            (None, Some(should)) => found.push(format!("{head} has no {should:?}")),
            (None, None) => {}
        }
        // Everything after the first is only out of step.
        break;
    }
    for element in is.elements.difference(&should.elements) {
        found.push(format!("{head} has the element {element} in addition"));
    }
    for element in should.elements.difference(&is.elements) {
        found.push(format!("{head} has no element {element}"));
    }
}

/// Reads a listing, or our own text. Never fails: what it does not understand becomes lines.
fn read(text: &str) -> BTreeMap<String, Block> {
    let mut blocks = BTreeMap::<String, Block>::new();
    let mut heads: Vec<String> = Vec::new();
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    while let Some(line) = lines.next() {
        if let Some(head) = line.strip_suffix(" {") {
            heads.push(head.to_owned());
            // A second block of the same head must not hide behind the first.
            blocks.entry(head.to_owned()).or_default().lines.push("{".to_owned());
        } else if line == "}" {
            heads.pop();
        } else if let Some(head) = heads.last() {
            let block = blocks.entry(head.clone()).or_default();
            match line.strip_prefix("elements = {") {
                Some(first) => block.elements.extend(elements(first, &mut lines)),
                None => block.lines.push(one_spelling(line)),
            }
        } else if !matches!(line, "add table inet flock" | "delete table inet flock") {
            blocks.entry("the listing".to_owned()).or_default().lines.push(line.to_owned());
        }
    }
    blocks
}

/// The elements of a set, which may go over several lines.
fn elements<'a>(first: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut text = first.to_owned();
    while !text.ends_with('}') {
        match lines.next() {
            Some(line) => {
                text.push(' ');
                text.push_str(line);
            }
            None => break,
        }
    }
    let list = text.trim_end_matches('}').split(',');
    list.map(|element| element.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// nft 1.0 and 1.1 print the same comparison of flags in different words.
fn one_spelling(line: &str) -> String {
    const OURS: &str = "tcp flags & (syn | ack) == (syn | ack)";
    const OTHERS: [&str; 2] =
        ["tcp flags syn,ack / syn,ack", "tcp flags & (syn | ack) == syn | ack"];
    let other = OTHERS.into_iter().find_map(|other| line.strip_prefix(other));
    other.map_or_else(|| line.to_owned(), |rest| format!("{OURS}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::super::{Grant, Table};
    use super::*;
    use crate::names::UidBlock;

    fn planned() -> String {
        let grant = |uid, addr: &str| Grant { uid, addr: addr.parse().unwrap(), port: 443 };
        rules::render(&Table {
            block: UidBlock::DEFAULT,
            bus_port: 14_222,
            bus_rate: Some(16 << 20),
            grants: [grant(65_537, "192.0.2.1"), grant(65_538, "192.0.2.2")].into(),
            unrestricted: [65_539].into(),
        })
    }

    /// As nft prints it: no comments, elements in another order.
    const NFT_1_0: &str = include_str!("../../../tests/golden/egress/nft-1.0.6.txt");
    const NFT_1_1: &str = include_str!("../../../tests/golden/egress/nft-1.1.3.txt");

    #[test]
    fn what_both_versions_print_is_the_planned_table() {
        assert_eq!(differences(NFT_1_0, &planned()), Vec::<String>::new());
        assert_eq!(differences(NFT_1_1, &planned()), Vec::<String>::new());
        assert_ne!(NFT_1_0, NFT_1_1);
    }

    /// Takes characters away, doubles and swaps them at every place: whatever is not the table is told
    /// from it, and nothing that nft could print crashes the reader.
    #[test]
    fn no_damage_passes_for_the_table() {
        let words =
            ["accept", "drop", "{", "}", "elements = {", ",", "\n", "\u{0}", "counter", "65537"];
        let mut seed = 0x5eed_u64;
        for listing in [NFT_1_0, NFT_1_1] {
            // How its parts are bracketed is nft's matter.
            let words_of = |text: &str| {
                text.replace(['{', '}', ','], " ")
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            // Who was counted lately, by the kernel itself: no part of the table.
            let start = listing.find("elements = { 65537 limit").unwrap();
            let counted = start..=start + listing[start..].find('\n').unwrap();
            let places = listing.char_indices().map(|(at, _)| at);
            for at in places.filter(|at| !counted.contains(at) && !counted.contains(&(at + 7))) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let word = words[(seed >> 33) as usize % words.len()];
                let (head, tail) = listing.split_at(at);
                let longer = (at + 7).min(listing.len());
                for damaged in [
                    format!("{head}{word}{tail}"),
                    format!("{head}{}", &listing[at + 1..]),
                    format!("{head}{}", &listing[longer..]),
                    head.to_owned(),
                ] {
                    let told = !differences(&damaged, &planned()).is_empty();
                    let same = words_of(&damaged) == words_of(listing);
                    assert!(told || same, "{at}: {damaged}");
                }
            }
        }
    }

    #[test]
    fn every_change_is_named() {
        let changes = [
            ("policy accept;", "policy drop;", "chain output has \"type filter"),
            ("65536-99999", "65536-99998", "chain output has \"meta skuid 65536-99998"),
            ("goto agents", "jump agents", "chain output has"),
            ("hook output priority filter", "hook output priority security", "chain output has"),
            ("\t\tmeta skuid 65536-99999 goto agents\n", "", "has no \"meta skuid 65536-99999"),
            ("14222 counter accept", "14223 counter accept", "chain agents has"),
            ("reject with icmpx admin-prohibited\n\t}\n}", "accept\n\t}\n}", "chain agents has"),
            ("dport 1-65535 counter reject with tcp reset", "dport 1-65535 counter accept", "has"),
            (
                "\tchain agents {\n",
                "\tchain agents {\n\t\tmeta skuid 65540 accept\n",
                "chain agents has \"meta skuid 65540 accept\"",
            ),
            ("admin-prohibited\n\t}\n}", "admin-prohibited\n\t\taccept\n\t}\n}", "in addition"),
            ("192.0.2.1 . 443", "192.0.2.9 . 443", "element 65537 . 192.0.2.9 . 443 in addition"),
            ("192.0.2.1 . 443", "192.0.2.9 . 443", "no element 65537 . 192.0.2.1 . 443"),
            ("{ 65539 }", "{ 65539, 65540 }", "set unrestricted has the element 65540 in addition"),
            ("\t\telements = { 65539 }\n", "", "set unrestricted has no element 65539"),
            ("type uid\n", "type uid\n\t\tflags dynamic\n", "flags dynamic"),
            ("table inet flock {\n", "table inet flock {\n\tflags dormant\n\n", "flags dormant"),
            ("\tchain agents {", "\tchain x {\n\t}\n\n\tchain agents {", "chain x is not flock's"),
            (
                "over 16 mbytes/second burst 4 mbytes }",
                "over 17 mbytes/second burst 4 mbytes }",
                "has",
            ),
            ("65537 limit rate over 16 mbytes", "65537 limit rate over 99 mbytes", "set rates has"),
            ("counter drop\n", "counter accept\n", "chain agents has"),
            ("set allow6 {", "set allow7 {", "set allow6 is missing"),
            (
                "\tchain output {",
                "\tchain output {\n\t}\n\tchain output {",
                "chain output has \"{\"",
            ),
        ];
        for (from, to, why) in changes {
            for listing in [NFT_1_0, NFT_1_1] {
                assert!(listing.contains(from), "{from}");
                let found = differences(&listing.replacen(from, to, 1), &planned()).join("; ");
                assert!(found.contains(why), "{from} -> {to}: {found}");
            }
        }
        assert_eq!(differences("", &planned()).len(), NAMED_MAX + 1);
        let garbage = differences("Warning: something\n", &planned()).join("; ");
        assert!(garbage.contains("is missing"), "{garbage}");
    }
}
