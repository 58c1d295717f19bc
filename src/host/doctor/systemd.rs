//! PID 1 and what guards agents from its helpers.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::host::command::Program;
use crate::host::units::OLDEST;
use crate::host::users::LINGER;

const SYSTEMCTL: Program = Program { path: "/usr/bin/systemctl", package: "systemd" };
const TIMEDATECTL: Program = Program { path: "/usr/bin/timedatectl", package: "systemd" };

/// Where the package puts what keeps agents off the system bus, and where an operator's copy goes.
const DBUS_POLICY: [&str; 2] =
    ["/usr/share/dbus-1/system.d/flock.conf", "/etc/dbus-1/system.d/flock.conf"];
const POLKIT_RULES: [&str; 2] =
    ["/usr/share/polkit-1/rules.d/00-flock.rules", "/etc/polkit-1/rules.d/00-flock.rules"];
const POLKITD: [&str; 2] = ["/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd"];
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Whether systemd is PID 1, new enough, and built with what the sandbox uses.
pub(super) fn manager() -> Vec<Finding> {
    let name = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let pid_1 = if name.trim() == "systemd" && Path::new("/run/systemd/system").is_dir() {
        Finding::ok("PID 1", "systemd")
    } else {
        let found = format!("it is {:?}, not systemd", name.trim());
        Finding::fail(
            "PID 1",
            found,
            "run flock on a machine, or in a container, that boots systemd",
        )
    };
    let version = match SYSTEMCTL.run(&["--version"], "") {
        Ok(text) => version(&text),
        Err(error) => Finding::fail("systemd", error.to_string(), "install systemd"),
    };
    let bus = if Path::new(SYSTEM_BUS).exists() {
        Finding::ok("system bus", SYSTEM_BUS)
    } else {
        let found = format!("{SYSTEM_BUS} does not exist");
        Finding::fail("system bus", found, "apt install dbus; systemctl start dbus.socket")
    };
    vec![pid_1, version, bus]
}

/// Judges what `systemctl --version` says.
fn version(text: &str) -> Finding {
    const SUBJECT: &str = "systemd";
    let mut words = text.split_whitespace();
    let number = words.nth(1).and_then(|word| word.parse::<u16>().ok());
    let Some(number) = number else {
        return Finding::fail(SUBJECT, "its version cannot be read", "try systemctl --version");
    };
    let has = |feature: &str| text.split_whitespace().any(|word| word == feature);
    if number < OLDEST {
        let remedy = format!("flock needs {OLDEST} or later: Debian 12 and 13 have it");
        return Finding::fail(SUBJECT, format!("version {number}"), remedy);
    }
    if !has("+SECCOMP") {
        let found = format!("version {number}, built without seccomp: no system call is filtered");
        return Finding::fail(SUBJECT, found, "use a systemd with +SECCOMP, such as Debian's");
    }
    let bpf = if has("+BPF_FRAMEWORK") { "+BPF_FRAMEWORK" } else { "-BPF_FRAMEWORK (not needed)" };
    Finding::ok(SUBJECT, format!("version {number}, +SECCOMP, {bpf}"))
}

/// What keeps agents away from the system bus, and users that systemd would run unconfined.
pub(super) fn guards() -> Vec<Finding> {
    let there = |paths: [&'static str; 2]| paths.into_iter().find(|path| Path::new(path).exists());
    let again = "apt install --reinstall ai-flock";
    let policy = match there(DBUS_POLICY) {
        Some(path) => Finding::ok("D-Bus policy", path),
        None => Finding::fail("D-Bus policy", format!("{} is missing", DBUS_POLICY[0]), again),
    };
    let polkit = match (there(POLKITD), there(POLKIT_RULES)) {
        (_, Some(path)) => Finding::ok("polkit rule", path),
        (None, None) => Finding::ok("polkit rule", "polkit is not installed: nothing to refuse"),
        (Some(_), None) => {
            Finding::warn("polkit rule", format!("{} is missing", POLKIT_RULES[0]), again)
        }
    };
    vec![policy, polkit, lingering(Path::new(LINGER))]
}

/// Users of agents for which logind starts a service manager outside of every limit.
fn lingering(directory: &Path) -> Finding {
    const SUBJECT: &str = "lingering users";
    let names = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::ok(SUBJECT, "no user lingers");
        }
        Err(error) => {
            let found = format!("{}: {error}", directory.display());
            return Finding::warn(SUBJECT, found, "sudo flockctl doctor");
        }
    };
    let mut ours: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("flock-"))
        .collect();
    ours.sort();
    if ours.is_empty() {
        return Finding::ok(SUBJECT, "no agent's user lingers");
    }
    let ours = ours.join(" ");
    let found = format!("{ours}: logind runs a service manager for it outside of every limit");
    Finding::fail(SUBJECT, found, format!("loginctl disable-linger {ours}"))
}

/// Ages, time-outs and the order of the log go by the clock.
pub(super) fn clock() -> Finding {
    const SUBJECT: &str = "clock";
    let asked = TIMEDATECTL.run(&["show", "--property=NTPSynchronized", "--value"], "");
    match asked.as_deref().map(str::trim) {
        Ok("yes") => Finding::ok(SUBJECT, "synchronized"),
        Ok(_) => Finding::warn(SUBJECT, "not synchronized", "timedatectl set-ntp true"),
        Err(error) => Finding::warn(SUBJECT, error.to_string(), "look with date"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::Verdict;

    #[test]
    fn versions_and_features_are_judged() {
        let new = "systemd 257 (257.13-1~deb13u1)\n+PAM +SECCOMP -GNUTLS +BPF_FRAMEWORK\n";
        let finding = version(new);
        assert_eq!(finding.verdict, Verdict::Ok);
        assert_eq!(finding.found, "version 257, +SECCOMP, +BPF_FRAMEWORK");
        assert_eq!(version(&new.replace("257", "252")).verdict, Verdict::Ok);
        assert!(version(&new.replace("+BPF", "-BPF")).found.contains("-BPF_FRAMEWORK"));
        for bad in [new.replace("systemd 257", "systemd 251"), new.replace("+SEC", "-SEC")] {
            assert_eq!(version(&bad).verdict, Verdict::Fail, "{bad}");
        }
        assert_eq!(version("garbage").verdict, Verdict::Fail);
        assert_eq!(version("").verdict, Verdict::Fail);
    }

    #[test]
    fn a_lingering_agent_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lingering(&dir.path().join("none")).verdict, Verdict::Ok);
        fs::write(dir.path().join("alice"), "").unwrap();
        assert_eq!(lingering(dir.path()).verdict, Verdict::Ok);
        fs::write(dir.path().join("flock-a"), "").unwrap();
        let finding = lingering(dir.path());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert_eq!(finding.remedy.unwrap(), "loginctl disable-linger flock-a");
    }
}
