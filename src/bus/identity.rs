//! Who is who on the bus: one user and one random password per agent, and one for the operator.
//!
//! Each lies in a file of its own that only root can read; PID 1 gives it to the agent as its
//! environment. The files of a batch are made together, so that the server is reloaded once.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::subject::OPERATOR;
use crate::fail::{self, Point};
use crate::names::AgentId;

/// Characters of a password: 256 bits in hexadecimal digits, which need no quoting anywhere.
const PASSWORD_LEN: usize = 64;
/// No file of ours is longer.
const FILE_MAX: u64 = 4096;

/// One user of the bus and its password. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    user: String,
    password: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.user)
    }
}

/// Everybody on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identities {
    /// flockd and flockctl.
    pub operator: Identity,
    /// The agents, in the order of their ids.
    pub agents: BTreeMap<AgentId, Identity>,
}

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read, made or changed.
    #[error("{step} {}: {cause}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Somebody other than root could have read or written the file.
    #[error(
        "read the bus identity {}: its owner or mode is wrong (uid {uid}, mode {mode:04o}): \
         remove the file and run `flockctl apply`, which makes a new password", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not what flock writes.
    #[error(
        "read the bus identity {}: {what}: remove the file and run `flockctl apply`, \
         which makes a new password", path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel gave no random bytes.
    #[error("make a bus password: the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl Identity {
    /// A new identity with a fresh password of 256 random bits.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate(user: &str) -> Result<Self, Error> {
        let mut bytes = [0u8; PASSWORD_LEN / 2];
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        let password = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { user: user.to_owned(), password })
    }

    /// The user name: the agent's id, or `operator`.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password. It must reach no command line, log or D-Bus property.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The environment file for systemd's `EnvironmentFile=`. The URL holds no password: programs
    /// print URLs, and the npm client ignores a password there.
    #[must_use]
    pub fn env_text(&self, url: &str) -> String {
        let Self { user, password } = self;
        let mut text = format!("NATS_URL={url}\nNATS_USER={user}\nNATS_PASSWORD={password}\n");
        if user != OPERATOR {
            // Who it is, is not left to any other file: this one is read last.
            text.push_str(&format!(
                "AGENT_ID={user}\nSHARED_DIR=/shared\nHOME=/shared/agents/{user}\n"
            ));
        }
        text
    }

    /// Reads back [`Identity::env_text`]: the identity of `user` and the URL.
    ///
    /// # Errors
    /// With what is wrong, when it is not such a text or is another user's.
    fn parse(text: &str, user: &str) -> Result<(Self, String), &'static str> {
        let mut fields = BTreeMap::new();
        for line in text.lines() {
            let (key, value) = line.split_once('=').ok_or("a line has no =")?;
            if fields.insert(key, value).is_some() {
                return Err("a key stands twice");
            }
        }
        let mut take =
            |key| fields.remove(key).ok_or("NATS_URL, NATS_USER or NATS_PASSWORD is missing");
        let (url, name, password) = (take("NATS_URL")?, take("NATS_USER")?, take("NATS_PASSWORD")?);
        if name != user {
            return Err("it is another user's");
        }
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if password.len() != PASSWORD_LEN || !password.bytes().all(hex) {
            return Err("the password is not one that flock makes");
        }
        Ok((Self { user: name.to_owned(), password: password.to_owned() }, url.to_owned()))
    }
}

/// Makes what is missing in `dir` and returns everybody: the operator and `agents`.
///
/// An identity that exists keeps its password, also when the URL changes. Each file is complete or
/// absent, also after a power cut.
///
/// # Errors
/// When `dir` or a file cannot be made or read, or one was open to others or is damaged.
pub fn ensure(dir: &Path, agents: &[AgentId], url: &str) -> Result<Identities, Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error("make the directory", dir))?;
    let operator = ensure_one(dir, OPERATOR, url)?;
    let mut all = BTreeMap::new();
    for id in agents {
        all.insert(id.clone(), ensure_one(dir, id.as_str(), url)?);
    }
    sync_dir(dir)?;
    Ok(Identities { operator, agents: all })
}

