//! Whether this host does what a unit's properties say, asked before the first agent runs.
//!
//! A kernel without cgroup BPF, or a container that keeps bpf(2) from PID 1, lets
//! `IPAddressDeny=` pass and does nothing. A harmless unit is started once per boot, and the
//! kernel is asked what filters its packets.

use std::fs::{self, File};
use std::path::Path;

use crate::fail::{self, Point};
use crate::host::cgroup;
use crate::host::files::{Dir, Owner};
use crate::host::sys::{self, Direction};
use crate::host::units::{Systemd, UnitError};
use crate::names::RUN_DIR;
use crate::plan::property::{Property, Value};
use crate::steps::lock::Lock;

/// The unit that is asked about; it sleeps, and is stopped at once.
const UNIT: &str = "flock-host-check.service";
/// In `/run/flock`: the systemd version with which the check passed in this boot.
const RECORD: &str = "egress-filter";

/// Why the second wall around the network cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum NotEnforced {
    /// PID 1.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// No filter.
    #[error(
        "IPAddressDeny= is not enforced on this host ({0}): flock needs a kernel with \
         CONFIG_CGROUP_BPF, and bpf(2) for PID 1; flockctl doctor says more"
    )]
    Filter(String),
}

/// Passes when PID 1 puts a filter on a unit with `IPAddressDeny=`. Asked once per boot.
///
/// # Errors
/// When it does not, or cannot be asked.
pub async fn egress_filter(systemd: &Systemd) -> Result<(), NotEnforced> {
    let version = systemd.version().to_string();
    let known = || fs::read_to_string(Path::new(RUN_DIR).join(RECORD)).is_ok_and(|v| v == version);
    if known() {
        return Ok(());
    }
    let _lock = Lock::host_check().map_err(|e| NotEnforced::Filter(e.to_string()))?;
    if known() {
        return Ok(());
    }
    let asked = ask(systemd).await;
    // Also after an error: nothing of the check may stay.
    systemd.stop(UNIT).await?;
    systemd.reset_failed(UNIT).await?;
    asked?;
    // Without the record the next launch asks again; nothing else depends on it.
    let _ = Dir::open(Path::new(RUN_DIR)).and_then(|dir| {
        dir.write(RECORD, version.as_bytes(), Owner::ROOT, 0o644)?;
        dir.sweep()
    });
    Ok(())
}

async fn ask(systemd: &Systemd) -> Result<(), NotEnforced> {
    let argv = vec!["/usr/bin/sleep".to_owned(), "60".to_owned()];
    let properties = [
        Property::new("Description", "flock asks whether this host filters packets"),
        Property::new("Type", "exec"),
        Property::new("User", "nobody"),
        Property::new("ExecStart", Value::Command(vec![(argv[0].clone(), argv, false)])),
        Property::new("IPAddressDeny", Value::Addresses(vec![(2, vec![0; 4], 0)])),
    ];
    systemd.start_transient_anew(UNIT, &properties).await?;
    fail::at(Point::HostAsked);
    let group = systemd.facts(UNIT).await?.text("ControlGroup");
    let programs = File::open(cgroup::dir(&group))
        .and_then(|dir| sys::cgroup_bpf_programs(&dir, Direction::Egress));
    match programs {
        Ok(0) => Err(NotEnforced::Filter(format!("no BPF program is attached to {group}"))),
        Ok(_) => Ok(()),
        Err(error) => Err(NotEnforced::Filter(format!("{group}: {error}"))),
    }
}
