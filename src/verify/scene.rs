//! What a run attacks, and the orders for its probes: pure.

use std::net::{Ipv4Addr, SocketAddr};

use sha2::{Digest as _, Sha256};

use super::lists::{CALLS, DEVICES, INVENTORIES};
use crate::bus::subject;
use crate::host::sys::SysV;
use crate::names::{AgentId, CONFIG_FILE, bus_dir, identity_dir, shared_dir};
use crate::probe::wire::{Act, Attempt, Order};

/// Everything that was set up to be attacked.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Tells this run's objects from any other's. Agents can learn it.
    pub nonce: String,
    /// What marks are made from: nobody can leave a mark in another's name.
    pub key: String,
    /// The agents as targets.
    pub targets: Vec<Target>,
    /// What belongs to the host.
    pub host: Host,
}

/// One agent as a target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Whose.
    pub id: AgentId,
    /// Its Unix user.
    pub uid: u32,
    /// A process of that user.
    pub tripwire: i32,
    /// A listener that stands for it.
    pub tcp: SocketAddr,
    /// The same for datagrams.
    pub udp: SocketAddr,
    /// What it may use up.
    pub limits: Bounds,
}

/// What an agent may use up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Tasks.
    pub tasks: u64,
    /// Open files.
    pub files: u64,
    /// Bytes in /tmp.
    pub tmp: u64,
}

/// Targets of the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Processes by name.
    pub processes: Vec<(String, i32)>,
    /// Services' sockets that are there.
    pub sockets: Vec<String>,
    /// A listener that is nobody's.
    pub tcp: Option<SocketAddr>,
    /// A listener over IPv6.
    pub tcp6: Option<SocketAddr>,
    /// The same for datagrams.
    pub udp6: Option<SocketAddr>,
    /// Where a resolver listens, or a sink in its place.
    pub resolver: SocketAddr,
    /// The key of the System V objects.
    pub key: i32,
    /// The name of the POSIX queue.
    pub queue: String,
    /// A file in /dev/shm.
    pub shm: String,
    /// A socket at a path.
    pub unix: String,
    /// An abstract socket.
    pub abstract_name: String,
}

/// Who makes the attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor<'a> {
    /// This agent, inside its sandbox.
    Sandbox(&'a AgentId),
    /// This agent's user, without it.
    User(&'a AgentId),
    /// One that nothing protects against.
    Control,
}

impl Actor<'_> {
    fn is(self, id: &AgentId) -> bool {
        matches!(self, Self::Sandbox(own) | Self::User(own) if own == id)
    }

    /// What it leaves behind where it gets through.
    #[must_use]
    pub fn mark(self, scene: &Scene) -> String {
        let name = match self {
            Self::Sandbox(id) => format!("sandbox:{id}"),
            Self::User(id) => format!("user:{id}"),
            Self::Control => "control".to_owned(),
        };
        let digest = Sha256::digest(format!("{}:{name}", scene.key));
        let text: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        text + "\n"
    }

    /// The shared tree as it sees it.
    fn shared(self) -> String {
        match self {
            Self::Sandbox(_) => "/shared".to_owned(),
            Self::User(_) | Self::Control => shared_dir().display().to_string(),
        }
    }
}

/// The name of the file that is attacked in each agent's directory.
#[must_use]
pub fn canary(nonce: &str) -> String {
    format!(".flock-verify-{nonce}")
}

/// Everything that one actor tries.
#[must_use]
pub fn order(scene: &Scene, actor: Actor<'_>) -> Order {
    let mut list = List(Vec::new());
    for target in scene.targets.iter().filter(|target| !actor.is(&target.id)) {
        peer_files(&mut list, scene, actor, target);
        process(&mut list, actor, target.id.as_str(), target.tripwire, true);
        peer_network(&mut list, scene, actor, target);
    }
    host_files(&mut list, scene, actor);
    for (name, pid) in &scene.host.processes {
        process(&mut list, actor, name, *pid, false);
    }
    host_network(&mut list, scene, actor);
    ipc(&mut list, scene, actor);
    if !matches!(actor, Actor::User(_)) {
        bus(&mut list, scene, actor);
        limits(&mut list, scene, actor);
    }
    if matches!(actor, Actor::Sandbox(_)) {
        inventories(&mut list);
    }
    own(&mut list);
    Order { attempts: list.0 }
}

