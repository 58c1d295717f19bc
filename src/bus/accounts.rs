//! The accounts of nats-server's configuration: the hub and one for each agent. Pure; pinned by a
//! golden file.
//!
//! Two layers, each tested with the other removed. First, an account per agent: inside it only the
//! imports below exist, each from an export that is limited to that account, and the server puts the
//! agent's id into the subject at the other end. Second, permissions that allow the contract's
//! subjects and nothing else, so that a mistake is refused aloud instead of going nowhere.
//!
//! A channel goes two ways. To the hub it is a service of one sender, `say.<id>.<channel>`. From the
//! hub it is a stream of all members, `channel.<name>.*`. Between the two stands a stream of
//! JetStream for each sender, which publishes anew what it gets (see [`super::streams::channels`]):
//! the server does not hand on to other accounts what came by a service import, and imports that
//! lead through the hub and back would be a cycle. So no message keeps the reply subject that its
//! sender chose.
//!
//! A request goes from account to account and not through the hub, so nobody else can hear it. The
//! server makes the reply subject, which works once and for the one who was asked.

use std::fmt::Write as _;

use super::identity::{Identities, Identity};
use super::subject::{self, HUB_ACCOUNT, Kind};
use super::talk::Talk;
use crate::names::AgentId;

/// How long a request can be answered; afterwards neither the subject nor the permission is there.
const ANSWER_TIME: &str = "10m";

/// The text of [`super::server_conf::ACCOUNTS_FILE`].
#[must_use]
pub fn accounts(identities: &Identities, talk: &Talk) -> String {
    let mut out = String::from(
        "# Written by `flockctl apply`; changes here are overwritten. It holds every password.\naccounts {\n",
    );
    hub_account(&mut out, identities, talk);
    for (id, identity) in &identities.agents {
        agent_account(&mut out, id, identity, talk);
    }
    out.push_str("}\n");
    out
}

fn hub_account(out: &mut String, identities: &Identities, talk: &Talk) {
    let operator = &identities.operator;
    let _ = write!(
        out,
        "  {HUB_ACCOUNT} {{\n    jetstream: enabled\n    users: [{{user: \"{}\", password: \"{}\"}}]\n    exports: [\n",
        operator.user(),
        operator.password()
    );
    // `accounts` limits an export; only this file holds imports, so an open one is open to agents alone.
    let _ = writeln!(out, "      {{stream: \"{}\"}}", subject::BROADCAST);
    for (name, members) in &talk.channels {
        let members = members.iter().filter(|id| identities.agents.contains_key(*id));
        let members = quoted(members.map(ToString::to_string));
        if !members.is_empty() {
            let subject = subject::channel_all(name);
            let _ = writeln!(out, "      {{stream: \"{subject}\", accounts: [{members}]}}");
        }
    }
    for id in identities.agents.keys() {
        for service in services(id, talk) {
            let _ = writeln!(out, "      {{service: \"{}\", accounts: [\"{id}\"]}}", service.hub);
        }
        for stream in [format!("deliver.{id}.*"), subject::control(id)] {
            let _ = writeln!(out, "      {{stream: \"{stream}\", accounts: [\"{id}\"]}}");
        }
    }
    out.push_str("    ]\n  }\n");
}

fn agent_account(out: &mut String, id: &AgentId, identity: &Identity, talk: &Talk) {
    let _ = write!(
        out,
        "  \"{id}\" {{\n    users: [{{user: \"{}\", password: \"{}\", permissions: {{\n{}    }}}}]\n",
        identity.user(),
        identity.password(),
        permissions(id, talk),
    );
    if talk.askers_of(id).next().is_some() {
        out.push_str("    exports: [\n");
        for asker in talk.askers_of(id) {
            let subject = subject::request_from(id, asker);
            let _ = writeln!(
                out,
                "      {{service: \"{subject}\", accounts: [\"{asker}\"], response_threshold: \"{ANSWER_TIME}\"}}"
            );
        }
        out.push_str("    ]\n");
    }
    out.push_str("    imports: [\n");
    imports(out, id, talk);
    let _ = write!(
        out,
        "    ]\n    \
         limits: {{max_connections: 8, max_subscriptions: 256, max_payload: {}}}\n  }}\n",
        talk.message_of(id),
    );
}

/// What the agent's user may do inside its account.
fn permissions(id: &AgentId, talk: &Talk) -> String {
    let asked = talk.asked_by(id).map(subject::requests);
    let publish = quoted(services(id, talk).into_iter().map(|s| s.agent).chain(asked));
    let is_asked = talk.askers_of(id).next().is_some();
    let subscribe = ["tasks.>".to_owned(), subject::BROADCAST.to_owned(), subject::control(id)]
        .into_iter()
        .chain(talk.channels_of(id).map(subject::channel_all))
        .chain(is_asked.then(|| subject::request_all(id)))
        .chain(["_INBOX.>".to_owned()]);
    let mut out = format!("      publish: [{publish}]\n      subscribe: [{}]\n", quoted(subscribe));
    if is_asked {
        let _ = writeln!(out, "      allow_responses: {{max: 1, expires: \"{ANSWER_TIME}\"}}");
    }
    out
}

