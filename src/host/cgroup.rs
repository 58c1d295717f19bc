//! Which limits this host can enforce at all.

use std::fs;
use std::path::Path;

/// Where cgroup v2 is mounted on every systemd host.
const ROOT: &str = "/sys/fs/cgroup";

/// Limits in the words of the configuration, and the cgroup v2 controller behind each.
const CONTROLLERS: [(&str, &str); 4] =
    [("cpu", "cpu"), ("memory", "memory"), ("tasks", "pids"), ("io-weight", "io")];

/// The limits that nothing on this host enforces, because their cgroup v2 controller is missing.
#[must_use]
pub fn unenforced_limits() -> Vec<&'static str> {
    let text = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
    let there: Vec<&str> = text.split_whitespace().collect();
    CONTROLLERS.iter().filter(|(_, c)| !there.contains(c)).map(|(limit, _)| *limit).collect()
}

/// The directory of a unit's cgroup, from its `ControlGroup` property.
#[must_use]
pub fn dir(control_group: &str) -> std::path::PathBuf {
    Path::new(ROOT).join(control_group.trim_start_matches('/'))
}
