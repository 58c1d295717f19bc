//! Settings, identities and who talks to whom to the files of nats-server's configuration. The text
//! is pure and pinned by golden files; [`super::accounts`] makes the part with the accounts.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Settings;
use super::accounts::accounts;
use super::identity::{Identities, replace};
use super::talk::Talk;
use crate::fail::{self, Point};

/// The main file, next to [`ACCOUNTS_FILE`].
pub const SERVER_FILE: &str = "nats-server.conf";
/// The file with every password, which the main file includes.
pub const ACCOUNTS_FILE: &str = "accounts.conf";

/// No message is larger; tasks and results that are larger travel as files.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Why the server's configuration cannot be made or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that would not mean what it says in the server's file.
    #[error("write the bus configuration: bus.{key} = {value:?} {why}")]
    Setting {
        /// The key in flock.toml.
        key: &'static str,
        /// What stood there.
        value: String,
        /// What may stand there.
        why: &'static str,
    },
    /// A file could not be read or written.
    #[error("write the bus configuration {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Where a server with this [`SERVER_FILE`] listens.
#[must_use]
pub fn address(text: &str) -> Option<SocketAddr> {
    let value = text.lines().find_map(|line| line.strip_prefix("listen: "))?;
    value.trim_matches('"').parse().ok()
}

/// The text of [`SERVER_FILE`].
///
/// # Errors
/// When the port is 0, `sync` is neither `always` nor an interval, or the store's path cannot be quoted.
pub fn server(settings: &Settings) -> Result<String, Error> {
    let bad = |key, value: &str, why| Err(Error::Setting { key, value: value.to_owned(), why });
    if settings.port == 0 {
        return bad("port", "0", "is no port that agents could be told");
    }
    if !is_sync(&settings.sync) {
        return bad("sync", &settings.sync, "is neither \"always\" nor an interval such as \"2m\"");
    }
    let store =
        settings.store.to_str().filter(|s| s.starts_with('/') && s.chars().all(is_quotable));
    let Some(store) = store else {
        return bad(
            "store",
            &settings.store.to_string_lossy(),
            "must be an absolute path of plain characters",
        );
    };
    Ok(format!(
        "# Written by `flockctl apply` from /etc/flock/flock.toml; changes here are overwritten.\n\
         # No monitoring port, no user in the system account, no user without a password.\n\
         server_name: \"flock\"\n\
         listen: \"127.0.0.1:{port}\"\n\
         max_payload: {MAX_PAYLOAD}\n\
         max_control_line: 4096\n\
         # What a client that stops reading may pile up before it is disconnected.\n\
         max_pending: 16777216\n\
         write_deadline: \"5s\"\n\
         # Well below LimitNOFILE= of flock-bus.service: whoever opens connections without end must\n\
         # not take the files of the streams away.\n\
         max_connections: 16384\n\
         authorization {{ timeout: 2 }}\n\
         jetstream {{\n\
         \x20 store_dir: \"{store}\"\n\
         \x20 sync_interval: {sync}\n\
         \x20 # The last channel message of each agent, for a second.\n\
         \x20 max_memory_store: 1073741824\n\
         \x20 # Each stream has its own limit. The server adds them up and would refuse an agent once\n\
         \x20 # the sum passed this, although the streams are nearly empty.\n\
         \x20 max_file_store: 1099511627776\n\
         }}\n\
         include \"{ACCOUNTS_FILE}\"\n",
        port = settings.port,
        sync = settings.sync,
    ))
}

/// Which of the two files in `dir` are not what would be written. Changes nothing.
///
/// # Errors
/// When a setting is wrong or a file cannot be read.
pub fn differing(
    dir: &Path,
    settings: &Settings,
    identities: &Identities,
    talk: &Talk,
) -> Result<Vec<PathBuf>, Error> {
    let mut differing = Vec::new();
    for (name, text) in texts(settings, identities, talk)? {
        let path = dir.join(name);
        match fs::read_to_string(&path) {
            Ok(there) if there == text => {}
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(Error::File { path, cause });
            }
            _ => differing.push(path),
        }
    }
    Ok(differing)
}

