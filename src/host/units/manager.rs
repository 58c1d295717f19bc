//! PID 1's D-Bus interface, the methods of it that flock calls.

use zbus::proxy;
use zbus::wire::{OwnedObjectPath, Variant};

/// One auxiliary unit of StartTransientUnit; flock sends none.
type AuxUnit<'a> = (&'a str, &'a [(&'a str, Variant<'a>)]);
/// A row of ListUnits: name, description, load, active and sub state, followed unit, path, job.
pub(super) type UnitRow =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// `org.freedesktop.systemd1.Manager`, see org.freedesktop.systemd1(5).
#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(super) trait Manager {
    /// Asks for signals; once for each connection.
    fn subscribe(&self) -> zbus::Result<()>;
    /// Makes a unit of these properties and starts it; answers with the job.
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        aux: &[AuxUnit<'_>],
    ) -> zbus::Result<OwnedObjectPath>;
    /// Starts a unit; answers with the job.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Stops a unit; answers with the job.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Stops and starts a unit; answers with the job.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Has a unit read its configuration again; answers with the job.
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Reloads a unit's configuration if it can, else restarts it.
    fn reload_or_restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Holds all processes of a unit still.
    fn freeze_unit(&self, name: &str) -> zbus::Result<()>;
    /// Lets them go on.
    fn thaw_unit(&self, name: &str) -> zbus::Result<()>;
    /// Forgets a failure, and with it a transient unit that failed.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    /// The object of a unit, loaded from disk if need be.
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    /// The loaded units whose names match.
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<UnitRow>>;
    /// Makes the links of `[Install]`; answers whether there is such a section, and the links.
    fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    /// Takes the links of `[Install]` away; answers with them.
    fn disable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
    ) -> zbus::Result<Vec<(String, String, String)>>;
    /// Reads all unit files again.
    fn reload(&self) -> zbus::Result<()>;

    /// A job ended: number, path, unit, result.
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;

    /// `257.13-1~deb13u1`
    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    /// `+PAM +AUDIT … +BPF_FRAMEWORK`
    #[zbus(property)]
    fn features(&self) -> zbus::Result<String>;
}
