//! Files and links that are replaced as a whole, and what is left when that was broken off.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{self as fs, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::system;
use super::handle::Kind;
use super::{Dir, FilesError, Owner, Result};
use crate::fail::{self, Point};

/// How the names of files begin that are about to replace others.
const TEMPORARY: &str = ".new-";

impl Dir {
    /// Replaces or creates a file as a whole. After return it survives a power cut; whoever reads
    /// meanwhile sees the former content or the new one.
    ///
    /// # Errors
    /// When something else than a file of this owner is there, or the system refuses. The former
    /// content stands then.
    pub fn write(
        &self,
        relative: &(impl AsRef<Path> + ?Sized),
        content: &[u8],
        owner: Owner,
        mode: u32,
    ) -> Result<()> {
        let relative = relative.as_ref();
        let path = self.path.join(relative);
        if let Some(there) = self.handle(relative)? {
            there.expect(Kind::File, owner)?;
        }
        let (parent, name) = self.parent(relative)?;
        let directory = parent.reopen()?;
        // Open, and so locked, until it has its name: `sweep` takes it for a dead one's otherwise.
        let (temporary, _file) = parent.temporary(content, owner, mode)?;
        fail::at(Point::FileFilled);
        let fail = |error| {
            let _ = fs::unlinkat(&parent.fd, &temporary, AtFlags::empty());
            system("replace", &path, error)
        };
        fs::renameat(&parent.fd, &temporary, &parent.fd, name).map_err(fail)?;
        fs::fsync(&directory).map_err(|error| system("flush", &path, error))
    }

    /// A flushed and locked file of another name beside it, for the rename.
    fn temporary(&self, content: &[u8], owner: Owner, mode: u32) -> Result<(String, File)> {
        let (name, mut file) = loop {
            let (name, file) = self.locked()?;
            // `sweep` may have come between the two.
            let stat =
                fs::fstat(&file).map_err(|e| system("look at", &self.path.join(&name), e))?;
            if stat.st_nlink > 0 {
                break (name, file);
            }
        };
        let path = self.path.join(&name);
        let mut fill = || -> io::Result<()> {
            file.write_all(content)?;
            let (uid, gid) = (fs::Uid::from_raw(owner.uid), fs::Gid::from_raw(owner.gid));
            fs::fchown(&file, Some(uid), Some(gid))?;
            fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file.sync_all()
        };
        fill().map_err(|source| {
            let _ = fs::unlinkat(&self.fd, &name, AtFlags::empty());
            FilesError::System { step: "write", path, source }
        })?;
        Ok((name, file))
    }

    fn locked(&self) -> Result<(String, File)> {
        let name = format!("{TEMPORARY}{}", uuid::Uuid::now_v7().simple());
        let path = self.path.join(&name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = fs::openat(&self.fd, &name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
            .map_err(|error| system("create", &path, error))?;
        fs::flock(&fd, FlockOperation::LockExclusive).map_err(|e| system("lock", &path, e))?;
        Ok((name, File::from(fd)))
    }

    /// Removes what writers left beside their files that died before the rename; gives the names.
    /// A writer that lives holds the lock of its file.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sweep(&self) -> Result<Vec<PathBuf>> {
        let mut swept = Vec::new();
        for name in self.names()? {
            if !name.to_string_lossy().starts_with(TEMPORARY) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let dead = match fs::openat(&self.fd, &name, flags, Mode::empty()) {
                Ok(fd) => fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok(),
                // A link: nobody keeps those, and whoever sweeps holds the lock of the machine.
                Err(error) => error == Errno::LOOP,
            };
            if dead {
                self.remove(&name)?;
                swept.push(name);
            }
        }
        Ok(swept)
    }

    /// Makes a symbolic link, or has the one that is there lead elsewhere: there is no moment
    /// without it.
    ///
    /// # Errors
    /// When something else than a link is there, or the system refuses.
    pub fn replace_link(&self, relative: &Path, target: &Path) -> Result<()> {
        if let Some(there) = self.handle(relative)? {
            there.expect(Kind::Link, Owner::ROOT)?;
        }
        let (parent, name) = self.parent(relative)?;
        let next = PathBuf::from(format!("{TEMPORARY}{}", uuid::Uuid::now_v7().simple()));
        parent.make_link(&next, target)?;
        fs::renameat(&parent.fd, &next, &parent.fd, name).map_err(|error| {
            let _ = fs::unlinkat(&parent.fd, &next, AtFlags::empty());
            system("replace", &self.path.join(relative), error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;

    #[test]
    fn what_a_dead_writer_left_is_swept_and_a_live_ones_is_not() {
        let Some(temp) = testing::root_dir("sweep") else { return };
        let dir = Dir::open(temp.path()).unwrap();
        let (dead, file) = dir.locked().unwrap();
        drop(file);
        let (live, _file) = dir.locked().unwrap();
        dir.make_link(Path::new(".new-link"), Path::new("/nowhere")).unwrap();
        dir.write("kept", b"x", Owner::ROOT, 0o600).unwrap();
        let mut swept = dir.sweep().unwrap();
        swept.sort();
        let mut expected = vec![PathBuf::from(dead), PathBuf::from(".new-link")];
        expected.sort();
        assert_eq!(swept, expected);
        assert_eq!(dir.names().unwrap(), [PathBuf::from(live), PathBuf::from("kept")]);
    }

    #[test]
    fn a_link_can_be_made_to_lead_elsewhere() {
        let Some(temp) = testing::root_dir("relink") else { return };
        let dir = Dir::open(temp.path()).unwrap();
        let name = Path::new("link");
        for target in ["/usr/bin/a", "/usr/bin/b"] {
            dir.replace_link(name, Path::new(target)).unwrap();
            assert_eq!(dir.read_link(name).unwrap(), Some(PathBuf::from(target)));
        }
        dir.write("file", b"x", Owner::ROOT, 0o600).unwrap();
        assert!(dir.replace_link(Path::new("file"), Path::new("/x")).is_err());
        assert_eq!(dir.names().unwrap(), [PathBuf::from("file"), PathBuf::from("link")]);
    }
}
