//! flockd's own log: the journal when systemd started it, else standard error; never both.

use std::io::{self, IsTerminal as _};

use tracing_journald::{Layer, Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged unless `FLOCK_LOG` says otherwise.
const FILTER: &str = "info,async_nats=warn";

/// Sets the log up. Without a journal to write to, standard error takes it.
pub fn init() {
    let filter = EnvFilter::try_from_env("FLOCK_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    match journal() {
        Some(layer) => registry.with(layer).init(),
        None => {
            let ansi = io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi);
            registry.with(layer).init();
        }
    }
}

/// The journal, if standard error goes there: each line would come twice otherwise.
fn journal() -> Option<Layer> {
    if !crate::journal::is(io::stderr()) {
        return None;
    }
    // The crate's own default shows INFO as "notice", which `journalctl -p` then ranks too high.
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = Layer::new().ok()?.with_syslog_identifier("flockd".to_owned());
    Some(layer.with_field_prefix(Some("FLOCK".to_owned())).with_priority_mappings(priorities))
}
