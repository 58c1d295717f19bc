//! Start, stop and read units.

use std::collections::HashMap;
use std::time::Duration;

use zbus::Connection;
use zbus::proxy::CacheProperties;
use zbus::wire::{OwnedVariant, Variant};

use super::again::again;
use super::manager::{ManagerProxy, UnitRow as RawRow};
use super::variant;
use crate::fail::{self, Point};
use crate::plan::Property;

/// The oldest systemd that the sandbox was tested on.
pub const OLDEST: u16 = 252;
/// PID 1 answers nobody while it reloads: minutes, on a host with thousands of units.
pub(super) const PATIENCE: Duration = Duration::from_secs(150);

/// Why a unit could not be started, stopped or read.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The system bus or PID 1 does not answer.
    #[error("ask systemd over the system bus: {0}: is dbus running? (systemctl status dbus)")]
    Bus(#[source] zbus::Error),
    /// An older systemd than flock supports, or a version that cannot be read.
    #[error("systemd reports version {0:?}: flock needs systemd {OLDEST} or later as PID 1")]
    TooOld(String),
    /// PID 1 refused the request.
    #[error("{verb} {unit}: systemd refused: {cause}")]
    Refused {
        /// start, stop, …
        verb: &'static str,
        /// The unit.
        unit: String,
        /// In PID 1's words.
        cause: String,
    },
    /// The unit is loaded already.
    #[error("start {0}: a unit of this name is loaded already")]
    Exists(String),
    /// The job ended in another way than `done`.
    #[error("{verb} {unit}: the job ended as {result:?}: see journalctl -u {unit}")]
    Job {
        /// start, stop, …
        verb: &'static str,
        /// The unit.
        unit: String,
        /// failed, timeout, canceled, dependency, …
        result: String,
    },
    /// No answer in time; what became of the job is not known.
    #[error("{verb} {unit}: no answer from systemd within {}s: it may still happen, look with systemctl status {unit}", PATIENCE.as_secs())]
    Unknown {
        /// start, stop, …
        verb: &'static str,
        /// The unit.
        unit: String,
    },
}

/// A connection to PID 1.
pub struct Systemd {
    pub(super) connection: Connection,
    pub(super) manager: ManagerProxy<'static>,
    version: u16,
}

