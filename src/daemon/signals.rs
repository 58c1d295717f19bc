//! What PID 1 tells by signal over D-Bus: hints that something may have changed.
//!
//! A hint is never believed: whoever gets one asks PID 1 how things are. So the storm of signals
//! around a daemon-reload, or a lost signal, cannot be mistaken for an agent's end.

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zbus::fdo::DBusProxy;
use zbus::{Connection, MatchRule, Message, MessageStream, message};

/// The bus path of every `flock-agent@….service`, escaped as systemd does.
const AGENT_PATHS: &str = "/org/freedesktop/systemd1/unit/flock_2dagent_40";
/// The names of both units of an agent.
const UNITS: [&str; 2] = ["flock-agent@", "flock@"];
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// What was heard so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Grows with each hint.
    pub hints: u64,
    /// PID 1 reads its units again and answers nobody.
    pub reloading: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    Changed,
    Reloading(bool),
}

/// Hears PID 1 on `connection`, which must have called Subscribe, until it closes: then the
/// receiver's sender is gone. Three match rules, however many agents there are.
///
/// # Errors
/// When the bus refuses a match rule.
pub async fn listen(
    connection: &Connection,
) -> zbus::Result<(watch::Receiver<Heard>, JoinHandle<()>)> {
    // One stream for all rules keeps the order. It has a task of its own: a stream that is not
    // read stops the connection, and so the replies that its reader would wait for.
    let mut stream = MessageStream::from(connection);
    let (sender, receiver) = watch::channel(Heard::default());
    let task = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match hint(&message) {
                None => {}
                Some(Hint::Changed) => sender.send_modify(|heard| heard.hints += 1),
                Some(Hint::Reloading(on)) => sender.send_modify(|heard| {
                    heard.hints += 1;
                    heard.reloading = on;
                }),
            }
        }
    });
    let bus = DBusProxy::new(connection).await?;
    for rule in rules()? {
        bus.add_match_rule(rule).await?;
    }
    Ok((receiver, task))
}

fn rules() -> zbus::Result<[MatchRule<'static>; 3]> {
    let signal = |interface, member| {
        let rule = MatchRule::builder().msg_type(message::Type::Signal);
        rule.sender("org.freedesktop.systemd1").interface(interface).member(member)
    };
    Ok([
        signal(MANAGER, "JobRemoved").build()?,
        signal(MANAGER, "Reloading").build()?,
        signal(PROPERTIES, "PropertiesChanged").arg(0, UNIT).build()?,
    ])
}

fn hint(message: &Message) -> Option<Hint> {
    let header = message.header();
    if message.message_type() != message::Type::Signal {
        return None;
    }
    match header.member()?.as_str() {
        "PropertiesChanged" => {
            header.path()?.as_str().starts_with(AGENT_PATHS).then_some(Hint::Changed)
        }
        "JobRemoved" => {
            let body = message.body();
            let (_, _, unit, _): (u32, zbus::wire::ObjectPath<'_>, &str, &str) =
                body.deserialize().ok()?;
            UNITS.iter().any(|prefix| unit.starts_with(prefix)).then_some(Hint::Changed)
        }
        "Reloading" => message.body().deserialize().ok().map(Hint::Reloading),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal<B: serde::Serialize + zbus::wire::Type>(
        path: &str,
        of: &str,
        name: &str,
        body: &B,
    ) -> Message {
        Message::signal(path, of, name).build(body).unwrap()
    }

    fn changed(path: &str) -> Option<Hint> {
        let nothing: (&str, Vec<(&str, u32)>) = (UNIT, Vec::new());
        hint(&signal(path, PROPERTIES, "PropertiesChanged", &nothing))
    }

    #[test]
    fn only_agents_and_reloads_are_heard() {
        let unit = "/org/freedesktop/systemd1/unit/";
        assert_eq!(
            changed(&format!("{unit}flock_2dagent_40agent_2d1_2eservice")),
            Some(Hint::Changed)
        );
        assert_eq!(changed(&format!("{unit}ssh_2eservice")), None);
        let manager = "/org/freedesktop/systemd1";
        let job = |unit: &str| {
            let path = zbus::wire::ObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap();
            hint(&signal(manager, MANAGER, "JobRemoved", &(1u32, path, unit, "done")))
        };
        assert_eq!(job("flock@agent-1.service"), Some(Hint::Changed));
        assert_eq!(job("flock-agent@agent-1.service"), Some(Hint::Changed));
        assert_eq!(job("flock-bus.service"), None);
        let reload = |on: bool| hint(&signal(manager, MANAGER, "Reloading", &on));
        assert_eq!(reload(true), Some(Hint::Reloading(true)));
        assert_eq!(reload(false), Some(Hint::Reloading(false)));
        assert_eq!(hint(&signal(manager, MANAGER, "UnitRemoved", &("x", "/x"))), None);
    }

    #[test]
    fn the_rules_are_three_and_narrow() {
        let texts: Vec<String> = rules().unwrap().iter().map(ToString::to_string).collect();
        assert!(texts.iter().all(|rule| rule.contains("sender='org.freedesktop.systemd1'")));
        assert!(texts[2].contains("arg0='org.freedesktop.systemd1.Unit'"), "{}", texts[2]);
    }
}
