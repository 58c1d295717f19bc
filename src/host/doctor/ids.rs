//! Numbers of users and groups that are somebody else's.

use std::fs;

use super::Finding;
use crate::host::users::{self, UsersError};
use crate::names::{AGENT_GROUP, OPERATOR_GROUP, UidBlock};

/// The groups that the package makes.
pub(super) fn groups() -> Vec<Finding> {
    let look = |subject, name: &str, why: &str| match users::gid(name) {
        Ok(gid) => Finding::ok(subject, format!("{name} ({gid}): {why}")),
        Err(UsersError::NoGroup { name }) => Finding::fail(
            subject,
            format!("the group {name} does not exist"),
            "systemd-sysusers, or install ai-flock again",
        ),
        Err(error) => Finding::fail(subject, error.to_string(), "look with getent group"),
    };
    vec![
        look("operators", OPERATOR_GROUP, "its members read status and logs and send tasks"),
        look("agents' group", AGENT_GROUP, "its members are kept off the system bus"),
    ]
}

/// Whether the block of user ids is nobody else's.
pub(super) fn block(block: UidBlock) -> Finding {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    judge(
        block,
        &read("/etc/passwd"),
        &read("/etc/group"),
        &subordinate(),
        &read("/etc/login.defs"),
    )
}

/// `/etc/subuid` and `/etc/subgid`, each line with the file's name before it.
fn subordinate() -> String {
    let file = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| format!("{path}:{line}\n")).collect::<String>()
    };
    file("/etc/subuid") + &file("/etc/subgid")
}

fn judge(
    block: UidBlock,
    passwd: &str,
    group: &str,
    subordinate: &str,
    login_defs: &str,
) -> Finding {
    const SUBJECT: &str = "user ids";
    const REMEDY: &str = "choose another host.uid-block before the first agent is added";
    let taken = accounts(block, "user", passwd)
        .chain(accounts(block, "group", group))
        .chain(subordinate.lines().filter_map(|line| delegated(block, line)))
        .chain(systemd_ranges(block));
    let taken: Vec<String> = taken.take(3).collect();
    if !taken.is_empty() {
        return Finding::fail(SUBJECT, format!("{block}: {}", taken.join("; ")), REMEDY);
    }
    let future: Vec<String> = promised(block, login_defs).collect();
    if !future.is_empty() {
        let found = format!("{block}: nobody has any of them yet, but {}", future.join("; "));
        return Finding::warn(SUBJECT, found, REMEDY);
    }
    Finding::ok(SUBJECT, format!("{block} are flock's alone"))
}

/// Accounts with a number in the block and a name that is not flock's.
fn accounts<'a>(
    block: UidBlock,
    kind: &'a str,
    text: &'a str,
) -> impl Iterator<Item = String> + 'a {
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        let foreign = block.contains(id) && !name.starts_with("flock-");
        foreign.then(|| format!("the {kind} {name} has {id}"))
    })
}

/// A range that somebody may use in user namespaces: whoever has it can become an agent's user.
fn delegated(block: UidBlock, line: &str) -> Option<String> {
    let mut fields = line.split(':');
    let (file, name) = (fields.next()?, fields.next()?);
    let first: u32 = fields.next()?.trim().parse().ok()?;
    let count: u32 = fields.next()?.trim().parse().ok()?;
    let last = first.checked_add(count.checked_sub(1)?)?;
    overlap(block, first, last).then(|| format!("{file} gives {first}-{last} to {name}"))
}

/// Ranges that systemd gives out by itself, see its UIDS-GIDS document.
fn systemd_ranges(block: UidBlock) -> impl Iterator<Item = String> {
    const RANGES: [(u32, u32, &str); 4] = [
        (0, 999, "system users"),
        (60_001, 60_513, "systemd-homed"),
        (61_184, 65_535, "DynamicUser= and nobody"),
        (524_288, 1_879_048_191, "containers of systemd-nspawn"),
    ];
    let of = |(first, last, whose): (u32, u32, &str)| format!("{first}-{last} are for {whose}");
    RANGES.into_iter().filter(move |(first, last, _)| overlap(block, *first, *last)).map(of)
}

/// Ranges from which useradd takes the next number.
fn promised(block: UidBlock, login_defs: &str) -> impl Iterator<Item = String> {
    let value = move |name: &str, default: u32| {
        let line = login_defs.lines().find(|line| line.split_whitespace().next() == Some(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        number.unwrap_or(default)
    };
    let ranges = [
        ("UID_MIN", value("UID_MIN", 1000), "UID_MAX", value("UID_MAX", 60_000)),
        ("GID_MIN", value("GID_MIN", 1000), "GID_MAX", value("GID_MAX", 60_000)),
        (
            "SUB_UID_MIN",
            value("SUB_UID_MIN", 100_000),
            "SUB_UID_MAX",
            value("SUB_UID_MAX", 600_100_000),
        ),
        (
            "SUB_GID_MIN",
            value("SUB_GID_MIN", 100_000),
            "SUB_GID_MAX",
            value("SUB_GID_MAX", 600_100_000),
        ),
    ];
    ranges.into_iter().filter(move |(_, first, _, last)| overlap(block, *first, *last)).map(
        |(min, first, max, last)| {
            format!("/etc/login.defs promises {first}-{last} to others ({min}, {max})")
        },
    )
}

fn overlap(block: UidBlock, first: u32, last: u32) -> bool {
    first <= block.last && block.first <= last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::Verdict;

    const PASSWD: &str =
        "root:x:0:0::/:/bin/sh\nflock-a:x:65537:65537::/:/x\nalice:x:1000:1000::/:/x\n";
    const SUBUID: &str = "/etc/subuid:alice:100000:65536\n/etc/subgid:alice:100000:65536\n";
    const DEFS: &str = "# UID_MIN 5\nUID_MIN\t1000\nUID_MAX 60000\nSUB_UID_MIN 100000\n";

    #[test]
    fn the_default_block_is_free_on_a_plain_debian() {
        let finding = judge(UidBlock::DEFAULT, PASSWD, "staff:x:50:\n", SUBUID, DEFS);
        assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
    }

    #[test]
    fn every_kind_of_overlap_is_found() {
        let other = UidBlock { first: 50_000, last: 59_000 };
        let bob = format!("{PASSWD}bob:x:70000:70000::/:/x\n");
        let edge = "/etc/subuid:bob:99999:1\n";
        let cases = [
            (UidBlock::DEFAULT, bob.as_str(), "", "", "the user bob has 70000", Verdict::Fail),
            (UidBlock::DEFAULT, "", "x:x:99999:\n", "", "the group x has 99999", Verdict::Fail),
            (
                UidBlock::DEFAULT,
                "",
                "",
                edge,
                "/etc/subuid gives 99999-99999 to bob",
                Verdict::Fail,
            ),
            (other, "", "", "", "UID_MIN", Verdict::Warn),
            (UidBlock { first: 61_000, last: 62_000 }, "", "", "", "DynamicUser=", Verdict::Fail),
            (UidBlock { first: 524_287, last: 524_288 }, "", "", "", "nspawn", Verdict::Fail),
        ];
        for (block, passwd, group, sub, why, verdict) in cases {
            let finding = judge(block, passwd, group, sub, DEFS);
            assert!(finding.found.contains(why), "{finding:?}");
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
        let broken =
            judge(UidBlock::DEFAULT, "x\n:::\n", "::", "a:b:c:d\n/e:f:4294967295:9\n", "UID_MIN");
        assert_eq!(broken.verdict, Verdict::Ok, "{broken:?}");
    }
}