/// Reads the operator's identity and the bus address, for flockd and flockctl.
///
/// # Errors
/// When the file is absent, was open to others, or is damaged.
pub fn operator(dir: &Path) -> Result<(Identity, String), Error> {
    let path = env_path(dir, OPERATOR);
    let missing = |path: &Path| Error::File {
        step: "read the bus identity",
        path: path.to_owned(),
        cause: io::Error::new(
            io::ErrorKind::NotFound,
            "it is not there: run `flockctl apply` first",
        ),
    };
    load(&path, OPERATOR)?.ok_or_else(|| missing(&path))
}

/// The agents that have an identity in `dir` and are not in `keep`.
///
/// # Errors
/// When `dir` cannot be read.
pub fn stale(dir: &Path, keep: &[AgentId]) -> Result<Vec<AgentId>, Error> {
    let mut stale: Vec<AgentId> = names(dir, ".env")?;
    stale.retain(|id| !keep.contains(id));
    Ok(stale)
}

/// Removes the identities of agents that are not in `keep`, and says whose they were.
///
/// Their access ends when the server is reloaded without them. As long as an identity is there, the
/// agent is known to be [`stale`]: this comes after all else that is done about it.
///
/// # Errors
/// When `dir` cannot be read or a file cannot be removed.
pub fn retire(dir: &Path, keep: &[AgentId]) -> Result<Vec<AgentId>, Error> {
    // Written halfway and not there yet, when the work was broken off.
    let halfway = names(dir, ".env.new")?.into_iter().map(|id| dir.join(format!("{id}.env.new")));
    let gone = stale(dir, keep)?;
    let paths: Vec<PathBuf> =
        gone.iter().map(|id| env_path(dir, id.as_str())).chain(halfway).collect();
    for path in &paths {
        fs::remove_file(path).map_err(file_error("remove the bus identity", path))?;
    }
    if !paths.is_empty() {
        sync_dir(dir)?;
    }
    Ok(gone)
}

/// The agents that have a file with this ending, in order. `operator` is reserved and so is no
/// agent's id.
fn names(dir: &Path, ending: &str) -> Result<Vec<AgentId>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(file_error("read the directory", dir))? {
        let path = entry.map_err(file_error("read the directory", dir))?.path();
        let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(ending));
        found.extend(stem.and_then(|s| AgentId::parse(s).ok()));
    }
    found.sort();
    Ok(found)
}

/// Everybody as they stand in `dir`, and the address they were told; `None` when somebody has no
/// identity. Changes nothing.
///
/// # Errors
/// When a file cannot be read, was open to others, or is damaged.
pub fn read(dir: &Path, agents: &[AgentId]) -> Result<Option<(Identities, Vec<String>)>, Error> {
    let mut urls = Vec::new();
    let mut one = |user: &str| -> Result<Option<Identity>, Error> {
        let Some((identity, url)) = load(&env_path(dir, user), user)? else { return Ok(None) };
        urls.push(url);
        Ok(Some(identity))
    };
    let Some(operator) = one(OPERATOR)? else { return Ok(None) };
    let mut all = BTreeMap::new();
    for id in agents {
        let Some(identity) = one(id.as_str())? else { return Ok(None) };
        all.insert(id.clone(), identity);
    }
    Ok(Some((Identities { operator, agents: all }, urls)))
}

fn env_path(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.env"))
}

fn ensure_one(dir: &Path, user: &str, url: &str) -> Result<Identity, Error> {
    let path = env_path(dir, user);
    let identity = match load(&path, user)? {
        Some((identity, old)) if old == url => return Ok(identity),
        Some((identity, _)) => identity,
        None => Identity::generate(user)?,
    };
    replace(&path, 0o600, None, &identity.env_text(url))
        .map_err(file_error("write the bus identity", &path))?;
    fail::at(Point::IdentityMade);
    Ok(identity)
}

