//! What the kernel offers.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Finding, is_root};
use crate::host::files::Dir;
use crate::host::{cgroup, sys};

const CGROUPS: &str = "/sys/fs/cgroup";

/// One hierarchy, and a controller for each limit.
pub(super) fn cgroups(allow_unenforced_limits: bool) -> Vec<Finding> {
    let unified = statfs(CGROUPS).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if !unified {
        return vec![Finding::fail(
            "cgroup v2",
            format!("{CGROUPS} is no cgroup v2 file system"),
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        )];
    }
    vec![
        Finding::ok("cgroup v2", "unified"),
        controllers(&cgroup::unenforced_limits(), allow_unenforced_limits),
        egress_filter(),
    ]
}

/// The share of input and output is no ceiling, and not every kernel has it.
const SHARE: &str = "io-weight";

fn controllers(missing: &[&str], allowed: bool) -> Finding {
    const SUBJECT: &str = "limits";
    if missing.is_empty() {
        return Finding::ok(SUBJECT, "cpu, memory, pids and io are enforced");
    }
    let found = format!("nothing enforces {}", missing.join(", "));
    if missing == [SHARE] {
        return Finding::warn(SUBJECT, found, "a kernel with CONFIG_BLK_CGROUP_IOCOST has it");
    }
    if allowed {
        let remedy = "accepted with unenforced-limits = \"allow\"; status names them";
        return Finding::warn(SUBJECT, found, remedy);
    }
    Finding::fail(
        SUBJECT,
        found,
        "give this machine the cgroup v2 controllers cpu, memory and pids, or accept it with \
         unenforced-limits = \"allow\" under [host]",
    )
}

/// `IPAddressDeny=` is a BPF program on a control group.
fn egress_filter() -> Finding {
    const SUBJECT: &str = "cgroup BPF";
    if !is_root() {
        return Finding::needs_root(SUBJECT);
    }
    let asked = fs::File::open(CGROUPS)
        .and_then(|root| sys::cgroup_bpf_programs(&root, sys::Direction::Egress));
    match asked {
        Ok(_) => Finding::ok(SUBJECT, "the kernel can filter a unit's packets (IPAddressDeny=)"),
        Err(error) => Finding::fail(
            SUBJECT,
            format!("bpf(2): {error}: IPAddressDeny= would do nothing"),
            "use a kernel with CONFIG_CGROUP_BPF; in a container, let bpf(2) through",
        ),
    }
}

/// What the sandbox and flock's own file handling use.
pub(super) fn features() -> Vec<Finding> {
    let mut all = Vec::new();
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    all.push(if actions.is_ok_and(|actions| actions.contains("errno")) {
        Finding::ok("seccomp", "the kernel can filter system calls")
    } else {
        let found = "/proc/sys/kernel/seccomp/actions_avail does not name errno";
        Finding::fail("seccomp", found, "use a kernel with CONFIG_SECCOMP_FILTER")
    });
    all.push(match Dir::open(Path::new("/usr")) {
        Ok(_) => Finding::ok("openat2", "works"),
        Err(error) => {
            let remedy =
                "flock needs Linux 5.6 or later, and a container that lets openat2 through";
            Finding::fail("openat2", error.to_string(), remedy)
        }
    });
    all.push(match crate::host::landlock::is_there() {
        true => Finding::ok("landlock", "the kernel can hold a command to its tool rules"),
        false => Finding::warn(
            "landlock",
            "this kernel offers none: agents with tool rules do not start",
            crate::host::landlock::REMEDY,
        ),
    });
    let spaces = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    all.push(match spaces.trim().parse::<u64>() {
        Ok(number) if number > 0 => Finding::ok("user namespaces", "PID 1 can make them"),
        _ => Finding::fail(
            "user namespaces",
            "this kernel allows none, and PrivateUsers= needs one for each agent",
            "sysctl user.max_user_namespaces=10000",
        ),
    });
    all
}

/// Which levels this host and this flock can give.
pub(super) fn levels() -> Finding {
    let kvm = if Path::new("/dev/kvm").exists() { "is there" } else { "is not there" };
    Finding::ok(
        "levels",
        format!("0 and 1; 2 and 3 are not in this version (/dev/kvm {kvm}, nothing uses it yet)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::Verdict;

    #[test]
    fn a_missing_limit_fails_unless_it_is_accepted() {
        let verdict = |missing: &[&str], allowed| controllers(missing, allowed).verdict;
        assert_eq!(verdict(&[], false), Verdict::Ok);
        assert_eq!(verdict(&["io-weight"], false), Verdict::Warn);
        assert_eq!(verdict(&["memory", "io-weight"], false), Verdict::Fail);
        assert_eq!(verdict(&["memory"], true), Verdict::Warn);
    }
}
