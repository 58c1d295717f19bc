//! Has the running agents measured on a timer and after each apply, and shows what was found.
//!
//! flockd itself is confined too much to be a control, so a unit of its own does it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::daemon::world::{Which, World};
use crate::host::units::{Systemd, UnitError};
use crate::names::VERIFY_UNIT;
use crate::status::boundary::Record;
use crate::status::health::Part;

/// The record is looked at this often: others may start the unit too.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// One change of the configuration often comes with another.
const SETTLE: Duration = Duration::from_secs(3);
/// Without an interval the configuration is looked at this often.
const LONG: Duration = Duration::from_secs(60);

/// Runs for ever.
pub async fn run(world: Arc<World>) {
    let mut applies = world.applies.subscribe();
    // One that was done before we listened counts.
    let mut seen = 0;
    let mut last = Instant::now();
    loop {
        let every = world.config().verify.every;
        let due = last + every.unwrap_or(LONG);
        let applied = tokio::select! {
            changed = applies.wait_for(|count| *count != seen) => match changed {
                Ok(_) => true,
                Err(_) => return,
            },
            () = sleep_until(due) => true,
            () = sleep(LOOK_EVERY) => false,
        };
        if applied {
            sleep(SETTLE).await;
            seen = *applies.borrow();
            last = Instant::now();
            if world.config().verify.every.is_some() {
                world.report(Which::Boundary, measure().await);
            }
        }
        show(&world);
    }
}

/// A unit that failed has measured, and its record says what.
async fn measure() -> Part {
    let started = async { Systemd::connect().await?.start(VERIFY_UNIT).await };
    match started.await {
        Ok(()) | Err(UnitError::Job { .. }) => Part::fine(),
        Err(error) => Part::broken(error),
    }
}

fn show(world: &World) {
    match Record::load(&Record::place()) {
        Ok(record) => world.measured(record.map(|record| record.agents).unwrap_or_default()),
        Err(error) => {
            let cause = format!("read {}: {error}", Record::place().display());
            world.report(Which::Boundary, Part::broken(cause));
        }
    }
}
