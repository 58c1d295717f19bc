//! Fail points: the places in the work at which a test can end this process.
//!
//! Only with the feature `fail-points`, which nothing that is packaged is built with: without it
//! [`at`] is empty, and not even the names are in the programs. The test `tests/lab/crash` walks
//! over every point that a verb passes, and fails for a point that no verb passes.

/// Declares the points once: the enum, its names, and the list of all.
macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place at which the work can be broken off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        #[cfg(feature = "fail-points")]
        impl Point {
            /// All of them, in the order in which they stand here.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// Its name in the test.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)+ }
            }
        }
    };
}

points! {
    /// A file is written beside the one that it will replace.
    FileFilled = "file-filled",
    /// The user ids are on the disk.
    LedgerStored = "ledger-stored",
    /// systemd-sysusers has made the accounts.
    UsersMade = "users-made",
    /// An object of the shared tree is there, open to nobody yet.
    TreeObjectMade = "tree-object-made",
    /// One list of an object of the shared tree is written.
    TreeObjectListed = "tree-object-listed",
    /// One object of an agent's root is as planned.
    RootObjectMade = "root-object-made",
    /// The links of enabled handles are on the disk, PID 1 does not know.
    HandlesLinked = "handles-linked",
    /// PID 1 knows the enabled handles.
    HandlesEnabled = "handles-enabled",
    /// A file of the bus is written beside the one that it will replace.
    BusFileFilled = "bus-file-filled",
    /// One identity of the bus is made.
    IdentityMade = "identity-made",
    /// It is recorded that the bus has to read its files.
    BusPending = "bus-pending",
    /// The bus's accounts are written.
    AccountsWritten = "accounts-written",
    /// All of the bus's files are as configured.
    BusWritten = "bus-written",
    /// The record of what is open is written, the kernel's table is not.
    FenceRecorded = "fence-recorded",
    /// The kernel's table is as recorded.
    FenceLoaded = "fence-loaded",
    /// The links of handles of agents that are gone are removed, PID 1 does not know.
    HandlesUnlinked = "handles-unlinked",
    /// PID 1 knows that those handles are not enabled.
    HandlesDisabled = "handles-disabled",
    /// The identities of agents that are gone are removed.
    IdentitiesRetired = "identities-retired",
    /// All that apply makes itself is made; PID 1's part comes next.
    ApplyUnlocked = "apply-unlocked",
    /// The bus has read its files, and nobody has recorded it.
    BusTold = "bus-told",
    /// The streams of all agents are there.
    StreamsMade = "streams-made",
    /// The audit log says that an agent is to be added.
    AddNoted = "add-noted",
    /// The new agent's file is written under another name.
    ConfigFileFilled = "config-file-filled",
    /// The new agent's file is there.
    ConfigFileMade = "config-file-made",
    /// The audit log says that an agent is to be removed.
    RemoveNoted = "remove-noted",
    /// The agent to be removed does not run.
    RemoveStopped = "remove-stopped",
    /// The removed agent's file is gone.
    ConfigFileRemoved = "config-file-removed",
    /// The lock of the agent to be started is held.
    LaunchLocked = "launch-locked",
    /// An earlier failure is forgotten.
    LaunchForgiven = "launch-forgiven",
    /// All that apply makes is in place.
    LaunchPrepared = "launch-prepared",
    /// The unit runs by which the host is asked whether it filters packets.
    HostAsked = "host-asked",
    /// The host enforces what the unit will say.
    LaunchHostChecked = "launch-host-checked",
    /// The agent's exceptions are open.
    LaunchFenceOpened = "launch-fence-opened",
    /// The agent finds its exceptions by name.
    LaunchHostsWritten = "launch-hosts-written",
    /// PID 1 has taken the request, or refused it, and its job has not been waited for.
    JobSent = "job-sent",
    /// PID 1 has said how the job ended.
    JobDone = "job-done",
    /// The agent runs, and was measured.
    LaunchMeasured = "launch-measured",
    /// The audit log says that the agent runs.
    LaunchNoted = "launch-noted",
    /// The lock of the agent to be stopped is held.
    HaltLocked = "halt-locked",
    /// Its processes are gone.
    HaltStopped = "halt-stopped",
    /// PID 1 has forgotten its unit.
    HaltForgotten = "halt-forgotten",
    /// Its slice is gone.
    HaltSliceStopped = "halt-slice-stopped",
    /// Its exceptions are closed.
    HaltFenceClosed = "halt-fence-closed",
    /// The audit log says that it was stopped.
    HaltNoted = "halt-noted",
}

/// Ends this process here, without a word, if a test asks for it.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn at(_: Point) {}

/// Ends this process here, without a word, if a test asks for it: `/run/flock-fail/kill` holds the
/// name of a point and how often it is passed until then. Every pass is a line in `passed`, with the
/// number of the process: a verb has others at work for it, in units.
#[cfg(feature = "fail-points")]
pub fn at(point: Point) {
    use nix::sys::signal::{Signal, kill};
    use std::fs;
    use std::io::Write as _;

    const DIR: &str = "/run/flock-fail";
    let (passed, wanted) = (format!("{DIR}/passed"), format!("{DIR}/kill"));
    let Ok(mut log) = fs::File::options().append(true).open(&passed) else { return };
    let _ = writeln!(log, "{} {}", point.name(), std::process::id());
    let count = fs::read_to_string(&passed).unwrap_or_default();
    let count = count.lines().filter(|line| line.split(' ').next() == Some(point.name())).count();
    let here = format!("{} {count}", point.name());
    if fs::read_to_string(&wanted).is_ok_and(|text| text.trim() == here) {
        let _ = fs::remove_file(&wanted);
        let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}
