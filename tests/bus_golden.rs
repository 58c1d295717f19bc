//! The bus's configuration, byte for byte. `FLOCK_BLESS=1 cargo test --test bus_golden` writes the
//! files anew; the diff is then what a reviewer reads.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use async_nats::jetstream::consumer::IntoConsumerConfig as _;
use flock::bus::streams::{self, Delivery, Member};
use flock::bus::talk::Talk;
use flock::bus::{Settings, accounts, identity, server_conf};
use flock::names::{AgentId, ChannelName};

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bus").join(name);
    if std::env::var_os("FLOCK_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs from what flock writes:\n{text}", path.display());
}

fn ids() -> Vec<AgentId> {
    ["agent-1", "agent-2", "agent-3"].iter().map(|n| AgentId::parse(n).unwrap()).collect()
}

/// Identities whose passwords are known: the digit of the agent, 64 times.
fn identities() -> identity::Identities {
    let temp = tempfile::tempdir().unwrap();
    for (user, digit) in [("operator", "0"), ("agent-1", "1"), ("agent-2", "2"), ("agent-3", "3")] {
        let path = temp.path().join(format!("{user}.env"));
        let password = digit.repeat(64);
        let text = format!("NATS_URL=u\nNATS_USER={user}\nNATS_PASSWORD={password}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    identity::ensure(temp.path(), &ids(), "u").unwrap()
}

/// A channel for all and one without agent-2, which may ask agent-1; agent-1 may ask agent-3.
fn talk() -> Talk {
    let [one, two, three] = <[AgentId; 3]>::try_from(ids()).unwrap();
    let channel = |name| ChannelName::parse(name).unwrap();
    Talk {
        channels: [
            (channel("flock"), ids().into_iter().collect()),
            (channel("review"), [one.clone(), three.clone()].into()),
        ]
        .into(),
        requests: [(one.clone(), three), (two.clone(), one)].into(),
        message: [(two, 64 * 1024)].into(),
    }
}

#[test]
fn the_server_configuration() {
    let settings = Settings {
        server: "/usr/sbin/nats-server".into(),
        port: 14222,
        sync: "always".into(),
        store: "/var/lib/flock/bus/jetstream".into(),
    };
    compare("nats-server.conf", &server_conf::server(&settings).unwrap());
}

#[test]
fn the_accounts_of_three_agents() {
    compare("accounts.conf", &accounts::accounts(&identities(), &talk()));
}

#[test]
fn the_streams_and_consumers() {
    let mut all = serde_json::Map::new();
    for (number, id) in ids().into_iter().enumerate() {
        let delivery = if number == 0 { Delivery::Pull } else { Delivery::Push };
        let member = Member { id: id.clone(), delivery };
        let history = streams::history_consumer().into_consumer_config();
        let mut consumers = vec![history];
        consumers.extend(streams::consumers(&member));
        let tasks = serde_json::json!({ "config": streams::tasks(&id), "consumers": consumers });
        all.insert(streams::tasks(&id).name, tasks);
        let name = streams::results(&id).name;
        let history = streams::history_consumer().into_consumer_config();
        let results =
            serde_json::json!({ "config": streams::results(&id), "consumers": [history] });
        all.insert(name, results);
        let channels = serde_json::json!({ "config": streams::channels(&id), "consumers": [] });
        all.insert(streams::channels(&id).name, channels);
    }
    let queue = streams::queue();
    let history = streams::history_consumer().into_consumer_config();
    let consumers = [history, streams::lane_consumer(0).into_consumer_config()];
    let name = queue.name.clone();
    all.insert(name, serde_json::json!({ "config": queue, "consumers": consumers }));
    let dead = streams::dead_letters();
    all.insert(dead.name.clone(), serde_json::json!({ "config": dead, "consumers": [] }));
    compare("streams.json", &format!("{}\n", serde_json::to_string_pretty(&all).unwrap()));
}
