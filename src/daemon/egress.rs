//! Keeps the egress table as it has to be: somebody else's `nft flush ruleset` must not open it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use crate::daemon::pulse::Loop;
use crate::daemon::world::{Which, World};
use crate::status::health::Part;
use crate::steps::fence;

/// How long a hole can stay unnoticed. The second wall, `IPAddressDeny=`, stands meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Runs for ever: reads the table back, and puts it back when it is not what it has to be.
pub async fn run(world: Arc<World>) {
    loop {
        world.pulses.beat(Loop::Egress);
        match fence::repair().await {
            Ok(None) => world.report(Which::Egress, keep_note(&world)),
            Ok(Some(found)) => {
                tracing::warn!(
                    "the egress table was not as it has to be and was put back: {found}"
                );
                let at = Timestamp::now().strftime("%F %T UTC");
                let note = Some(format!("put back at {at}: {found}"));
                world.report(Which::Egress, Part { ok: true, note });
            }
            Err(error) => world.report(Which::Egress, Part::broken(error)),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// In order now; what was repaired last stays readable.
fn keep_note(world: &World) -> Part {
    let last = world.view().egress;
    if last.ok { last } else { Part::fine() }
}