struct List(Vec<Attempt>);

impl List {
    fn add(&mut self, check: &str, target: &str, act: Act) {
        self.0.push(Attempt { check: check.to_owned(), target: target.to_owned(), act });
    }
}

fn peer_files(list: &mut List, scene: &Scene, actor: Actor<'_>, target: &Target) {
    let (id, shared) = (target.id.as_str(), actor.shared());
    let dir = format!("{shared}/agents/{id}");
    let file = format!("{dir}/{}", canary(&scene.nonce));
    let mark = actor.mark(scene);
    list.add("file.read", id, Act::Read(file.clone()));
    list.add("file.write", id, Act::Append { path: file, mark });
    list.add("file.list", id, Act::List(dir.clone()));
    list.add("file.create", id, Act::Create(dir));
    list.add("file.log", id, Act::Open(format!("{shared}/logs/{id}.log")));
    let identity = identity_dir().join(format!("{id}.env"));
    list.add("file.identity", id, Act::Open(identity.display().to_string()));
}

/// What belongs to the host is only asked about: no signal is sent, nothing is traced.
fn process(list: &mut List, actor: Actor<'_>, name: &str, pid: i32, ours: bool) {
    list.add("proc.see", name, Act::See(pid));
    let signal = match (ours, actor) {
        (false, _) => 0,
        (true, Actor::Control) => crate::probe::tripwire::SIGNALS[1] as i32,
        (true, _) => crate::probe::tripwire::SIGNALS[0] as i32,
    };
    list.add("proc.signal", name, Act::Signal { pid, signal });
    list.add("proc.memory", name, Act::Memory(pid));
    if ours {
        list.add("proc.trace", name, Act::Trace(pid));
        list.add("proc.descriptor", name, Act::Descriptor(pid));
        for part in ["environ", "mem", "root"] {
            list.add(&format!("proc.{part}"), name, Act::Proc { pid, part: part.to_owned() });
        }
    }
}

fn peer_network(list: &mut List, scene: &Scene, actor: Actor<'_>, target: &Target) {
    let mark = actor.mark(scene);
    let id = target.id.as_str();
    list.add("net.tcp", id, Act::Tcp { to: target.tcp, mark: mark.clone() });
    list.add("net.udp", id, Act::Udp { to: target.udp, mark });
}

fn host_files(list: &mut List, scene: &Scene, actor: Actor<'_>) {
    let (host, shared) = ("host", actor.shared());
    let text = |path: std::path::PathBuf| path.display().to_string();
    list.add("file.agents", host, Act::List(text(shared_dir().join("agents"))));
    list.add("file.common", host, Act::Create(format!("{shared}/common")));
    list.add("file.shadow", host, Act::Open("/etc/shadow".to_owned()));
    list.add("file.config", host, Act::Open(CONFIG_FILE.to_owned()));
    list.add("file.state", host, Act::List(text(bus_dir())));
    list.add("file.system", host, Act::Create(crate::names::LIB_DIR.to_owned()));
    list.add("file.setuid", host, Act::SetUid("/tmp".to_owned()));
    list.add("file.device", host, Act::Device("/tmp".to_owned()));
    list.add("ipc.shm", host, Act::Read(scene.host.shm.clone()));
    for device in DEVICES {
        list.add("device", device, Act::Open(device.to_owned()));
    }
}

fn host_network(list: &mut List, scene: &Scene, actor: Actor<'_>) {
    let mark = || actor.mark(scene);
    let host = &scene.host;
    if let Some(to) = host.tcp {
        list.add("net.port", "host", Act::Tcp { to, mark: mark() });
    }
    // A host without IPv6 has no way over it.
    if let Some(to) = host.tcp6 {
        list.add("net.tcp6", "host", Act::Tcp { to, mark: mark() });
    }
    if let Some(to) = host.udp6 {
        list.add("net.udp6", "host", Act::Udp { to, mark: mark() });
    }
    list.add("net.ping", "host", Act::Ping(Ipv4Addr::LOCALHOST));
    // A question for the root's name servers, which is a valid packet for any resolver.
    let question = "\u{1}\u{2}\u{1}\0\0\u{1}\0\0\0\0\0\0\0\0\u{2}\0\u{1}".to_owned();
    list.add("net.dns", "resolver", Act::Udp { to: host.resolver, mark: question });
    list.add("net.dns-tcp", "resolver", Act::Tcp { to: host.resolver, mark: mark() });
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    list.add("net.metadata", "169.254.169.254", Act::Tcp { to: metadata, mark: String::new() });
    let families = [
        ("net.raw", 2, 3, 1),
        ("net.packet", 17, 3, 0),
        ("net.netlink", 16, 3, 0),
        ("net.vsock", 40, 1, 0),
    ];
    for (check, family, kind, protocol) in families {
        list.add(check, "host", Act::Socket { family, kind, protocol });
    }
}

