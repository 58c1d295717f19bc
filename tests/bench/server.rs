//! A nats-server of its own, configured as flock configures it, and the clients on both sides.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flock::agent::link::Link;
use flock::agent::settings::Settings as AgentSettings;
use flock::bus::hub::Hub;
use flock::bus::identity::{self, Identities};
use flock::bus::streams::{Delivery, Member};
use flock::bus::talk::Talk;
use flock::bus::{Settings, server_conf, version};
use flock::names::AgentId;

/// It ends with the value.
pub struct Bus {
    dir: tempfile::TempDir,
    child: Child,
    settings: Settings,
    all: Identities,
    agents: Vec<AgentId>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bus {
    /// A server that flushes to disk as `sync` says, with agents `agent-1` to `agent-<count>`.
    pub fn start(sync: &str, count: usize) -> Self {
        let server = std::env::var_os("FLOCK_NATS_SERVER")
            .map_or("/usr/sbin/nats-server".into(), PathBuf::from);
        version::check(&server).expect("a nats-server that flock can use");
        // Not in memory: what a flush costs is part of the figure.
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder on disk");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let store = dir.path().join("jetstream");
        let settings = Settings { server, port, sync: sync.to_owned(), store };
        let agents: Vec<AgentId> =
            (1..=count).map(|n| AgentId::parse(&format!("agent-{n}")).expect("an id")).collect();
        let all = identity::ensure(&dir.path().join("identity"), &agents, &settings.url())
            .expect("identities");
        server_conf::write(dir.path(), &settings, &all, &Talk::default(), None)
            .expect("the server's configuration");
        let child = Command::new(&settings.server)
            .arg("-c")
            .arg(dir.path().join(server_conf::SERVER_FILE))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        Self { dir, child, settings, all, agents }
    }

    /// The operator's side.
    pub async fn hub(&self) -> Hub {
        for _ in 0..200 {
            if let Ok(hub) = Hub::connect(&self.all.operator, &self.settings.url()).await {
                return hub;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the server does not answer");
    }

    /// Where flockd writes down what the bus holds, on the same disk.
    pub fn history(&self) -> PathBuf {
        self.dir.path().join("history.db")
    }

    /// The agents, as flock-agent takes tasks.
    pub fn members(&self) -> Vec<Member> {
        let member = |id: &AgentId| Member { id: id.clone(), delivery: Delivery::Pull };
        self.agents.iter().map(member).collect()
    }

    /// The ids.
    pub fn agents(&self) -> &[AgentId] {
        &self.agents
    }

    /// The side of one agent, as flock-agent holds it.
    pub async fn link(&self, id: &AgentId) -> Link {
        let who = &self.all.agents[id];
        let get = |name: &str| {
            Some(match name {
                "AGENT_ID" => id.to_string(),
                "NATS_URL" => self.settings.url(),
                "NATS_USER" => who.user().to_owned(),
                "NATS_PASSWORD" => who.password().to_owned(),
                "SHARED_DIR" => "/nonexistent".to_owned(),
                _ => return None,
            })
        };
        let settings = AgentSettings::from(get, vec!["/bin/true".into()]).expect("settings");
        Link::connect(&settings).await
    }

    /// A client that knows nothing of flock, with the rights of an agent, or the operator's.
    pub async fn raw(&self, agent: Option<&AgentId>) -> async_nats::Client {
        let who = agent.map_or(&self.all.operator, |id| &self.all.agents[id]);
        let login = (who.user().to_owned(), who.password().to_owned());
        async_nats::ConnectOptions::with_user_and_password(login.0, login.1)
            .connect(self.settings.url())
            .await
            .expect("a raw connection")
    }
}
