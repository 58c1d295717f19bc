//! Whether the kernel offers Landlock, with which `flock-agent` holds a command to its tool rules.

use landlock::{AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};

/// What to do when it is not there.
pub const REMEDY: &str = "use a kernel with CONFIG_SECURITY_LANDLOCK and landlock among the lsm= of \
                          its command line; in a container, let the landlock system calls through";

/// Asks the kernel; changes nothing.
#[must_use]
pub fn is_there() -> bool {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict.handle_access(AccessFs::Execute).is_ok_and(|rules| rules.create().is_ok())
}
