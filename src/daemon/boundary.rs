//! Has the running agents measured on a timer and after each apply, and shows what was found.
//!
//! flockd itself is confined too much to be a control, so a unit of its own does it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::daemon::world::{Which, World};
use crate::host::units::{Systemd, UnitError};
use crate::names::VERIFY_UNIT;
use crate::status::boundary::Record;
use crate::status::health::Part;

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
        // Nobody is left to apply anything: flockd ends.
        if let Ok(Err(_)) = timeout_at(due, applies.wait_for(|count| *count != seen)).await {
            return;
        }
        sleep(SETTLE).await;
        seen = *applies.borrow();
        last = Instant::now();
        if world.config().verify.every.is_some() {
            world.report(Which::Boundary, measure().await);
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

/// Reads the record; others start the unit too, so whoever asks is shown what it says now.
pub fn show(world: &World) {
    match Record::load(&Record::place()) {
        Ok(record) => world.measured(record.map(|record| record.agents).unwrap_or_default()),
        Err(error) => {
            let cause = format!("read {}: {error}", Record::place().display());
            world.report(Which::Boundary, Part::broken(cause));
        }
    }
}
