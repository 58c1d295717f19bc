//! Keeps the egress table as it has to be: somebody else's `nft flush ruleset` must not open it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use crate::daemon::pulse::Loop;
use crate::daemon::world::{Which, World};
use crate::host::egress::Watch;
use crate::status::health::Part;
use crate::steps::fence;

/// The table is read back at least this often, should a change ever pass unseen.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same while changes cannot be heard. The second wall, `IPAddressDeny=`, stands meanwhile.
const LOOK_DEAF: Duration = Duration::from_secs(2);

/// Runs for ever: whenever the ruleset may have changed, reads the table back, and puts it back when
/// it is not what it has to be.
pub async fn run(world: Arc<World>) {
    let mut watch = None;
    loop {
        world.pulses.beat(Loop::Egress);
        // Before the look, so that a change right after it is heard.
        if watch.is_none() {
            watch = listen();
        }
        look(&world).await;
        match &mut watch {
            None => sleep(LOOK_DEAF).await,
            Some(changes) => {
                if let Ok(Err(error)) = timeout(LOOK_EVERY, changes.changed()).await {
                    tracing::warn!("{error}");
                    watch = None;
                }
            }
        }
    }
}

fn listen() -> Option<Watch> {
    Watch::new().inspect_err(|error| tracing::debug!("{error}")).ok()
}

async fn look(world: &World) {
    match fence::repair().await {
        Ok(None) => world.report(Which::Egress, keep_note(world)),
        Ok(Some(found)) => {
            tracing::warn!("the egress table was not as it has to be and was put back: {found}");
            let at = Timestamp::now().strftime("%F %T UTC");
            let note = Some(format!("put back at {at}: {found}"));
            world.report(Which::Egress, Part { ok: true, note });
        }
        Err(error) => world.report(Which::Egress, Part::broken(error)),
    }
}

/// In order now; what was repaired last stays readable.
fn keep_note(world: &World) -> Part {
    let last = world.view().egress;
    if last.ok { last } else { Part::fine() }
}
