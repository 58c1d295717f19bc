//! What passes in the hub, as it passes: for those who measure whether the bus keeps agents apart.

use futures_util::stream::{BoxStream, StreamExt as _};

use super::hub::{Error, Hub, refused};

impl Hub {
    /// Every message on these subjects from now on: its subject and its payload, which is an agent's.
    ///
    /// # Errors
    /// When the server does not confirm the subscription.
    pub async fn overhear(
        &self,
        subjects: &str,
    ) -> Result<BoxStream<'static, (String, Vec<u8>)>, Error> {
        let step = || format!("listen to {subjects}");
        let heard = self.client().subscribe(subjects.to_owned()).await;
        let heard = heard.map_err(refused(step()))?;
        self.client().flush().await.map_err(refused(step()))?;
        Ok(heard.map(|message| (message.subject.to_string(), message.payload.to_vec())).boxed())
    }

    /// The same, and waits until the server has it: for one who ends soon.
    ///
    /// # Errors
    /// When the connection is down.
    pub async fn proclaim(&self, subject: String, text: String) -> Result<(), Error> {
        self.murmur(subject, text).await?;
        self.client().flush().await.map_err(refused("speak in the hub"))
    }

    /// Says something on a subject that is nobody's; nothing is stored.
    ///
    /// # Errors
    /// When the connection is down.
    pub async fn murmur(&self, subject: String, text: String) -> Result<(), Error> {
        self.client().publish(subject, text.into()).await.map_err(refused("speak in the hub"))
    }
}
