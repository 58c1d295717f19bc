//! The agent whose first instruction is timed: it writes when it runs into its directory, and sleeps.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// Writes CLOCK_MONOTONIC in nanoseconds to `stamp` in the agent's directory, then sleeps for ever.
pub fn run() -> ! {
    let now = clock_gettime(ClockId::Monotonic);
    let text = format!("{}\n", i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec));
    let var = |name: &str| std::env::var(name).expect(name);
    let folder = Path::new(&var("SHARED_DIR")).join("agents").join(var("AGENT_ID"));
    // Renamed, so that whoever waits for it never reads half of it.
    std::fs::write(folder.join("stamp.new"), text).expect("the stamp");
    std::fs::rename(folder.join("stamp.new"), folder.join("stamp")).expect("the stamp's name");
    loop {
        std::thread::park();
    }
}