impl Systemd {
    /// Connects, and reads the version once.
    ///
    /// # Errors
    /// When the system bus or PID 1 does not answer, has no room for another connection of root's for
    /// a while, or systemd is too old.
    pub async fn connect() -> Result<Self, UnitError> {
        let connection = again(Connection::system).await.map_err(UnitError::Bus)?;
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(UnitError::Bus)?;
        again(|| manager.subscribe()).await.map_err(UnitError::Bus)?;
        let text = again(|| manager.version()).await.map_err(UnitError::Bus)?;
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(version) if version >= OLDEST => Ok(Self { connection, manager, version }),
            _ => Err(UnitError::TooOld(text)),
        }
    }

    /// The major version of PID 1.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Makes a transient unit and waits until its job has ended.
    ///
    /// # Errors
    /// [`UnitError::Exists`] when the name is taken; else what PID 1 says.
    pub async fn start_transient(
        &self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), UnitError> {
        let properties: Vec<(&str, Variant<'_>)> = properties
            .iter()
            .filter(|p| p.is_for(self.version))
            .map(|p| (p.name, variant::of(&p.value)))
            .collect();
        let call = || self.manager.start_transient_unit(unit, "fail", &properties, &[]);
        match self.job("start", unit, call).await {
            Err(UnitError::Refused { cause, .. }) if cause.contains("UnitExists") => {
                Err(UnitError::Exists(unit.to_owned()))
            }
            other => other,
        }
    }

    /// Starts a unit that is on disk and waits until its job has ended.
    ///
    /// # Errors
    /// What PID 1 says, or how the job ended.
    pub async fn start(&self, unit: &str) -> Result<(), UnitError> {
        self.job("start", unit, || self.manager.start_unit(unit, "replace")).await
    }

    /// Stops a unit and waits until it is gone. A unit that is not loaded is stopped.
    ///
    /// # Errors
    /// What PID 1 says, or how the job ended.
    pub async fn stop(&self, unit: &str) -> Result<(), UnitError> {
        match self.job("stop", unit, || self.manager.stop_unit(unit, "replace")).await {
            Err(UnitError::Refused { cause, .. }) if cause.contains("NoSuchUnit") => Ok(()),
            other => other,
        }
    }

    /// Stops and starts a unit and waits until its job has ended.
    ///
    /// # Errors
    /// What PID 1 says, or how the job ended.
    pub async fn restart(&self, unit: &str) -> Result<(), UnitError> {
        self.job("restart", unit, || self.manager.restart_unit(unit, "replace")).await
    }

    /// Has a unit read its configuration again; starts it if it is stopped.
    ///
    /// # Errors
    /// What PID 1 says, or how the job ended.
    pub async fn reload_or_restart(&self, unit: &str) -> Result<(), UnitError> {
        self.job("reload", unit, || self.manager.reload_or_restart_unit(unit, "replace")).await
    }

    /// Has a unit read its configuration again, if it runs.
    ///
    /// # Errors
    /// What PID 1 says, or how the job ended.
    pub async fn reload_if_active(&self, unit: &str) -> Result<(), UnitError> {
        if self.facts(unit).await?.text("ActiveState") != "active" {
            return Ok(());
        }
        self.job("reload", unit, || self.manager.reload_unit(unit, "replace")).await
    }

    /// Enables units, with one reload for all of them.
    ///
    /// # Errors
    /// What PID 1 says.
    pub async fn enable(&self, units: &[String]) -> Result<(), UnitError> {
        let names: Vec<&str> = units.iter().map(String::as_str).collect();
        let all = names.join(" ");
        let enable = again(|| self.manager.enable_unit_files(&names, false, false));
        enable.await.map_err(|e| refused("enable", &all, &e))?;
        fail::at(Point::HandlesLinked);
        again(|| self.manager.reload()).await.map_err(|e| refused("reload for", &all, &e))?;
        fail::at(Point::HandlesEnabled);
        Ok(())
    }

    /// Disables units, with one reload for all of them. One that is not enabled is left alone.
    ///
    /// # Errors
    /// What PID 1 says.
    pub async fn disable(&self, units: &[String]) -> Result<(), UnitError> {
        let names: Vec<&str> = units.iter().map(String::as_str).collect();
        let all = names.join(" ");
        let disable = again(|| self.manager.disable_unit_files(&names, false));
        disable.await.map_err(|e| refused("disable", &all, &e))?;
        fail::at(Point::HandlesUnlinked);
        again(|| self.manager.reload()).await.map_err(|e| refused("reload for", &all, &e))?;
        fail::at(Point::HandlesDisabled);
        Ok(())
    }

    /// Holds all processes of a unit still, until it is thawed or stopped.
    ///
    /// # Errors
    /// What PID 1 says.
    pub async fn freeze(&self, unit: &str) -> Result<(), UnitError> {
        self.manager.freeze_unit(unit).await.map_err(|e| refused("freeze", unit, &e))
    }

    /// Lets the processes of a frozen unit go on.
    ///
    /// # Errors
    /// What PID 1 says.
    pub async fn thaw(&self, unit: &str) -> Result<(), UnitError> {
        self.manager.thaw_unit(unit).await.map_err(|e| refused("thaw", unit, &e))
    }

    /// Forgets that a unit failed. One that is not loaded, or did not fail, is left alone.
    ///
    /// # Errors
    /// What PID 1 says.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), UnitError> {
        match again(|| self.manager.reset_failed_unit(unit)).await {
            Err(error) if !error.to_string().contains("NoSuchUnit") => {
                Err(refused("reset-failed", unit, &error))
            }
            _ => Ok(()),
        }
    }

    /// What PID 1 knows of a unit, with one call. One that is not loaded has `LoadState=not-found`.
    ///
    /// # Errors
    /// When PID 1 does not answer.
    pub async fn facts(&self, unit: &str) -> Result<UnitFacts, UnitError> {
        // No interface means all of the unit's; asked for the path, PID 1 loads the unit if need be.
        let get = || {
            self.connection.call_method(
                Some("org.freedesktop.systemd1"),
                path_of(unit),
                Some("org.freedesktop.DBus.Properties"),
                "GetAll",
                &"",
            )
        };
        let reply = again(get).await.map_err(|e| refused("read", unit, &e))?;
        reply.body().deserialize().map(UnitFacts).map_err(UnitError::Bus)
    }

    /// The names and active states of the loaded units that match a pattern.
    ///
    /// # Errors
    /// When PID 1 does not answer.
    pub async fn list(&self, pattern: &str) -> Result<Vec<(String, String)>, UnitError> {
        let patterns = [pattern];
        let rows = again(|| self.manager.list_units_by_patterns(&[], &patterns)).await;
        let rows = rows.map_err(UnitError::Bus)?;
        Ok(rows.into_iter().map(|row| (row.0, row.3)).collect())
    }

    /// The loaded units whose names match any of the patterns, with one call.
    ///
    /// # Errors
    /// When PID 1 does not answer.
    pub async fn rows(&self, patterns: &[&str]) -> Result<Vec<UnitRow>, UnitError> {
        let rows = again(|| self.manager.list_units_by_patterns(&[], patterns)).await;
        let row = |r: RawRow| UnitRow { name: r.0, active: r.3, sub: r.4, job: r.7 != 0 };
        Ok(rows.map_err(UnitError::Bus)?.into_iter().map(row).collect())
    }

    /// A list of texts of a unit of any kind, read from disk if need be; empty when it has none.
    ///
    /// # Errors
    /// When PID 1 does not answer.
    pub async fn unit_texts(&self, unit: &str, property: &str) -> Result<Vec<String>, UnitError> {
        let path =
            again(|| self.manager.load_unit(unit)).await.map_err(|e| refused("read", unit, &e))?;
        let of = ("org.freedesktop.systemd1.Unit", property);
        let call = self.connection.call_method(
            Some("org.freedesktop.systemd1"),
            path,
            Some("org.freedesktop.DBus.Properties"),
            "Get",
            &of,
        );
        let reply = call.await.map_err(|e| refused("read", unit, &e))?;
        let value: OwnedVariant = reply.body().deserialize().map_err(UnitError::Bus)?;
        Ok(value.try_into().unwrap_or_default())
    }

    /// The connection, for those who listen to signals.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The object of a unit, as systemd names it: all but ASCII letters and digits as `_` and two digits.
