//! From what was promised, what the control did and what was measured to a verdict: pure.

use serde::Serialize;

use super::checks::{Area, Check, Vantage};
use crate::names::Level;
use crate::probe::wire::{Finding, Outcome};

/// What a cell of the matrix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Promised, possible without the protection, and refused.
    Blocked,
    /// Promised, and what was taken hurts nobody else.
    Contained,
    /// This host does not have what was aimed at.
    NotHere,
    /// The level, or the configuration, does not promise it.
    NotPromised,
    /// It could not be found out.
    Unknown,
    /// Promised, and it happened.
    Violation,
}

impl Verdict {
    /// Whether a run with such a cell is a success.
    #[must_use]
    pub fn is_good(self) -> bool {
        !matches!(self, Self::Unknown | Self::Violation)
    }

    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Contained => "contained",
            Self::NotHere => "not on this host",
            Self::NotPromised => "not promised",
            Self::Unknown => "unknown",
            Self::Violation => "VIOLATION",
        }
    }
}

/// What stopped an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Unix users and modes.
    Dac,
    /// An access control list.
    Acl,
    /// Its own view of the file system.
    Mount,
    /// A namespace.
    Namespace,
    /// A capability that it does not have.
    Capability,
    /// The system call filter.
    Seccomp,
    /// The egress table.
    Nft,
    /// A BPF program on its control group.
    Bpf,
    /// Its control group.
    Cgroup,
    /// A limit of the process.
    Rlimit,
    /// nats-server.
    Nats,
}

impl Layer {
    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dac => "DAC",
            Self::Acl => "ACL",
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Capability => "capability",
            Self::Seccomp => "seccomp",
            Self::Nft => "nft",
            Self::Bpf => "BPF",
            Self::Cgroup => "cgroup",
            Self::Rlimit => "rlimit",
            Self::Nats => "NATS",
        }
    }
}

/// What the same attempt did where nothing protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// It succeeded, for root or for an ordinary user.
    Succeeded(String),
    /// It failed there too, so a refusal proves nothing.
    Failed(String),
    /// Nobody tried.
    Missing,
}

impl Control {
    /// What several controls prove together.
    #[must_use]
    pub fn of(check: &Check, by: &[(&str, Option<&Finding>)]) -> Self {
        let mut failed = Vec::new();
        for (who, finding) in by {
            let Some(finding) = finding else { continue };
            let succeeded = match check.wanted {
                Some(wanted) => finding.outcome == Outcome::Done && finding.evidence != wanted,
                None => finding.outcome == Outcome::Done,
            };
            if succeeded {
                return Self::Succeeded((*who).to_owned());
            }
            failed.push(format!("{who}: {}", finding.evidence));
        }
        if failed.is_empty() { Self::Missing } else { Self::Failed(failed.join("; ")) }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Succeeded(who) => format!("succeeded as {who}"),
            Self::Failed(why) => format!("failed ({why})"),
            Self::Missing => "not made".to_owned(),
        }
    }
}

/// How a finding counts: the state that protects counts as a refusal.
#[must_use]
pub fn outcome(check: &Check, finding: &Finding) -> Outcome {
    match (check.wanted, finding.outcome) {
        (Some(wanted), Outcome::Done) if finding.evidence == wanted => Outcome::Refused,
        (_, outcome) => outcome,
    }
}

/// The verdict of one cell. What was seen from outside stands over what the probe says.
#[must_use]
pub fn judge(
    check: &Check,
    promised: bool,
    control: &Control,
    measured: Option<Outcome>,
    seen_outside: bool,
) -> Verdict {
    if !promised {
        return Verdict::NotPromised;
    }
    if seen_outside || measured == Some(Outcome::Done) {
        return Verdict::Violation;
    }
    match (measured, control) {
        (None | Some(Outcome::Error), _) => Verdict::Unknown,
        // It gets what it may have, and nobody else is without it.
        (Some(_), Control::Succeeded(_)) if check.area == Area::Limits => Verdict::Contained,
        (Some(_), Control::Succeeded(_)) => Verdict::Blocked,
        (Some(_), Control::Failed(_)) if check.optional => Verdict::NotHere,
        (Some(_), _) => Verdict::Unknown,
    }
}