fn texts(
    settings: &Settings,
    identities: &Identities,
    talk: &Talk,
) -> Result<[(&'static str, String); 2], Error> {
    Ok([(ACCOUNTS_FILE, accounts(identities, talk)), (SERVER_FILE, server(settings)?)])
}

/// Writes both files into `dir`, readable by root and the group `gid`. True when either changed:
/// then the server must reload, which disturbs no connected client.
///
/// # Errors
/// When a setting is wrong or a file cannot be read or written.
pub fn write(
    dir: &Path,
    settings: &Settings,
    identities: &Identities,
    talk: &Talk,
    gid: Option<u32>,
) -> Result<bool, Error> {
    let mut changed = false;
    for (name, text) in texts(settings, identities, talk)? {
        let path = dir.join(name);
        let wrote = write_one(&path, gid, &text).map_err(|cause| Error::File { path, cause })?;
        if wrote && name == ACCOUNTS_FILE {
            fail::at(Point::AccountsWritten);
        }
        changed |= wrote;
    }
    Ok(changed)
}

fn write_one(path: &Path, gid: Option<u32>, text: &str) -> io::Result<bool> {
    match fs::read_to_string(path) {
        Ok(old) if old == text => return Ok(false),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    replace(path, 0o640, gid, text)?;
    Ok(true)
}

/// `always`, or digits and one of s, m, h.
fn is_sync(text: &str) -> bool {
    let interval = |t: &str| {
        t.strip_suffix(['s', 'm', 'h']).is_some_and(|n| {
            (1..=6).contains(&n.len()) && n.bytes().all(|c| c.is_ascii_digit()) && n != "0"
        })
    };
    text == "always" || interval(text)
}

/// Characters that stand for themselves between double quotes in the server's file.
fn is_quotable(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-+@:, ".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::identity;
    use crate::names::AgentId;

    fn settings() -> Settings {
        Settings {
            server: "/usr/sbin/nats-server".into(),
            port: 14222,
            sync: "always".into(),
            store: "/var/lib/flock/bus/jetstream".into(),
        }
    }

    #[test]
    fn where_it_listens_is_found_in_its_file() {
        let text = server(&settings()).unwrap();
        assert_eq!(address(&text), Some(([127, 0, 0, 1], 14222).into()));
        assert_eq!(address("listen: here\n"), None);
    }

    #[test]
    fn settings_that_would_change_the_meaning_are_refused() {
        assert!(server(&settings()).is_ok());
        for sync in ["", "always\nport: 1", "2", "m", "0s", "-1s", "2 m", "1e9m", "ALWAYS"] {
            let error =
                server(&Settings { sync: sync.into(), ..settings() }).unwrap_err().to_string();
            assert!(error.contains("bus.sync") && !error.contains('\n'), "{error}");
        }
        for store in ["rel", "/a\"b", "/a\nb", "/a$b", "/a\\b"] {
            assert!(server(&Settings { store: store.into(), ..settings() }).is_err(), "{store}");
        }
        assert!(server(&Settings { port: 0, ..settings() }).is_err());
    }

    #[test]
    fn files_are_written_once_and_private() {
        use std::os::unix::fs::MetadataExt as _;
        let temp = tempfile::tempdir().unwrap();
        let all = identity::ensure(temp.path(), &[], "u").unwrap();
        assert!(write(temp.path(), &settings(), &all, &Talk::default(), None).unwrap());
        assert!(
            !write(temp.path(), &settings(), &all, &Talk::default(), None).unwrap(),
            "nothing changed: no reload"
        );
        let mode = |name| fs::metadata(temp.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode(ACCOUNTS_FILE), mode(SERVER_FILE)), (0o640, 0o640));
        let more = identity::ensure(temp.path(), &[AgentId::parse("a").unwrap()], "u").unwrap();
        assert!(write(temp.path(), &settings(), &more, &Talk::default(), None).unwrap());
    }
}