fn ipc(list: &mut List, scene: &Scene, actor: Actor<'_>) {
    let host = &scene.host;
    let objects = [
        ("ipc.memory", SysV::Memory),
        ("ipc.semaphores", SysV::Semaphores),
        ("ipc.queue", SysV::Queue),
    ];
    for (check, kind) in objects {
        list.add(check, "host", Act::SysV { kind, key: host.key });
    }
    list.add("ipc.posix-queue", "host", Act::Queue(host.queue.clone()));
    list.add("ipc.unix", "host", Act::Unix(host.unix.clone()));
    list.add("ipc.abstract", "host", Act::Abstract(host.abstract_name.clone()));
    for socket in &host.sockets {
        // A connection can start a service: the control only looks whether there is a listener.
        let act = match actor {
            Actor::Control => Act::Listens(socket.clone()),
            _ => Act::Unix(socket.clone()),
        };
        list.add("ipc.host", socket, act);
    }
}

/// Every attempt makes the server write a line, so two are made at every other agent and the rest
/// at the next one: each agent is attacked in every way, and attacks in every way.
fn bus(list: &mut List, scene: &Scene, actor: Actor<'_>) {
    let mark = || actor.mark(scene).trim().to_owned();
    let control = actor == Actor::Control;
    // What would reach an agent is tried by the control where nobody listens.
    let harmless = |subject: String| match control {
        true => format!("verify.{}.nobody", scene.nonce),
        false => subject,
    };
    let own = scene.targets.iter().position(|target| actor.is(&target.id));
    let next = own.map(|own| (own + 1) % scene.targets.len());
    for (index, target) in scene.targets.iter().enumerate() {
        if own == Some(index) {
            continue;
        }
        let id = &target.id;
        let publish = |subject: String| Act::Publish { subject: harmless(subject), mark: mark() };
        list.add("bus.task", id.as_str(), publish(format!("tasks.{id}")));
        list.add("bus.listen", id.as_str(), Act::Subscribe(format!("agent.{id}.>")));
        if next.is_none_or(|next| next == index) {
            list.add("bus.result", id.as_str(), publish(subject::result(id)));
            list.add("bus.event", id.as_str(), publish(subject::events(id)));
            list.add("bus.take", id.as_str(), publish(subject::next_task(id)));
        }
    }
    let canary = || bus_canary(&scene.nonce);
    let hear = |subject: String| Act::Hear { subject, canary: canary() };
    // Never to an inbox that somebody had, as ">" would: a request of a program that has ended, and
    // waits in the server for a task, would seem to have a listener, get the next one and lose it.
    list.add("bus.all", "bus", hear(format!("*.verify-{}", scene.nonce)));
    list.add("bus.tasks", "bus", hear("tasks.>".to_owned()));
    list.add("bus.inbox", "bus", hear(format!("_INBOX.verify-{}", scene.nonce)));
    let ask = |subject: &str| Act::Publish { subject: subject.to_owned(), mark: mark() };
    list.add("bus.system", "bus", ask("$SYS.REQ.SERVER.PING"));
    list.add("bus.streams", "bus", ask("$JS.API.STREAM.LIST"));
}

/// What is said in the hub during a run, on [`bus_subjects`].
#[must_use]
pub fn bus_canary(nonce: &str) -> String {
    format!("flock-verify {nonce}")
}

/// Where it is said: beside the tasks, and among the answers. Nobody listens there.
#[must_use]
pub fn bus_subjects(nonce: &str) -> [String; 2] {
    [format!("tasks.verify-{nonce}"), format!("_INBOX.verify-{nonce}")]
}

