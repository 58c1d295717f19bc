//! Whether the bus can store what it is sent.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::bus::hub::Hub;
use crate::names::bus_store;
use crate::status::health::Part;

/// Less room than this is said before something is refused: some of the largest tasks.
const LEAST: u64 = 32 * 1024 * 1024;

/// Asks the server whether it keeps streams, and the file system how much room it has.
pub async fn look(hub: &Hub) -> Part {
    if !hub.keeps_streams().await {
        return Part::broken(
            "it stores nothing: its disk is full or its store is broken: make room on the file \
             system of /var/lib/flock/bus, then systemctl restart flock-bus",
        );
    }
    match room(&bus_store()) {
        Some(room) if room < LEAST => Part::broken(format!(
            "it has {} MiB of room left and refuses tasks when that is used up: make room on the \
             file system of /var/lib/flock/bus",
            room / 1024 / 1024
        )),
        // Where the store cannot be looked at, the server's own word counts.
        Some(_) | None => Part::fine(),
    }
}

/// Bytes that the server can still write at `store`.
fn room(store: &Path) -> Option<u64> {
    let system = statvfs(store).ok()?;
    Some(system.blocks_available().saturating_mul(system.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_the_file_systems_and_unknown_without_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(room(dir.path()).unwrap() > 0);
        assert_eq!(room(&dir.path().join("none")), None);
        assert_eq!(room(Path::new("/proc")), Some(0));
    }
}
