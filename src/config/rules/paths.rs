//! Host paths: their form, and the ones that no agent may be given.

use std::path::{Path, PathBuf};

use crate::names::{AgentId, STATE_DIR};
use crate::text::printable;

/// flock's own directories. Nothing in them and nothing around them is given to an agent.
const OWN: [&str; 4] = ["/etc/flock", STATE_DIR, "/run/flock", "/shared"];

/// Never given, not even for reading: sockets that answer whoever connects, kernel switches,
/// other people's keys, and places of which every agent has its own.
const HIDDEN: [&str; 16] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/var/lock",
    "/root",
    "/boot",
    "/tmp",
    "/var/tmp",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
];

/// Files that every agent has its own of.
const REPLACED: [&str; 9] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/secrets",
];

/// Never given for writing: whoever writes here becomes root, or breaks the host for others.
const SYSTEM: [&str; 17] = [
    "/bin",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/sbin",
    "/usr",
    "/var/backups",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dbus",
    "/var/lib/dpkg",
    "/var/lib/private",
    "/var/lib/systemd",
    "/var/log",
    "/var/spool",
];

/// Too much at once, though something below may be given.
const WIDE: [&str; 8] = ["/", "/etc", "/home", "/media", "/mnt", "/srv", "/var", "/var/lib"];

/// The longest path.
const LENGTH_MAX: usize = 1024;

/// A clean absolute path: it means one place, and nothing else to systemd.
pub(in crate::config) fn absolute(text: &str) -> Result<PathBuf, String> {
    let bad = |why: &str| Err(why.to_owned());
    if !text.starts_with('/') {
        return bad("it is not an absolute path");
    }
    if text.len() > LENGTH_MAX {
        return Err(format!("it is longer than {LENGTH_MAX} bytes"));
    }
    // systemd reads these as separators, quotes or specifiers in at least one kind of property.
    let foreign = |c: &char| {
        let unseen = printable(&c.to_string()).len() != c.len_utf8();
        c.is_whitespace() || ":%\"'\\$".contains(*c) || unseen
    };
    if let Some(c) = text.chars().find(foreign) {
        return Err(format!("{c:?} cannot stand in a path that systemd is given"));
    }
    if text == "/" {
        return Ok(PathBuf::from(text));
    }
    if text.ends_with('/') {
        return bad("it ends with /");
    }
    if text[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("//, . and .. may not stand in it");
    }
    Ok(PathBuf::from(text))
}

/// Whether `path` is `place` or lies in it.
pub(in crate::config) fn inside(path: &Path, place: &str) -> bool {
    path.starts_with(place)
}

/// Whether an agent may be given this host path for reading.
pub(in crate::config) fn readable(path: &Path) -> Result<(), String> {
    for own in OWN {
        if inside(path, own) {
            return Err(format!("{own} belongs to flock"));
        }
        if Path::new(own).starts_with(path) {
            return Err(format!("{own}, which belongs to flock, lies in it"));
        }
    }
    for hidden in HIDDEN {
        if inside(path, hidden) {
            return Err(format!("{hidden} is never given to an agent"));
        }
    }
    for replaced in REPLACED {
        if inside(path, replaced) {
            return Err(format!("every agent has its own {replaced}"));
        }
    }
    if path == Path::new("/usr") {
        return Err("every agent sees it already".to_owned());
    }
    if WIDE.iter().any(|wide| Path::new(wide) == path) {
        return Err("it is too much at once: name what the agent needs in it".to_owned());
    }
    Ok(())
}

/// Whether an agent may be given this host path for writing.
pub(in crate::config) fn writable(path: &Path) -> Result<(), String> {
    readable(path)?;
    for system in SYSTEM {
        if inside(path, system) {
            return Err(format!("{system} belongs to the system: no agent may write it"));
        }
    }
    if path == Path::new("/opt") {
        return Err("it is too much at once: name what the agent needs in it".to_owned());
    }
    Ok(())
}

/// Whether root may read a file of secrets or variables from here: nobody else can put it there.
pub(in crate::config) fn source(path: &Path) -> Result<(), String> {
    for place in ["/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/dev/shm", "/shared", STATE_DIR] {
        if inside(path, place) {
            return Err(format!("root does not read secrets from {place}"));
        }
    }
    Ok(())
}

/// Whether every agent sees this program, or `id` does as its own or common file.
pub(in crate::config) fn visible(program: &Path, id: &AgentId) -> bool {
    let everywhere = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/shared/common"];
    everywhere.iter().any(|place| inside(program, place))
        || program.starts_with(Path::new("/shared/agents").join(id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for text in ["/", "/srv/data", "/opt/a-b_c.d+e@f,g", "/srv/grün", "/srv/...", "/srv/.x"] {
            assert!(absolute(text).is_ok(), "{text}");
        }
        let bad = [
            "",
            "srv",
            "./srv",
            "~",
            "~/x",
            "/srv/",
            "//",
            "//srv",
            "/srv//x",
            "/srv/./x",
            "/srv/..",
            "/../etc",
            "/srv/a b",
            "/srv/a\tb",
            "/srv/a\n",
            "/srv/\0",
            "/srv/a:b",
            "/srv/%n",
            "/srv/\"",
            "/srv/'",
            "/srv/\\x2d",
            "/srv/$HOME",
            "/srv/\u{202e}x",
            "/srv/\u{a0}x",
        ];
        for text in bad {
            assert!(absolute(text).is_err(), "{text:?}");
        }
        assert!(absolute(&format!("/{}", "a".repeat(LENGTH_MAX))).is_err());
    }

    #[test]
    fn what_an_agent_may_be_given() {
        for path in ["/opt", "/opt/x", "/srv/data", "/home/a/b", "/etc/fonts", "/var/lib/model"] {
            assert_eq!(readable(Path::new(path)), Ok(()), "{path}");
        }
        for path in ["/opt/x", "/srv/data", "/home/a/b", "/var/lib/model", "/data", "/etcetera"] {
            assert_eq!(writable(Path::new(path)), Ok(()), "{path}");
        }
        let never = [
            "/",
            "/etc",
            "/etc/flock",
            "/etc/flock/secrets",
            "/etc/shadow",
            "/etc/ssh/x",
            "/proc",
            "/proc/1",
            "/sys",
            "/dev",
            "/dev/shm",
            "/run",
            "/run/flock",
            "/run/user/0",
            "/var/run/x",
            "/root",
            "/root/x",
            "/shared",
            "/shared/agents",
            "/var",
            "/var/lib",
            "/var/lib/flock",
            "/var/lib/flock/shared/agents/a",
            "/usr",
            "/home",
            "/tmp",
            "/tmp/x",
            "/etc/passwd",
            "/boot",
        ];
        for path in never {
            assert!(readable(Path::new(path)).is_err(), "{path}");
            assert!(writable(Path::new(path)).is_err(), "{path}");
        }
        for path in ["/opt", "/usr/local/x", "/etc/fonts", "/bin", "/var/log/x", "/var/spool/cron"]
        {
            assert!(writable(Path::new(path)).is_err(), "{path}");
        }
    }
}
