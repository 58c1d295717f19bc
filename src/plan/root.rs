//! What the agent's root directory contains: an empty skeleton of its own, and what is bound in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Access, AgentConfig, Egress};
use crate::names::{AgentId, shared_dir};
use crate::plan::UserPlan;
use crate::tools::RULES_FILE;

/// The skeleton on the host that becomes `/` of the agent, and the binds into it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RootPlan {
    /// The skeleton: `/var/lib/flock/roots/<id>`, root's, never written by the agent.
    pub dir: PathBuf,
    /// Directories in it, relative.
    pub dirs: Vec<PathBuf>,
    /// Symbolic links in it: relative path and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Small files in it, relative, with their text; mode 0444. Also the mount points of files
    /// that are bound in (their text is empty).
    pub files: BTreeMap<PathBuf, String>,
    /// Secrets that are copied in at launch, mode 0400, the agent's user.
    pub secrets: Vec<SecretFile>,
    /// Host path, path in the agent, whether the agent may write, whether it may be missing.
    pub binds: Vec<Bind>,
}

/// A secret file of the agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecretFile {
    /// Where it stands in the skeleton, relative.
    pub path: PathBuf,
    /// Where the operator keeps it.
    pub source: PathBuf,
}

/// A host path that the agent sees.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the agent.
    pub target: PathBuf,
    /// Whether it may be written.
    pub access: Access,
    /// Whether the agent starts without it.
    pub optional: bool,
}

impl Bind {
    fn read(path: &str, optional: bool) -> Self {
        Self { source: path.into(), target: path.into(), access: Access::ReadOnly, optional }
    }
}

/// Directories that systemd mounts on or that programs expect.
const DIRS: [&str; 17] = [
    "usr",
    "etc",
    "etc/ssl",
    "etc/alternatives",
    "etc/secrets",
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "var",
    "var/tmp",
    "var/lib",
    "shared",
    "home",
    "root",
    "opt",
];

/// The merged-usr links of Debian 12 and later.
const LINKS: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// Compiles the view of one agent.
pub(super) fn plan(id: &AgentId, agent: &AgentConfig, user: &UserPlan) -> RootPlan {
    let unrestricted = agent.egress == Egress::Unrestricted;
    RootPlan {
        dir: id.root_dir(),
        dirs: DIRS.iter().map(PathBuf::from).collect(),
        links: LINKS.iter().map(|(a, b)| (a.into(), b.into())).collect(),
        files: files(id, agent, user),
        secrets: secrets(agent),
        binds: binds(id, agent, unrestricted),
    }
}

/// The agent's own `/etc`: nobody else's name stands in it.
fn files(id: &AgentId, agent: &AgentConfig, user: &UserPlan) -> BTreeMap<PathBuf, String> {
    let unrestricted = agent.egress == Egress::Unrestricted;
    let UserPlan { name, uid } = user;
    let home = format!("/shared/agents/{id}");
    let dns = if unrestricted { " dns" } else { "" };
    let mut files = BTreeMap::from([
        (
            "etc/passwd".into(),
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 {name}:x:{uid}:{uid}:flock agent {id}:{home}:/usr/sbin/nologin\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("etc/group".into(), format!("root:x:0:\n{name}:x:{uid}:\nnogroup:x:65534:\n")),
        (
            "etc/nsswitch.conf".into(),
            format!("passwd: files\ngroup: files\nshadow: files\nhosts: files{dns}\n"),
        ),
        ("etc/hosts".into(), "127.0.0.1 localhost\n".to_owned()),
        ("etc/hostname".into(), format!("{id}\n")),
        ("etc/ld.so.cache".into(), String::new()),
        ("etc/localtime".into(), String::new()),
    ]);
    if unrestricted {
        files.insert("etc/resolv.conf".into(), String::new());
    }
    // Rules are plain data: they always have a form in JSON.
    if let Some(rules) = agent.tools.as_ref().and_then(|t| serde_json::to_string_pretty(t).ok()) {
        files.insert(RULES_FILE.into(), rules + "\n");
    }
    files
}

fn secrets(agent: &AgentConfig) -> Vec<SecretFile> {
    let place = |(name, source): (&String, &PathBuf)| SecretFile {
        path: Path::new("etc/secrets").join(name),
        source: source.clone(),
    };
    agent.secret_files.iter().map(place).collect()
}

/// What is bound into the skeleton, and into the empty `/shared` that each agent starts from.
fn binds(id: &AgentId, agent: &AgentConfig, unrestricted: bool) -> Vec<Bind> {
    let mut binds = vec![
        Bind::read("/usr", false),
        Bind::read("/etc/ssl", true),
        Bind::read("/etc/alternatives", true),
        Bind::read("/etc/ld.so.cache", true),
        Bind::read("/etc/localtime", true),
    ];
    if unrestricted {
        binds.push(Bind::read("/etc/resolv.conf", true));
    }
    let shared = |part: &str, access| Bind {
        source: shared_dir().join(part),
        target: Path::new("/shared").join(part),
        access,
        optional: false,
    };
    binds.push(shared(&format!("agents/{id}"), Access::ReadWrite));
    binds.push(shared("common", agent.common));
    binds.push(shared("logs", Access::ReadOnly));
    let host = |path: &PathBuf, access| Bind {
        source: path.clone(),
        target: path.clone(),
        access,
        optional: false,
    };
    binds.extend(agent.read_only_paths.iter().map(|path| host(path, Access::ReadOnly)));
    binds.extend(agent.read_write_paths.iter().map(|path| host(path, Access::ReadWrite)));
    binds
}
