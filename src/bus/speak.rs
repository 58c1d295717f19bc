//! What the operator says and hears on the bus beside tasks: broadcasts and channels. Core NATS:
//! whoever does not listen now never hears it.

use futures_util::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hub::{Error, Hub, refused};
use super::subject::{self, OPERATOR};
use crate::names::ChannelName;

/// The longest text that the operator says: what flockd reads in one request, with room to spare.
pub const TEXT_MAX: usize = 256 * 1024;

/// What somebody said on a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// When flock heard it.
    pub at: Timestamp,
    /// Who said it: an agent's id, as the server saw it, or `operator`.
    pub from: String,
    /// The words. They are an agent's: show them escaped only.
    pub text: String,
}

impl Hub {
    /// Says something to every agent that listens now; nothing is stored.
    ///
    /// # Errors
    /// When the text is too large or the connection is down.
    pub async fn broadcast(&self, text: &str) -> Result<(), Error> {
        self.speak("send the broadcast", subject::BROADCAST.to_owned(), text).await
    }

    /// Says something to the members of a channel that listen now; nothing is stored.
    ///
    /// # Errors
    /// When the text is too large or the connection is down.
    pub async fn say(&self, channel: &ChannelName, text: &str) -> Result<(), Error> {
        let step = format!("speak on the channel {channel}");
        self.speak(&step, subject::channel_operator(channel), text).await
    }

    async fn speak(&self, step: &str, subject: String, text: &str) -> Result<(), Error> {
        if text.len() > TEXT_MAX {
            let cause = format!("the text has {} bytes, at most {TEXT_MAX} are sent", text.len());
            return Err(refused(step)(cause));
        }
        let payload = text.as_bytes().to_vec();
        self.client().publish(subject, payload.into()).await.map_err(refused(step))?;
        self.client().flush().await.map_err(refused(step))
    }

    /// Everything that is said on a channel from now on, by whom the server says it was.
    ///
    /// # Errors
    /// When the server does not confirm the subscription.
    pub async fn listen(&self, channel: &ChannelName) -> Result<BoxStream<'static, Said>, Error> {
        let step = || format!("listen on the channel {channel}");
        let heard = self.client().subscribe(subject::channel_all(channel)).await;
        let heard = heard.map_err(refused(step()))?;
        self.client().flush().await.map_err(refused(step()))?;
        Ok(heard.filter_map(|m| async move { said(&m.subject, &m.payload) }).boxed())
    }
}

/// What a message on a channel says; `None` when its subject is no channel's.
fn said(subject: &str, payload: &[u8]) -> Option<Said> {
    let from = subject::said_by(subject)?.map_or_else(|| OPERATOR.to_owned(), String::from);
    let text = String::from_utf8_lossy(payload).into_owned();
    Some(Said { at: Timestamp::now(), from, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_spoke_is_never_asked_of_the_payload() {
        let heard = said("channel.x.a", br#"{"from":"operator"}"#).unwrap();
        assert_eq!((heard.from.as_str(), heard.text.as_str()), ("a", r#"{"from":"operator"}"#));
        assert_eq!(said("channel.x.operator", b"\xff").unwrap().from, "operator");
        assert_eq!(said("say.a.x", b""), None);
    }
}
