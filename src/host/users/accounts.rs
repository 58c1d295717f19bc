//! Making, checking and removing accounts.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::UsersError;
use crate::fail::{self, Point};
use crate::host::command::{CommandError, Program};
use crate::names::{AGENT_GROUP, WORKSPACE_USER};
use crate::plan::UserPlan;

const SYSUSERS: Program = Program { path: "/usr/bin/systemd-sysusers", package: "systemd" };
const USERDEL: Program = Program { path: "/usr/sbin/userdel", package: "passwd" };
const GROUPDEL: Program = Program { path: "/usr/sbin/groupdel", package: "passwd" };

/// Nothing there that a service manager or a login of the agent could read.
const HOME: &str = "/nonexistent";
/// Nobody logs in as an agent.
const SHELL: &str = "/usr/sbin/nologin";
/// A file here makes logind start a service manager for the user at boot, outside of every limit.
pub(crate) const LINGER: &str = "/var/lib/systemd/linger";
/// Exit statuses of userdel(8).
const USERDEL_NO_SUCH_USER: i32 = 6;
const USERDEL_BUSY: i32 = 8;

/// How far an account is what flock makes. What is neither of these is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    /// Neither name nor number is in use, but perhaps for the group that a broken-off run left.
    Absent,
    /// Ours, but not yet a member of `flock-agents`.
    NoMember,
    /// Exactly ours.
    Ours,
}

/// Makes every account that is missing, in one `systemd-sysusers`, and reads each one back.
/// Gives the names that were made or completed; with nothing to do no program is run.
///
/// # Errors
/// When a name or number is in use otherwise (then nothing is made), or when an account is not as
/// asked for afterwards.
pub fn ensure(users: &[UserPlan]) -> Result<Vec<String>, UsersError> {
    let mut lines = format!("g {AGENT_GROUP} -\n");
    let mut made = Vec::new();
    for user in users {
        let account = inspect(user)?;
        let UserPlan { name, uid } = user;
        if account == Account::Absent {
            let _ = writeln!(lines, "u {name} {uid} \"{}\" {HOME} {SHELL}", gecos(name));
        }
        if account != Account::Ours {
            let _ = writeln!(lines, "m {name} {AGENT_GROUP}");
            made.push(name.clone());
        }
    }
    if made.is_empty() {
        return Ok(made);
    }
    SYSUSERS.run(&["-"], &lines).map_err(|source| UsersError::Command {
        step: format!("create {}", list(&made)),
        source,
    })?;
    fail::at(Point::UsersMade);
    for user in users.iter().filter(|user| made.contains(&user.name)) {
        if inspect(user)? != Account::Ours {
            return Err(foreign(
                &user.name,
                "systemd-sysusers did not make it as asked".to_owned(),
                "see journalctl -t systemd-sysusers, and whether /etc/passwd can be written",
            ));
        }
    }
    Ok(made)
}

/// Whether the account is exactly ours and logind starts nothing for it. Changes nothing.
///
/// # Errors
/// When not; the text says in what, and what to do.
pub fn check(user: &UserPlan) -> Result<(), UsersError> {
    let name = &user.name;
    match inspect(user)? {
        Account::Absent => return Err(UsersError::Absent { name: name.clone() }),
        Account::NoMember => {
            return Err(foreign(
                name,
                format!("it is not in the group {AGENT_GROUP}, which keeps it off the system bus"),
                "run flockctl apply",
            ));
        }
        Account::Ours => {}
    }
    if Path::new(LINGER).join(name).symlink_metadata().is_ok() {
        return Err(foreign(
            name,
            format!("{LINGER}/{name} exists: logind runs a service manager for it, unconfined"),
            &format!("loginctl disable-linger {name}, and find out who enabled it"),
        ));
    }
    Ok(())
}