fn path_of(unit: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (place, byte) in unit.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if place == 0 => path.push_str(&format!("_{byte:02x}")),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => path.push(char::from(byte)),
            _ => path.push_str(&format!("_{byte:02x}")),
        }
    }
    path
}

pub(super) fn refused(verb: &'static str, unit: &str, error: &zbus::Error) -> UnitError {
    UnitError::Refused { verb, unit: unit.to_owned(), cause: error.to_string() }
}

/// One row of PID 1's list of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRow {
    /// The unit.
    pub name: String,
    /// `active`, `failed`, …
    pub active: String,
    /// `running`, `exited`, `auto-restart`, …
    pub sub: String,
    /// Whether a job waits for it.
    pub job: bool,
}

/// The properties of a unit as PID 1 showed them at one moment.
pub struct UnitFacts(HashMap<String, OwnedVariant>);

impl UnitFacts {
    /// A text property; empty when it is not there.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.0.get(name).and_then(|v| v.try_clone().ok()?.try_into().ok()).unwrap_or_default()
    }

    /// A list of texts; empty when it is not there.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.0.get(name).and_then(|v| v.try_clone().ok()?.try_into().ok()).unwrap_or_default()
    }

    /// A number of any width. `None` when it is not there or systemd says "not known".
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match &**self.0.get(name)? {
            Variant::U64(u64::MAX) => None,
            Variant::U64(n) => Some(*n),
            Variant::U32(n) => Some(u64::from(*n)),
            Variant::I32(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The invocation id in hexadecimal; empty when there is none.
    #[must_use]
    pub fn invocation(&self) -> String {
        let bytes: Vec<u8> = self
            .0
            .get("InvocationID")
            .and_then(|v| v.try_clone().ok()?.try_into().ok())
            .unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Which of these properties PID 1 holds with another value for another unit.
    #[must_use]
    pub fn unlike<'n>(&self, other: &Self, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
        names.filter(|name| self.0.get(*name) != other.0.get(*name)).collect()
    }

    /// Which of these properties PID 1 does not hold as they were sent.
    #[must_use]
    pub fn differences(&self, wanted: &[Property]) -> Vec<&'static str> {
        let differs = |p: &&Property| {
            self.0.get(p.name).and_then(|found| variant::holds(&p.value, found)) == Some(false)
        };
        wanted.iter().filter(differs).map(|p| p.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_the_path_that_systemd_gives_it() {
        for (unit, path) in [
            ("flock-agent@a-1.service", "flock_2dagent_40a_2d1_2eservice"),
            ("flock-agents-a\\x2d1.slice", "flock_2dagents_2da_5cx2d1_2eslice"),
            ("1.service", "_31_2eservice"),
        ] {
            assert_eq!(path_of(unit), format!("/org/freedesktop/systemd1/unit/{path}"));
        }
    }
}