fn imports(out: &mut String, id: &AgentId, talk: &Talk) {
    for service in services(id, talk) {
        let _ = write!(
            out,
            "      {{service: {{account: {HUB_ACCOUNT}, subject: \"{}\"}}",
            service.hub
        );
        if service.hub != service.agent {
            let _ = write!(out, ", to: \"{}\"", service.agent);
        }
        out.push_str("}\n");
    }
    for asked in talk.asked_by(id) {
        let (from, to) = (subject::request_from(asked, id), subject::requests(asked));
        let _ = writeln!(
            out,
            "      {{service: {{account: \"{asked}\", subject: \"{from}\"}}, to: \"{to}\"}}"
        );
    }
    for kind in Kind::EACH {
        let (from, to) = (kind.deliver_subject(id), kind.agent_subject(id));
        let _ = writeln!(
            out,
            "      {{stream: {{account: {HUB_ACCOUNT}, subject: \"{from}\"}}, to: \"{to}\"}}"
        );
    }
    let same = [subject::BROADCAST.to_owned(), subject::control(id)];
    for stream in same.into_iter().chain(talk.channels_of(id).map(subject::channel_all)) {
        let _ =
            writeln!(out, "      {{stream: {{account: {HUB_ACCOUNT}, subject: \"{stream}\"}}}}");
    }
}

/// A subject that an agent may publish on, and where it arrives in the hub.
struct Service {
    hub: String,
    agent: String,
}

fn services(id: &AgentId, talk: &Talk) -> Vec<Service> {
    let same = |subject: String| Service { hub: subject.clone(), agent: subject };
    let mut services = vec![
        Service { hub: subject::result(id), agent: subject::RESULT.to_owned() },
        same(subject::events(id)),
        same(subject::heartbeat(id)),
        same(subject::ask(id)),
        same(subject::next_task(id)),
        same(subject::acks(id)),
    ];
    services.extend(
        talk.channels_of(id)
            .map(|name| Service { hub: subject::say(id, name), agent: subject::channel(name) }),
    );
    services
}

/// A list for the server's file. None of our names has a character that would need more than quotes.
fn quoted(names: impl Iterator<Item = String>) -> String {
    names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::identity;
    use crate::names::ChannelName;

    #[test]
    fn every_export_is_limited_to_those_it_is_for() {
        let temp = tempfile::tempdir().unwrap();
        let ids: Vec<_> = ["a", "a-b", "c"].iter().map(|n| AgentId::parse(n).unwrap()).collect();
        let all = identity::ensure(temp.path(), &ids, "u").unwrap();
        let talk = Talk {
            channels: [(ChannelName::parse("x").unwrap(), ids[..2].iter().cloned().collect())]
                .into(),
            requests: [(ids[0].clone(), ids[2].clone())].into(),
            message: [(ids[2].clone(), 1024)].into(),
        };
        let text = accounts(&all, &talk);
        let open: Vec<&str> =
            text.lines().filter(|l| l.starts_with("      {s") && !l.contains("account")).collect();
        assert_eq!(open, ["      {stream: \"broadcast\"}"]);
        for line in [
            r#"      {stream: "channel.x.*", accounts: ["a", "a-b"]}"#,
            r#"      {service: "say.a-b.x", accounts: ["a-b"]}"#,
            r#"      {service: "agent.c.requests.a", accounts: ["a"], response_threshold: "10m"}"#,
            r#"      {service: {account: "c", subject: "agent.c.requests.a"}, to: "agent.c.requests"}"#,
        ] {
            assert_eq!(text.matches(&format!("{line}\n")).count(), 1, "{line} in\n{text}");
        }
        let of_c = text.split("  \"c\" {").nth(1).unwrap();
        assert!(!of_c.contains("channel.") && of_c.contains("max_payload: 1024"), "{of_c}");
        assert_eq!(text.matches("allow_responses").count(), 1, "only who is asked answers");
    }

    #[test]
    fn a_member_that_has_no_identity_is_left_out() {
        let temp = tempfile::tempdir().unwrap();
        let ids = [AgentId::parse("a").unwrap(), AgentId::parse("b").unwrap()];
        let all = identity::ensure(temp.path(), &ids[..1], "u").unwrap();
        let channels = [(ChannelName::everybody(), ids.iter().cloned().collect())].into();
        let text = accounts(&all, &Talk { channels, ..Talk::default() });
        assert!(text.contains("accounts: [\"a\"]}") && !text.contains("\"b\""), "{text}");
    }
}