/// Removes the account and its group. The ledger keeps the number.
///
/// # Errors
/// When it is not ours, has processes still, or the user database cannot be changed.
pub fn remove(user: &UserPlan) -> Result<(), UsersError> {
    let name = user.name.as_str();
    if inspect(user)? != Account::Absent {
        match USERDEL.run(&[name], "") {
            Ok(_) | Err(CommandError::Failed { code: Some(USERDEL_NO_SUCH_USER), .. }) => {}
            Err(CommandError::Failed { code: Some(USERDEL_BUSY), .. }) => {
                return Err(foreign(
                    name,
                    "it still has processes".to_owned(),
                    &format!("stop the agent first, then see ps -u {name}"),
                ));
            }
            Err(source) => {
                return Err(UsersError::Command { step: format!("remove user {name}"), source });
            }
        }
    }
    // userdel takes the group along only with USERGROUPS_ENAB in login.defs.
    if group_by_name(name)?.is_some_and(|group| group.gid.as_raw() == user.uid) {
        GROUPDEL.run(&[name], "").map_err(|source| UsersError::Command {
            step: format!("remove group {name}"),
            source,
        })?;
    }
    Ok(())
}

/// The number of a group that the package makes.
///
/// # Errors
/// When there is none of this name.
pub fn gid(group: &str) -> Result<u32, UsersError> {
    match group_by_name(group)? {
        Some(found) => Ok(found.gid.as_raw()),
        None => Err(UsersError::NoGroup { name: group.to_owned() }),
    }
}

/// What the user database has under this name and this number.
fn inspect(user: &UserPlan) -> Result<Account, UsersError> {
    let UserPlan { name, uid } = user;
    let taken = "choose another host.uid-block, or remove that account";
    if let Some(other) = user_by_uid(*uid)?.filter(|found| &found.name != name) {
        return Err(foreign(name, format!("its number {uid} is {}'s", other.name), taken));
    }
    if let Some(other) = group_by_gid(*uid)?.filter(|found| &found.name != name) {
        return Err(foreign(
            name,
            format!("its number {uid} is the group {}'s", other.name),
            taken,
        ));
    }
    let group = group_by_name(name)?;
    if let Some(group) = &group {
        check_group(user, group)?;
    }
    let Some(found) = user_by_name(name)? else { return Ok(Account::Absent) };
    let parts = [
        ("number", found.uid.to_string(), uid.to_string()),
        ("group", found.gid.to_string(), uid.to_string()),
        ("home", found.dir.display().to_string(), HOME.to_owned()),
        ("shell", found.shell.display().to_string(), SHELL.to_owned()),
        ("comment", found.gecos.to_string_lossy().into_owned(), gecos(name)),
    ];
    for (what, is, should) in parts {
        if is != should {
            return Err(not_ours(
                name,
                format!("its {what} is {is:?}, flock's would be {should:?}"),
            ));
        }
    }
    if group.is_none() {
        return Err(not_ours(name, "it has no group of its own name".to_owned()));
    }
    memberships(user)
}

/// The group must have the same number, and nobody else in it.
fn check_group(user: &UserPlan, group: &Group) -> Result<(), UsersError> {
    if group.gid.as_raw() != user.uid {
        let cause = format!("the group {} has the number {}", group.name, group.gid);
        return Err(not_ours(&user.name, cause));
    }
    match group.mem.iter().find(|member| **member != user.name) {
        Some(member) => Err(not_ours(&user.name, format!("{member} is in its group"))),
        None => Ok(()),
    }
}

/// Each further group is a right that no plan knows of.
fn memberships(user: &UserPlan) -> Result<Account, UsersError> {
    let name = &user.name;
    let Some(agents) = group_by_name(AGENT_GROUP)? else { return Ok(Account::NoMember) };
    let lookup = |source| UsersError::Lookup { what: format!("the groups of {name}"), source };
    let c_name = CString::new(name.as_str()).map_err(|error| lookup(error.into()))?;
    let groups = getgrouplist(&c_name, Gid::from_raw(user.uid))
        .map_err(|error| lookup(io::Error::from(error)))?;
    for gid in &groups {
        if gid.as_raw() != user.uid && *gid != agents.gid {
            let group = group_by_gid(gid.as_raw())?.map_or(gid.to_string(), |group| group.name);
            return Err(foreign(
                name,
                format!("it is in the group {group} too"),
                &format!("gpasswd -d {name} {group}, and find out who put it there"),
            ));
        }
    }
    Ok(if groups.contains(&agents.gid) { Account::Ours } else { Account::NoMember })
}