/// More tasks than this are not made: the value in the control group has to be enough.
const TASKS_MOST: u64 = 600;

/// The control has to get more than any agent may.
fn limits(list: &mut List, scene: &Scene, actor: Actor<'_>) {
    let of = |field: fn(&Bounds) -> u64| {
        let those = scene.targets.iter().filter(|t| actor == Actor::Control || actor.is(&t.id));
        those.map(|t| field(&t.limits)).max().unwrap_or_default()
    };
    let tasks = of(|limits| limits.tasks) + 8;
    if tasks <= TASKS_MOST {
        list.add("limit.tasks", "itself", Act::Tasks(tasks));
    }
    list.add("limit.files", "itself", Act::Files(of(|limits| limits.files) + 8));
    let bytes = of(|limits| limits.tmp) + (1 << 20);
    list.add("limit.tmp", "itself", Act::Space { dir: "/tmp".to_owned(), bytes });
}

fn inventories(list: &mut List) {
    for (check, kind) in INVENTORIES {
        list.add(check, "itself", Act::Inventory(kind));
    }
}

fn own(list: &mut List) {
    let fields = [
        ("own.no-new-privileges", "NoNewPrivs"),
        ("own.capabilities", "CapEff"),
        ("own.bounding", "CapBnd"),
    ];
    for (check, field) in fields {
        list.add(check, "itself", Act::Status(field.to_owned()));
    }
    for (check, call) in CALLS {
        list.add(check, "kernel", Act::Call(call));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sys::Call;
    use crate::verify::checks::{CHECKS, find};
    use std::collections::BTreeSet;

    pub(in crate::verify) fn scene() -> Scene {
        let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let target = |id: &str, uid| Target {
            id: AgentId::parse(id).unwrap(),
            uid,
            tripwire: 100,
            tcp: to(1000),
            udp: to(1001),
            limits: Bounds { tasks: 50, files: 100, tmp: 1 << 20 },
        };
        Scene {
            nonce: "n".to_owned(),
            key: "k".to_owned(),
            targets: vec![target("a", 65_537), target("b", 65_538)],
            host: Host {
                processes: vec![("pid 1".to_owned(), 1)],
                sockets: vec!["/run/x".to_owned()],
                tcp: Some(to(1004)),
                tcp6: Some(to(1002)),
                udp6: Some(to(1003)),
                resolver: to(53),
                key: 1,
                queue: "/q".to_owned(),
                shm: "/dev/shm/s".to_owned(),
                unix: "/run/u".to_owned(),
                abstract_name: "n".to_owned(),
            },
        }
    }

    #[test]
    fn every_check_is_tried_and_every_attempt_has_a_check() {
        let scene = scene();
        let of = |actor| order(&scene, actor).attempts;
        let id = scene.targets[0].id.clone();
        let tried: BTreeSet<String> =
            of(Actor::Sandbox(&id)).into_iter().map(|a| a.check).collect();
        for check in tried.iter().filter(|name| !name.starts_with("inventory.")) {
            assert!(find(check).is_some(), "{check}");
        }
        for check in CHECKS.iter().filter(|c| c.area != crate::verify::checks::Area::Machine) {
            // Of a list, an inventory is made; what is seen from outside is not tried.
            let name = check.id.replace("list.", "inventory.");
            let outside = crate::verify::machine::OUTSIDE.contains(&check.id);
            assert!(tried.contains(&name) != outside, "{name}: tried once, or seen from outside");
        }
        let control: BTreeSet<_> =
            of(Actor::Control).into_iter().map(|a| (a.check, a.target)).collect();
        let all = of(Actor::Sandbox(&id)).into_iter().chain(of(Actor::User(&id)));
        for attempt in all.filter(|a| !matches!(a.act, Act::Inventory(_))) {
            assert!(
                control.contains(&(attempt.check.clone(), attempt.target.clone())),
                "{attempt:?}"
            );
        }
    }

    #[test]
    fn nobody_attacks_itself_and_the_last_attempt_is_the_one_that_changes_the_probe() {
        let scene = scene();
        let id = scene.targets[0].id.clone();
        let all = order(&scene, Actor::Sandbox(&id)).attempts;
        assert!(all.iter().all(|attempt| attempt.target != "a"));
        assert_eq!(all.last().unwrap().act, Act::Call(Call::UserNamespace));
    }
}
