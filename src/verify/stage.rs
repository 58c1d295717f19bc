//! What is attacked: made before a run, looked at and removed after it. Root makes all of it, and it
//! is worth nothing to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mqueue::{MQ_OFlag, MqAttr, mq_close, mq_open, mq_unlink};
use nix::sys::stat::Mode;
use tokio::process::Child;

use super::matrix::Trace;
use super::scene::{Actor, Bounds, Host, Scene, Target, canary};
use super::sinks::Sinks;
use super::{VerifyError, tripwires};
use crate::bus::hub::Hub;
use crate::bus::identity;
use crate::host::files::{Dir, Owner};
use crate::host::sys::{self, SysV};
use crate::host::units::Systemd;
use crate::names::{RUN_DIR, identity_dir, shared_dir};
use crate::plan::{Plan, Value};

/// Sockets of services that a host may have.
const SERVICES: [&str; 15] = [
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/notify",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/stdout",
    "/run/systemd/journal/dev-log",
    "/run/systemd/io.systemd.ManagedOOM",
    "/run/systemd/userdb/io.systemd.DynamicUser",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/io.systemd.Login",
    "/run/flock/control.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/libvirt/libvirt-sock",
];

/// So deep below /run sockets are looked for.
const DEPTH_MAX: usize = 4;
/// No more sockets are tried.
const SOCKETS_MAX: usize = 200;

const OBJECTS: [SysV; 3] = [SysV::Memory, SysV::Semaphores, SysV::Queue];

/// Everything that was made.
pub struct Stage {
    /// What the orders are made of.
    pub scene: Scene,
    /// Where orders and reports lie.
    pub folder: PathBuf,
    sinks: Sinks,
    tripwires: BTreeMap<u32, Child>,
    objects: Vec<(SysV, i32)>,
}

impl Stage {
    /// Makes everything that the probes are aimed at.
    ///
    /// # Errors
    /// Naming what could not be made; what was made is removed.
    pub async fn make(systemd: &Systemd, plans: &[Plan]) -> Result<Self, VerifyError> {
        let nonce = nonce_of(8)?;
        let folder = Path::new(RUN_DIR).join("verify").join(&nonce);
        fs::create_dir_all(&folder).map_err(|e| VerifyError::stage(&folder.display(), e))?;
        let mut stage = Self {
            scene: Scene {
                nonce: nonce.clone(),
                key: nonce_of(16)?,
                targets: Vec::new(),
                host: Host::new(&nonce, &folder),
            },
            sinks: Sinks::new(),
            tripwires: BTreeMap::new(),
            objects: Vec::new(),
            folder,
        };
        if let Err(error) = stage.fill(systemd, plans).await {
            stage.clear();
            return Err(error);
        }
        Ok(stage)
    }