/// The comment field, by which a person recognises the account.
fn gecos(name: &str) -> String {
    if name == WORKSPACE_USER {
        return "flock agents of level 0".to_owned();
    }
    format!("flock agent {}", name.strip_prefix("flock-").unwrap_or(name))
}

fn not_ours(name: &str, cause: String) -> UsersError {
    foreign(name, cause, "flock did not make it: rename the agent, or remove that account")
}

fn foreign(name: &str, cause: String, remedy: &str) -> UsersError {
    UsersError::Foreign { name: name.to_owned(), cause, remedy: remedy.to_owned() }
}

fn list(names: &[String]) -> String {
    match names {
        [one] => format!("user {one}"),
        [first, .., last] => format!("{} users, {first} to {last}", names.len()),
        [] => "no users".to_owned(),
    }
}

fn user_by_name(name: &str) -> Result<Option<User>, UsersError> {
    answer(User::from_name(name), || format!("user {name}"))
}

fn user_by_uid(uid: u32) -> Result<Option<User>, UsersError> {
    answer(User::from_uid(Uid::from_raw(uid)), || format!("user number {uid}"))
}

fn group_by_name(name: &str) -> Result<Option<Group>, UsersError> {
    answer(Group::from_name(name), || format!("group {name}"))
}

fn group_by_gid(gid: u32) -> Result<Option<Group>, UsersError> {
    answer(Group::from_gid(Gid::from_raw(gid)), || format!("group number {gid}"))
}