/// The identity in the file, or `None` when there is no file.
fn load(path: &Path, user: &str) -> Result<Option<(Identity, String)>, Error> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error("read the bus identity", path)(e)),
    };
    let broken = |what| Error::Broken { path: path.to_owned(), what };
    if !meta.is_file() || meta.len() > FILE_MAX {
        return Err(broken("it is not a small ordinary file"));
    }
    let (uid, mode) = (meta.uid(), meta.mode() & 0o7777);
    if uid != nix::unistd::geteuid().as_raw() || mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), uid, mode });
    }
    let text = fs::read_to_string(path).map_err(file_error("read the bus identity", path))?;
    Identity::parse(&text, user).map(Some).map_err(broken)
}

/// Puts `text` at `path` in one step: readers see the old file or the whole new one.
pub(super) fn replace(path: &Path, mode: u32, gid: Option<u32>, text: &str) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let temp = PathBuf::from(temp);
    // What a crash left there is ours: only root writes in these directories.
    match fs::remove_file(&temp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    if gid.is_some() {
        std::os::unix::fs::fchown(&file, None, gid)?;
    }
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fail::at(Point::BusFileFilled);
    fs::rename(&temp, path)
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(file_error("write to disk", dir))
}

fn file_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::File { step, path, cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const URL: &str = "nats://127.0.0.1:14222";

    fn ids(names: &[&str]) -> Vec<AgentId> {
        names.iter().map(|n| AgentId::parse(n).unwrap()).collect()
    }

    #[test]
    fn identities_are_private_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("identity");
        let first = ensure(&dir, &ids(&["a", "b"]), URL).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        for name in ["operator", "a", "b"] {
            let meta = fs::metadata(dir.join(format!("{name}.env"))).unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o600, "{name}");
        }
        let passwords: std::collections::BTreeSet<_> = first
            .agents
            .values()
            .chain([&first.operator])
            .map(|i| i.password().to_owned())
            .collect();
        assert_eq!(passwords.len(), 3, "every password is its own");
        let more = ensure(&dir, &ids(&["a", "b", "c"]), URL).unwrap();
        assert_eq!(more.agents[&ids(&["a"])[0]], first.agents[&ids(&["a"])[0]]);
        assert_eq!(operator(&dir).unwrap(), (first.operator.clone(), URL.to_owned()));
        let moved = ensure(&dir, &ids(&["a"]), "nats://127.0.0.1:1").unwrap();
        assert_eq!(moved.operator, first.operator, "a new address keeps the password");
        assert_eq!(operator(&dir).unwrap().1, "nats://127.0.0.1:1");
        assert!(!format!("{moved:?}").contains(moved.operator.password()));
    }

    #[test]
    fn retired_agents_lose_their_file_and_the_operator_keeps_his() {
        let temp = tempfile::tempdir().unwrap();
        ensure(temp.path(), &ids(&["a", "b"]), URL).unwrap();
        assert_eq!(retire(temp.path(), &ids(&["b"])).unwrap(), ids(&["a"]));
        assert!(!temp.path().join("a.env").exists());
        assert!(temp.path().join("b.env").exists() && temp.path().join("operator.env").exists());
        assert_eq!(retire(temp.path(), &ids(&["b"])).unwrap(), ids(&[]));
    }

    #[test]
    fn an_exposed_or_damaged_identity_is_refused_with_the_remedy() {
        let temp = tempfile::tempdir().unwrap();
        ensure(temp.path(), &ids(&["a"]), URL).unwrap();
        let path = temp.path().join("a.env");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = ensure(temp.path(), &ids(&["a"]), URL).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("flockctl apply"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let half = &good[..good.len() / 2];
        let stolen = good.replace("NATS_USER=a", "NATS_USER=b");
        let twice = format!("{good}NATS_USER=a\n");
        let weak = "NATS_URL=x\nNATS_USER=a\nNATS_PASSWORD=secret\n".to_owned();
        for bad in ["", half, &stolen, &twice, &weak, "\0"] {
            fs::write(&path, bad).unwrap();
            let error = ensure(temp.path(), &ids(&["a"]), URL).unwrap_err();
            assert!(matches!(error, Error::Broken { .. }), "{bad:?}: {error}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(ensure(temp.path(), &ids(&["a"]), URL), Err(Error::Broken { .. })));
        assert!(
            operator(&temp.path().join("none")).unwrap_err().to_string().contains("flockctl apply")
        );
    }
}
