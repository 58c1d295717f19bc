//! After the start: does the machine hold what the plan says?
//!
//! systemd takes some properties and does nothing (no cgroup BPF, no controller), and a drop-in
//! file can change any of them. So the kernel is asked about the running process, not systemd.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::Egress;
use crate::host::quota;
use crate::host::sys::{self, Direction};
use crate::names::Level;
use crate::plan::{Plan, Value};

/// What was found of one running agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Measured {
    /// Protections of the level that do not hold. Any one of them ends the launch.
    pub broken: Vec<String>,
    /// Limits that nothing on this host enforces.
    pub unenforced: Vec<String>,
    /// The process ended before it could be measured.
    pub ended: bool,
}

/// Asks the kernel about the main process and the cgroup of an agent.
#[must_use]
pub fn measure(plan: &Plan, pid: u64, cgroup: &str) -> Measured {
    let mut found = Measured::default();
    match process(plan, &PathBuf::from(format!("/proc/{pid}"))) {
        Ok(broken) => found.broken = broken,
        Err(error) if gone(&error) => found.ended = true,
        Err(error) => found.broken.push(format!("read /proc/{pid}: {error}")),
    }
    let cgroup = Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'));
    // A unit whose process has ended has no cgroup any more.
    if cgroup.is_dir() {
        limits(plan, &cgroup, &mut found);
        egress(plan, &cgroup, &mut found);
    } else {
        found.ended = true;
    }
    found
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Identity, privileges, namespaces and root directory of the process.
fn process(plan: &Plan, proc: &Path) -> io::Result<Vec<String>> {
    let mut broken = Vec::new();
    let status = fs::read_to_string(proc.join("status"))?;
    let uid = plan.user.uid.to_string();
    let own = [uid.as_str(); 4].join("\t");
    let mut wanted =
        vec![("Uid", own.as_str()), ("Gid", own.as_str()), ("NoNewPrivs", "1"), ("Seccomp", "2")];
    const NONE: &str = "0000000000000000";
    if plan.level >= Level::Process {
        wanted.extend(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|cap| (cap, NONE)));
    }
    for (field, value) in wanted {
        let found = status_field(&status, field);
        if found != Some(value) {
            broken.push(format!("{field} of the process is {found:?}, not {value:?}"));
        }
    }
    let mut own_namespaces = vec!["mnt"];
    if plan.level >= Level::Process {
        own_namespaces.extend(["user", "ipc"]);
    }
    for name in own_namespaces {
        let of = |proc: &Path| fs::read_link(proc.join("ns").join(name));
        if of(proc)? == of(Path::new("/proc/1"))? {
            broken.push(format!("the process is in the {name} namespace of the host"));
        }
    }
    let (root, skeleton) = (fs::metadata(proc.join("root"))?, fs::metadata(&plan.root.dir)?);
    if (root.dev(), root.ino()) != (skeleton.dev(), skeleton.ino()) {
        broken.push(format!("the root of the process is not {}", plan.root.dir.display()));
    }
    if plan.level >= Level::Process
        && !root_is_read_only(&fs::read_to_string(proc.join("mountinfo"))?)
    {
        broken.push("the root of the process is not mounted read-only".to_owned());
    }
    Ok(broken)
}

fn status_field<'a>(status: &'a str, field: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"))
}

/// The last mount on `/` counts, see proc_pid_mountinfo(5): the fifth field is the mount point.
fn root_is_read_only(mountinfo: &str) -> bool {
    let on_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let options = |line: &str| line.split(' ').nth(5).unwrap_or_default().to_owned();
    mountinfo.lines().rfind(on_root).is_some_and(|line| options(line).split(',').any(|o| o == "ro"))
}

/// The limits as the kernel holds them; a missing file means a missing controller.
fn limits(plan: &Plan, cgroup: &Path, found: &mut Measured) {
    let number = |name| match plan.unit.value(name) {
        Some(Value::U64(n)) => *n,
        _ => u64::MAX,
    };
    let plain = |n: u64| if n == u64::MAX { "max".to_owned() } else { n.to_string() };
    // The kernel counts memory in pages.
    let pages =
        |n: u64| if n == u64::MAX { "max".to_owned() } else { (n / 4096 * 4096).to_string() };
    let wanted = [
        ("memory", "memory.max", pages(number("MemoryMax"))),
        ("swap", "memory.swap.max", pages(number("MemorySwapMax"))),
        ("tasks", "pids.max", plain(number("TasksMax"))),
    ];
    for (limit, file, value) in wanted {
        match fs::read_to_string(cgroup.join(file)) {
            Ok(text) if text.trim() == value => {}
            Ok(text) => found.broken.push(format!("{file} is {}, not {value}", text.trim())),
            Err(_) if limit == "swap" && !Path::new("/proc/swaps").exists() => {}
            Err(_) => found.unenforced.push(limit.to_owned()),
        }
    }
    let quota = number("CPUQuotaPerSecUSec");
    match fs::read_to_string(cgroup.join("cpu.max")) {
        Ok(text) if cpu_usec_per_sec(&text) == Some(quota) => {}
        Ok(text) => {
            found.broken.push(format!("cpu.max is {}, not {quota} us per second", text.trim()))
        }
        Err(_) => found.unenforced.push("cpu".to_owned()),
    }
    if quota::enforced(plan).is_err() {
        found.unenforced.extend(plan.quota.limits().into_iter().map(str::to_owned));
    } else if let Err(error) = quota::check(plan) {
        found.broken.push(error.to_string());
    }
}

/// `50000 100000` is half a core: 500,000 us of CPU for each second.
fn cpu_usec_per_sec(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    if quota == "max" {
        return Some(u64::MAX);
    }
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    quota.checked_mul(1_000_000)?.checked_div(period)
}

/// `IPAddressDeny=` is a BPF program on the cgroup. Without it the property is only a word.
fn egress(plan: &Plan, cgroup: &Path, found: &mut Measured) {
    if plan.egress == Egress::Unrestricted {
        return;
    }
    let dir = match fs::File::open(cgroup) {
        Ok(dir) => dir,
        Err(_) => {
            found.ended = true;
            return;
        }
    };
    for (direction, word) in [(Direction::Egress, "out"), (Direction::Ingress, "in")] {
        match sys::cgroup_bpf_programs(&dir, direction) {
            Ok(0) => found.broken.push(format!(
                "IPAddressDeny= is not enforced: no BPF program filters packets {word} of {}",
                cgroup.display()
            )),
            Ok(_) => {}
            Err(error) => found
                .broken
                .push(format!("IPAddressDeny= cannot be checked on {}: {error}", cgroup.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_read_right() {
        assert_eq!(cpu_usec_per_sec("50000 100000\n"), Some(500_000));
        assert_eq!(cpu_usec_per_sec("max 100000\n"), Some(u64::MAX));
        assert_eq!(cpu_usec_per_sec("garbage"), None);
        assert_eq!(status_field("Name:\tx\nUid:\t1\t1\t1\t1\n", "Uid"), Some("1\t1\t1\t1"));
        let covered = "1 0 8:1 / / rw shared:1 - ext4 a b\n2 1 8:1 /r / ro,nosuid - ext4 a b\n";
        assert!(root_is_read_only(covered));
        assert!(!root_is_read_only("1 0 8:1 / / rw,relatime - ext4 a b\n"));
        assert!(!root_is_read_only(""));
    }
}