/// Tells "there is none" from "the database does not answer".
fn answer<T>(
    found: nix::Result<Option<T>>,
    what: impl Fn() -> String,
) -> Result<Option<T>, UsersError> {
    match found {
        Ok(found) => Ok(found),
        // What NSS modules say for "not found", see getpwnam(3).
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(UsersError::Lookup { what: what(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::{self, sh};

    fn plan(name: &str, uid: u32) -> UserPlan {
        UserPlan { name: name.to_owned(), uid }
    }

    fn edit(file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}:\n{text}");
        std::fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    #[test]
    fn a_batch_is_made_once_and_read_back() {
        let Some(_etc) = testing::private_etc("users_batch") else { return };
        let users = [plan("flock-workspace", 65_536), plan("flock-a", 65_537)];
        let absent = check(&users[1]).unwrap_err().to_string();
        assert_eq!(absent, "user flock-a: it does not exist: run flockctl apply");
        assert_eq!(ensure(&users).unwrap(), ["flock-workspace", "flock-a"]);
        users.iter().for_each(|user| check(user).unwrap());
        let before = std::fs::metadata("/etc/passwd").unwrap().modified().unwrap();
        assert!(ensure(&users).unwrap().is_empty());
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().modified().unwrap(), before);
        let line = "flock-a:x:65537:65537:flock agent a:/nonexistent:/usr/sbin/nologin";
        assert!(std::fs::read_to_string("/etc/passwd").unwrap().contains(line));
        let shadow = std::fs::read_to_string("/etc/shadow").unwrap();
        assert!(shadow.contains("flock-a:!*:"), "no password opens it: {shadow}");
    }

    #[test]
    fn a_thousand_accounts_take_one_process() {
        let Some(_etc) = testing::private_etc("users_thousand") else { return };
        let users: Vec<_> =
            (1..=1000).map(|n| plan(&format!("flock-agent-{n}"), 65_536 + n)).collect();
        assert_eq!(ensure(&users).unwrap().len(), 1000);
        assert!(ensure(&users).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_ours_is_never_taken_over() {
        let Some(_etc) = testing::private_etc("users_foreign") else { return };
        let user = plan("flock-a", 65_537);
        let clash = [
            ("useradd -u 65537 -U -M alice", "number 65537 is alice's", "userdel alice"),
            ("groupadd -g 65537 staff2", "the group staff2's", "groupdel staff2"),
            ("groupadd -g 4242 flock-a", "has the number 4242", "groupdel flock-a"),
            ("useradd -u 4242 -U -M flock-a", "number 4242", "userdel flock-a"),
            (
                "groupadd -g 65537 flock-a; useradd -u 65537 -g 65537 -M -s /bin/sh flock-a",
                "its home is \"/home/flock-a\"",
                "userdel flock-a",
            ),
        ];
        for (make, why, undo) in clash {
            sh(make);
            let before = std::fs::read_to_string("/etc/passwd").unwrap();
            // The sound plan beside it is not made either: first all are looked at.
            let error = ensure(&[plan("flock-b", 65_538), user.clone()]).unwrap_err().to_string();
            assert!(error.contains(why), "{make}: {error}");
            assert!(check(&user).is_err());
            assert!(remove(&user).is_err());
            assert_eq!(std::fs::read_to_string("/etc/passwd").unwrap(), before);
            sh(undo);
        }
        assert_eq!(ensure(&[user]).unwrap(), ["flock-a"]);
    }

    #[test]
    fn an_account_changed_by_hand_is_noticed() {
        let Some(_etc) = testing::private_etc("users_changed") else { return };
        let user = plan("flock-a", 65_537);
        ensure(std::slice::from_ref(&user)).unwrap();
        let cases = [
            (
                "/etc/passwd",
                "/nonexistent:/usr/sbin/nologin\n",
                "/nonexistent:/bin/bash\n",
                "shell",
            ),
            ("/etc/passwd", "a:x:65537:65537", "a:x:65537:0", "its group is"),
            ("/etc/group", "\nadm:x:4:", "\nadm:x:4:flock-a,", "in the group adm too"),
            ("/etc/group", "flock-a:x:65537:", "flock-a:x:65537:daemon", "daemon is in its group"),
        ];
        for (file, from, to, why) in cases {
            let before = std::fs::read_to_string(file).unwrap();
            // The last account in the file is the one that was just made.
            let at = before.rfind(from).unwrap();
            let after = format!("{}{to}{}", &before[..at], &before[at + from.len()..]);
            std::fs::write(file, after).unwrap();
            let error = check(&user).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(ensure(std::slice::from_ref(&user)).is_err());
            std::fs::write(file, before).unwrap();
        }
        check(&user).unwrap();
        // A lost membership is no danger to anybody, and is repaired.
        sh("gpasswd -d flock-a flock-agents");
        assert!(check(&user).unwrap_err().to_string().contains("not in the group flock-agents"));
        assert_eq!(ensure(std::slice::from_ref(&user)).unwrap(), ["flock-a"]);
        check(&user).unwrap();
    }

    #[test]
    fn a_lingering_user_is_refused() {
        let Some(_etc) = testing::private_etc("users_linger") else { return };
        let user = plan("flock-a", 65_537);
        ensure(std::slice::from_ref(&user)).unwrap();
        std::fs::create_dir_all(LINGER).unwrap();
        check(&user).unwrap();
        std::fs::write(format!("{LINGER}/flock-a"), "").unwrap();
        let error = check(&user).unwrap_err().to_string();
        assert!(error.contains("loginctl disable-linger flock-a"), "{error}");
    }

    #[test]
    fn removal_takes_the_group_along_and_can_be_repeated() {
        let Some(_etc) = testing::private_etc("users_remove") else { return };
        let user = plan("flock-a", 65_537);
        for enabled in ["yes", "no"] {
            edit("/etc/login.defs", "USERGROUPS_ENAB", &format!("USERGROUPS_ENAB {enabled}\n#"));
            ensure(std::slice::from_ref(&user)).unwrap();
            remove(&user).unwrap();
            let group = std::fs::read_to_string("/etc/group").unwrap();
            assert!(!group.contains("flock-a:") && !group.contains(":flock-a"), "{group}");
            assert_eq!(inspect(&user).unwrap(), Account::Absent);
            remove(&user).unwrap();
        }
    }

    #[test]
    fn what_a_broken_off_run_left_is_completed() {
        let Some(_etc) = testing::private_etc("users_broken_off") else { return };
        sh("groupadd -g 65537 flock-a");
        let user = plan("flock-a", 65_537);
        assert_eq!(ensure(std::slice::from_ref(&user)).unwrap(), ["flock-a"]);
        check(&user).unwrap();
    }
}