    async fn fill(&mut self, systemd: &Systemd, plans: &[Plan]) -> Result<(), VerifyError> {
        // Below it lie sockets that everybody may reach, so that the view alone is tried.
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o711));
        open(&self.folder).map_err(|e| VerifyError::stage(&self.folder.display(), e))?;
        for plan in plans {
            let (id, uid) = (&plan.agent, plan.user.uid);
            let owner = Owner { uid, gid: uid };
            Dir::open(&plan.tree.workspace)
                .and_then(|dir| {
                    dir.write(&canary(&self.scene.nonce), self.secret().as_bytes(), owner, 0o600)
                })
                .map_err(|e| VerifyError::stage(&format!("the canary of {id}"), e))?;
            if !self.tripwires.contains_key(&uid) {
                let child = tripwires::start(uid, &self.secret()).await;
                let child = child.map_err(|e| VerifyError::stage(&"a tripwire", e))?;
                self.tripwires.insert(uid, child);
            }
            let tripwire = self.tripwires.get(&uid).and_then(Child::id);
            let tripwire = tripwire.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
            let fault = |e| VerifyError::stage(&format!("the listeners of {id}"), e);
            let (tcp, udp) = self.sinks.pair(id.as_str()).await.map_err(fault)?;
            let number = |name| match plan.unit.value(name) {
                Some(Value::U64(number)) => *number,
                _ => 0,
            };
            let limits = Bounds {
                tasks: number("TasksMax"),
                files: number("LimitNOFILE"),
                tmp: tmp_size(plan),
            };
            self.scene.targets.push(Target { id: id.clone(), uid, tripwire, tcp, udp, limits });
        }
        self.host(systemd).await
    }

    async fn host(&mut self, systemd: &Systemd) -> Result<(), VerifyError> {
        let host = &mut self.scene.host;
        let fault = |what: &'static str| move |e| VerifyError::stage(&what, e);
        host.processes.push(("pid 1".to_owned(), 1));
        for (name, unit) in [("flockd", "flockd.service"), ("the bus", "flock-bus.service")] {
            let facts = systemd.facts(unit).await.map_err(VerifyError::Unit)?;
            let pid = facts.number("MainPID").and_then(|pid| i32::try_from(pid).ok());
            host.processes.extend(pid.filter(|pid| *pid > 0).map(|pid| (name.to_owned(), pid)));
        }
        host.sockets = services();
        host.tcp = Some(self.sinks.port("host").await.map_err(fault("a listener"))?);
        // A host without IPv6 has nothing to fence there.
        if let Ok((tcp, udp)) = self.sinks.pair_v6("host").await {
            (host.tcp6, host.udp6) = (Some(tcp), Some(udp));
        }
        host.resolver = self.sinks.resolver().await.map_err(fault("a resolver"))?;
        self.sinks.unix(&host.unix).map_err(fault("a socket"))?;
        self.sinks.abstract_unix(&host.abstract_name).map_err(fault("an abstract socket"))?;
        let shm = Path::new(&host.shm);
        fs::write(shm, &self.scene.nonce)
            .and_then(|()| fs::set_permissions(shm, fs::Permissions::from_mode(0o666)))
            .map_err(fault("a file in /dev/shm"))?;
        for kind in OBJECTS {
            let id = sys::sysv(kind, host.key, true).map_err(fault("a System V object"))?;
            self.objects.push((kind, id));
        }
        queue(&host.queue).map_err(fault("a POSIX queue"))?;
        // Without a bus its checks stay unknown; the rest can be measured all the same.
        if let Ok((identity, url)) = identity::operator(&identity_dir())
            && let Ok(hub) = Hub::connect(&identity, &url).await
        {
            self.sinks.bus(hub, &self.scene.nonce).await;
        }
        Ok(())
    }

    /// What stands in the canaries and in the environment of the tripwires.
    fn secret(&self) -> String {
        format!("flock-canary {}\n", self.scene.nonce)
    }

    /// What the probes left outside of their sandboxes.
    pub async fn traces(&self) -> Vec<Trace> {
        // What is still on its way.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut heard = self.sinks.marks();
        for target in &self.scene.targets {
            let owner = Owner { uid: target.uid, gid: target.uid };
            let text = Dir::open(&target.id.workspace())
                .and_then(|dir| dir.read(&canary(&self.scene.nonce), owner, 1 << 20));
            let text = text.ok().flatten().unwrap_or_default();
            for line in String::from_utf8_lossy(&text).lines() {
                heard.push(("file.write", target.id.to_string(), format!("{line}\n")));
            }
        }
        let marks = self.marks();
        let trace = |(check, target, mark): (&'static str, String, String)| {
            let (agent, vantage) = marks.get(&mark)?.clone();
            Some(Trace { agent, vantage, check, target })
        };
        heard.into_iter().filter_map(trace).collect()
    }

    /// What the agents that it stands for have done away with: an attack on it proves nothing.
    pub fn spoiled(&mut self) -> BTreeSet<(&'static str, String)> {
        let mut spoiled = BTreeSet::new();
        let dead = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        let dead: Vec<u32> = self
            .tripwires
            .iter_mut()
            .filter_map(|(uid, child)| dead(child).then_some(*uid))
            .collect();
        for target in &self.scene.targets {
            let owner = Owner { uid: target.uid, gid: target.uid };
            let text = Dir::open(&target.id.workspace())
                .and_then(|dir| dir.read(&canary(&self.scene.nonce), owner, 1 << 20));
            let secret = self.secret();
            if !text.ok().flatten().is_some_and(|text| text.starts_with(secret.as_bytes())) {
                spoiled.extend(["file.read", "file.write"].map(|c| (c, target.id.to_string())));
            }
            if dead.contains(&target.uid) {
                spoiled.insert(("proc.", target.id.to_string()));
            }
        }
        spoiled
    }

    /// The users whose tripwire was sent the agents' signal, whoever says so.
    #[must_use]
    pub fn signalled(&self) -> Vec<u32> {
        let hit = |child: &Child| child.id().is_some_and(tripwires::was_signalled);
        self.tripwires.iter().filter(|(_, child)| hit(child)).map(|(uid, _)| *uid).collect()
    }

    /// Whose each mark would be.
    fn marks(&self) -> BTreeMap<String, (String, &'static str)> {
        let both = |target: &Target| {
            let id = &target.id;
            [(Actor::Sandbox(id), "sandbox"), (Actor::User(id), "user")]
                .map(|(actor, word)| (actor.mark(&self.scene), (id.to_string(), word)))
        };
        self.scene.targets.iter().flat_map(both).collect()
    }

    /// Removes everything that was made. Never stops at the first error: the rest has to go as well.
    pub fn clear(&mut self) {
        for target in &self.scene.targets {
            let name = canary(&self.scene.nonce);
            let _ = Dir::open(&target.id.workspace()).and_then(|dir| dir.remove(Path::new(&name)));
        }
        for (kind, id) in self.objects.drain(..) {
            let _ = sys::sysv_remove(kind, id);
        }
        let _ = mq_unlink(self.scene.host.queue.as_str());
        let _ = fs::remove_file(&self.scene.host.shm);
        let _ = fs::remove_dir_all(&self.folder);
        // Killed when they are dropped.
        self.tripwires.clear();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Host {
    pub(super) fn new(nonce: &str, folder: &Path) -> Self {
        let key = i32::from_str_radix(nonce.get(..7).unwrap_or_default(), 16).unwrap_or(1).max(1);
        Self {
            processes: Vec::new(),
            sockets: Vec::new(),
            tcp: None,
            tcp6: None,
            udp6: None,
            resolver: ([127, 0, 0, 53], 53).into(),
            key,
            queue: format!("/flock-verify-{nonce}"),
            shm: format!("/dev/shm/flock-verify-{nonce}"),
            unix: folder.join("sink.sock").display().to_string(),
            abstract_name: format!("flock-verify-{nonce}"),
        }
    }
}

/// Those of [`SERVICES`] that are there, and every other socket in a directory of services.
pub(super) fn services() -> Vec<String> {
    let there = |path: &&&str| Path::new(path).exists();
    let mut found: BTreeSet<String> =
        SERVICES.iter().filter(there).map(|path| (*path).to_owned()).collect();
    let mut folders = vec![(PathBuf::from("/run"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            // What belongs to runs like this one comes and goes.
            let ours = path.starts_with(Path::new(RUN_DIR).join("verify"))
                || path.starts_with(Path::new(RUN_DIR).join("gate"));
            if kind.is_dir() && depth < DEPTH_MAX && !ours {
                folders.push((path, depth + 1));
            } else if kind.is_socket() && found.len() < SOCKETS_MAX {
                found.insert(path.display().to_string());
            }
        }
    }
    found.into_iter().collect()
}

/// So many random bytes as text.
pub(super) fn nonce_of(length: usize) -> Result<String, VerifyError> {
    let mut bytes = vec![0u8; length];
    getrandom::fill(&mut bytes).map_err(|e| VerifyError::stage(&"a random number", e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The size of its /tmp, as the unit says it.
fn tmp_size(plan: &Plan) -> u64 {
    let Some(Value::Pairs(mounts)) = plan.unit.value("TemporaryFileSystem") else { return 0 };
    let options = mounts.iter().find(|(path, _)| path == "/tmp").map(|(_, options)| options);
    let size = |option: &str| option.strip_prefix("size=")?.parse().ok();
    options.and_then(|options| options.split(',').find_map(size)).unwrap_or(0)
}

fn queue(name: &str) -> std::io::Result<()> {
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR;
    let attributes = MqAttr::new(0, 1, 64, 0);
    let queue = mq_open(name, flags, Mode::from_bits_truncate(0o666), Some(&attributes))?;
    Ok(mq_close(queue)?)
}

/// What a run that was killed has left; each run has a folder of its own.
pub fn sweep(alive: &[PathBuf]) {
    let folders = fs::read_dir(Path::new(RUN_DIR).join("verify"));
    for folder in folders.into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Some(nonce) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        if alive.contains(&folder) || nonce.len() != 16 {
            continue;
        }
        let host = Host::new(nonce, &folder);
        for kind in OBJECTS {
            if let Ok(id) = sys::sysv(kind, host.key, false) {
                let _ = sys::sysv_remove(kind, id);
            }
        }
        let _ = mq_unlink(host.queue.as_str());
        let _ = fs::remove_file(&host.shm);
        let workspaces = Dir::open(&shared_dir().join("agents")).and_then(|dir| dir.names());
        for workspace in workspaces.unwrap_or_default() {
            let path = shared_dir().join("agents").join(workspace);
            let _ = Dir::open(&path).and_then(|dir| dir.remove(Path::new(&canary(nonce))));
        }
        let _ = fs::remove_dir_all(&folder);
    }
}