/// Which layer the error speaks of. `alone` is what the same user met without the sandbox.
#[must_use]
pub fn layer(
    check: &Check,
    level: Level,
    vantage: Vantage,
    peer: bool,
    found: &Finding,
    alone: Option<&Finding>,
) -> Option<Layer> {
    use nix::errno::Errno;
    let errno = Errno::from_raw(found.errno);
    let hidden = found.outcome == Outcome::NothingThere;
    if outcome(check, found) == Outcome::Done || found.outcome == Outcome::Error {
        return None;
    }
    let open_alone = alone.is_some_and(|f| f.outcome == Outcome::Done);
    let layer = match check.area {
        Area::Network if vantage == Vantage::User => Layer::Nft,
        Area::Network if matches!(errno, Errno::EAFNOSUPPORT) => Layer::Seccomp,
        Area::Network if errno == Errno::EPERM && check.id == "net.raw" => Layer::Capability,
        Area::Network if open_alone => Layer::Bpf,
        Area::Network => Layer::Nft,
        Area::Bus => Layer::Nats,
        Area::Limits if check.id == "limit.tmp" => Layer::Mount,
        Area::Limits if check.id == "limit.files" => Layer::Rlimit,
        Area::Limits => Layer::Cgroup,
        Area::Ipc if check.id.ends_with("unix") || check.id.ends_with("host") => Layer::Mount,
        Area::Ipc if check.id == "ipc.shm" => Layer::Mount,
        Area::Ipc => Layer::Namespace,
        Area::Kernel if check.id == "device" && hidden => Layer::Mount,
        Area::Kernel if check.id == "device" && errno == Errno::EPERM => Layer::Cgroup,
        Area::Kernel if check.id == "device" => Layer::Dac,
        Area::Kernel if level >= Level::Process || open_alone => Layer::Seccomp,
        Area::Kernel if check.id == "call.io-uring" => Layer::Seccomp,
        Area::Kernel => Layer::Capability,
        Area::Privileges => Layer::Capability,
        Area::Files | Area::Processes if hidden || errno == Errno::EROFS => Layer::Mount,
        Area::Files if errno == Errno::EPERM => Layer::Seccomp,
        Area::Files if peer && check.id != "file.identity" => Layer::Acl,
        Area::Files => Layer::Dac,
        Area::Processes
            if vantage == Vantage::Sandbox
                && level >= Level::Process
                && errno == Errno::EPERM
                // These two calls get past the filter.
                && !["proc.signal", "proc.memory"].contains(&check.id) =>
        {
            Layer::Seccomp
        }
        Area::Processes => Layer::Dac,
        Area::Machine => return None,
    };
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::checks::find;

    fn finding(outcome: Outcome, evidence: &str) -> Finding {
        Finding {
            check: String::new(),
            target: String::new(),
            outcome,
            errno: 0,
            evidence: evidence.to_owned(),
            micros: 0,
            list: Vec::new(),
        }
    }

    /// Every combination, so that no path leads from "could not have worked" to "blocked".
    #[test]
    fn blocked_needs_a_promise_a_control_and_a_refusal() {
        use Outcome::{Done, Error, NothingThere, Refused};
        let controls = [
            Control::Succeeded("root".to_owned()),
            Control::Failed("root: EPERM".to_owned()),
            Control::Missing,
        ];
        for optional in [false, true] {
            let check = &Check { optional, ..*find_copy("file.read") };
            for promised in [false, true] {
                for control in &controls {
                    for measured in
                        [None, Some(Done), Some(Refused), Some(NothingThere), Some(Error)]
                    {
                        for outside in [false, true] {
                            let verdict = judge(check, promised, control, measured, outside);
                            let refused = matches!(measured, Some(Refused | NothingThere));
                            let worked = matches!(control, Control::Succeeded(_));
                            let blocked = promised && worked && refused && !outside;
                            assert_eq!(verdict == Verdict::Blocked, blocked);
                            let happened = promised && (outside || measured == Some(Done));
                            assert_eq!(verdict == Verdict::Violation, happened);
                            assert_eq!(verdict == Verdict::NotPromised, !promised);
                        }
                    }
                }
            }
        }
    }

    fn find_copy(id: &str) -> Box<Check> {
        let Check { id, area, words, sandbox, user, optional, wanted } = *find(id).unwrap();
        Box::new(Check { id, area, words, sandbox, user, optional, wanted })
    }

    #[test]
    fn a_state_that_the_control_has_too_proves_nothing() {
        let check = find("own.capabilities").unwrap();
        let none = finding(Outcome::Done, "0000000000000000");
        let all = finding(Outcome::Done, "000001ffffffffff");
        assert_eq!(outcome(check, &none), Outcome::Refused);
        assert_eq!(outcome(check, &all), Outcome::Done);
        let control = |f| Control::of(check, &[("root", Some(f))]);
        assert!(matches!(control(&all), Control::Succeeded(_)));
        assert!(matches!(control(&none), Control::Failed(_)));
    }
}
