//! An open directory and what can be done below it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self as fs, AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::system;
use super::handle::{Handle, Kind};
use super::{FilesError, Owner, Result};

/// An open directory that belongs to root.
#[derive(Debug)]
pub struct Dir {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Dir {
    /// Opens an absolute path.
    ///
    /// # Errors
    /// When it is missing, no directory, not root's, or a symbolic link is on the way.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_if_there(path)?.ok_or_else(|| system("open", path, Errno::NOENT))
    }

    /// Opens an absolute path, if it exists.
    ///
    /// # Errors
    /// As [`Dir::open`], less "missing".
    pub fn open_if_there(path: &Path) -> Result<Option<Self>> {
        let below = path.strip_prefix("/").map_err(|_| FilesError::Name { path: path.into() })?;
        if below.as_os_str().is_empty() {
            return Self::slash().map(Some);
        }
        Self::slash()?.sub(below)
    }

    /// Opens an absolute path of which root controls every part: no directory on the way may be
    /// written by others, or they could put another object in this place.
    pub(super) fn open_guarded(path: &Path) -> Result<Self> {
        let mut dir = Self::slash()?;
        let below = path.strip_prefix("/").map_err(|_| FilesError::Name { path: path.into() })?;
        for part in below.components() {
            let missing = || system("open", path, Errno::NOENT);
            let handle = dir.handle(Path::new(part.as_os_str()))?.ok_or_else(missing)?;
            handle.expect(Kind::Dir, Owner { gid: handle.stat.st_gid, ..Owner::ROOT })?;
            handle.expect_owner_writes_alone()?;
            dir = Self { fd: handle.fd, path: handle.path };
        }
        Ok(dir)
    }

    fn slash() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open("/", flags, Mode::empty())
            .map_err(|error| system("open", Path::new("/"), error))?;
        Ok(Self { fd, path: "/".into() })
    }

    /// Where it was found; for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The object at a relative path, if there is one. A symbolic link in the last place gives a
    /// handle of the link itself; one before it is refused.
    ///
    /// # Errors
    /// When a symbolic link is on the way, the path leads out, or the system refuses.
    pub fn handle(&self, relative: &Path) -> Result<Option<Handle>> {
        let path = self.path.join(relative);
        plain(relative)?;
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = loop {
            match fs::openat2(&self.fd, relative, flags, Mode::empty(), safe) {
                Ok(fd) => break fd,
                // Something was renamed meanwhile; the kernel asks for another try.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP) => return Err(FilesError::Symlink { path }),
                Err(error) => return Err(system("open", &path, error)),
            }
        };
        let stat = fs::fstat(&fd).map_err(|error| system("look at", &path, error))?;
        Ok(Some(Handle { fd, path, stat }))
    }

    /// A directory of root's below this one, if it exists.
    ///
    /// # Errors
    /// When it is something else, or not root's.
    pub fn sub(&self, relative: &Path) -> Result<Option<Self>> {
        let Some(handle) = self.handle(relative)? else { return Ok(None) };
        handle.expect(Kind::Dir, Owner { gid: handle.stat.st_gid, ..Owner::ROOT })?;
        Ok(Some(Self { fd: handle.fd, path: handle.path }))
    }

    /// Makes a directory, closed to everybody but root, if it is missing; says whether it was.
    /// Its parent must exist.
    ///
    /// # Errors
    /// When something else is there, or the system refuses.
    pub fn make_dir(&self, relative: &Path) -> Result<bool> {
        if let Some(handle) = self.handle(relative)? {
            handle.expect(Kind::Dir, Owner::ROOT)?;
            return Ok(false);
        }
        let (parent, name) = self.parent(relative)?;
        fs::mkdirat(&parent.fd, name, Mode::RWXU)
            .map_err(|error| system("create", &self.path.join(relative), error))?;
        Ok(true)
    }

    /// Makes a symbolic link; its name must be free.
    ///
    /// # Errors
    /// When the name is taken, or the system refuses.
    pub fn make_link(&self, relative: &Path, target: &Path) -> Result<()> {
        let (parent, name) = self.parent(relative)?;
        fs::symlinkat(target, &parent.fd, name)
            .map_err(|error| system("create", &self.path.join(relative), error))
    }

    /// Where a symbolic link points, if there is one.
    ///
    /// # Errors
    /// When something else is there, or the system refuses.
    pub fn read_link(&self, relative: &Path) -> Result<Option<PathBuf>> {
        let Some(handle) = self.handle(relative)? else { return Ok(None) };
        if handle.kind() != Kind::Link {
            return Ok(None);
        }
        let target = fs::readlinkat(&handle.fd, "", Vec::new())
            .map_err(|error| system("read", &handle.path, error))?;
        Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// The content of a file of this owner, if there is one.
    ///
    /// # Errors
    /// When it is no ordinary file, has another owner, a second name, or more than `limit` bytes.
    pub fn read(
        &self,
        relative: &(impl AsRef<Path> + ?Sized),
        owner: Owner,
        limit: u64,
    ) -> Result<Option<Vec<u8>>> {
        let Some(handle) = self.handle(relative.as_ref())? else { return Ok(None) };
        handle.expect(Kind::File, owner)?;
        handle.read(limit).map(Some)
    }

    /// The names in this directory, sorted.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn names(&self) -> Result<Vec<PathBuf>> {
        let fail = |error| system("list", &self.path, error);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(self.reopen()?).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let name: &OsStr = OsStrExt::from_bytes(name);
                names.push(PathBuf::from(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes what has this name: a file, a link, or a directory of root's with all that is in
    /// it. Links are never followed and mount points never entered. Missing is no error.
    ///
    /// # Errors
    /// When a directory in it is not root's, or the system refuses; part of it may be gone then.
    pub fn remove(&self, name: &Path) -> Result<()> {
        let Some(handle) = self.handle(name)? else { return Ok(()) };
        let (parent, last) = self.parent(name)?;
        let flags = if handle.kind() == Kind::Dir {
            handle.expect(Kind::Dir, Owner { gid: handle.stat.st_gid, ..Owner::ROOT })?;
            if handle.stat.st_dev != parent.device()? {
                return Err(system("remove", &handle.path, Errno::BUSY));
            }
            let dir = Self { fd: handle.fd, path: handle.path };
            for entry in dir.names()? {
                dir.remove(&entry)?;
            }
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        match fs::unlinkat(&parent.fd, last, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(system("remove", &self.path.join(name), error)),
        }
    }

    fn device(&self) -> Result<u64> {
        fs::fstat(&self.fd)
            .map(|stat| stat.st_dev)
            .map_err(|error| system("look at", &self.path, error))
    }

    /// The directory that a relative path ends in, and the last name.
    pub(super) fn parent<'a>(&self, relative: &'a Path) -> Result<(Self, &'a OsStr)> {
        plain(relative)?;
        let name =
            relative.file_name().ok_or_else(|| FilesError::Name { path: relative.into() })?;
        let above = relative.parent().filter(|above| !above.as_os_str().is_empty());
        let Some(above) = above else {
            let fd = self.fd.try_clone().map_err(|source| FilesError::System {
                step: "open",
                path: self.path.clone(),
                source,
            })?;
            return Ok((Self { fd, path: self.path.clone() }, name));
        };
        let missing = || system("open", &self.path.join(above), Errno::NOENT);
        Ok((self.sub(above)?.ok_or_else(missing)?, name))
    }

    /// A descriptor that can be listed and flushed; the one we keep can only be searched, so that
    /// those without the right to list the directory can use it too.
    pub(super) fn reopen(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(&self.fd, ".", flags, Mode::empty())
            .map_err(|error| system("open", &self.path, error))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A relative path of ordinary names only.
fn plain(relative: &Path) -> Result<()> {
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !relative.as_os_str().is_empty() {
        return Ok(());
    }
    Err(FilesError::Name { path: relative.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;
    use std::fs as sfs;
    use std::io;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    const AGENT: u32 = 65_537;
    const LIMIT: u64 = 100;

    fn text(error: FilesError) -> String {
        error.to_string()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let Some(temp) = testing::root_dir("files_replace") else { return };
        let dir = Dir::open(temp.path()).unwrap();
        let owner = Owner { uid: AGENT, gid: AGENT };
        assert_eq!(dir.read("f", owner, LIMIT).unwrap(), None);
        dir.write("f", b"one", owner, 0o400).unwrap();
        let held = sfs::File::open(temp.path().join("f")).unwrap();
        dir.write("f", b"two", owner, 0o440).unwrap();
        assert_eq!(dir.read("f", owner, LIMIT).unwrap().unwrap(), b"two");
        assert_eq!(io::read_to_string(held).unwrap(), "one", "the former file was not written to");
        let meta = sfs::metadata(temp.path().join("f")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (AGENT, AGENT, 0o440));
        assert_eq!(dir.names().unwrap(), [PathBuf::from("f")]);
    }

    #[test]
    fn planted_objects_are_refused_and_left_alone() {
        let Some(temp) = testing::root_dir("files_planted") else { return };
        let (at, dir) = (|name: &str| temp.path().join(name), Dir::open(temp.path()).unwrap());
        let outside = testing::root_dir("files_planted").unwrap();
        let victim = outside.path().join("victim");
        sfs::write(&victim, "precious").unwrap();
        sfs::write(at("second"), "x").unwrap();
        sfs::hard_link(at("second"), at("hard")).unwrap();
        symlink(&victim, at("link")).unwrap();
        symlink(outside.path(), at("away")).unwrap();
        sfs::create_dir(at("dir")).unwrap();
        sfs::write(at("theirs"), "x").unwrap();
        chown(at("theirs"), Some(AGENT), None).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let cases = [
            ("hard", "has 2 names"),
            ("link", "is a symbolic link"),
            ("away/victim", "a symbolic link is in the way"),
            ("dir", "is a directory, should be a file"),
            ("theirs", "should belong to root:root"),
            ("pipe", "is a socket, pipe or device"),
            ("../victim", "not a plain path"),
            ("/etc/passwd", "not a plain path"),
            ("", "not a plain path"),
        ];
        for (name, why) in cases {
            let read = text(dir.read(name, Owner::ROOT, LIMIT).unwrap_err());
            assert!(read.contains(why), "read {name}: {read}");
            let write = text(dir.write(name, b"bad", Owner::ROOT, 0o644).unwrap_err());
            assert!(write.contains(why), "write {name}: {write}");
        }
        for name in ["hard", "link", "away", "theirs", "pipe", "away/x"] {
            assert!(dir.make_dir(Path::new(name)).is_err(), "{name}");
            assert!(dir.sub(Path::new(name)).is_err(), "{name}");
        }
        assert_eq!(sfs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(sfs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_owner_in_a_message_has_a_name() {
        let Some(temp) = testing::root_dir("files_owner") else { return };
        sfs::write(temp.path().join("f"), "").unwrap();
        chown(temp.path().join("f"), Some(1), Some(2)).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let error = text(dir.read("f", Owner::ROOT, LIMIT).unwrap_err());
        assert!(error.contains("belongs to daemon:bin") && error.contains("chown 0:0"), "{error}");
    }

    #[test]
    fn a_directory_is_made_closed_and_only_once() {
        let Some(temp) = testing::root_dir("files_make_dir") else { return };
        let dir = Dir::open(temp.path()).unwrap();
        assert!(dir.make_dir(Path::new("a")).unwrap());
        assert!(!dir.make_dir(Path::new("a")).unwrap());
        assert!(dir.make_dir(Path::new("a/b")).unwrap());
        assert!(dir.make_dir(Path::new("no/b")).is_err());
        assert_eq!(sfs::metadata(temp.path().join("a")).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn removal_takes_links_not_what_they_point_to_and_stops_at_mounts() {
        let Some(temp) = testing::private_etc("files_remove") else { return };
        let dir = Dir::open(temp.path()).unwrap();
        let at = |name: &str| temp.path().join(name);
        sfs::create_dir_all(at("a/b/c")).unwrap();
        sfs::create_dir(at("kept")).unwrap();
        sfs::write(at("kept/f"), "x").unwrap();
        sfs::write(at("a/b/f"), "x").unwrap();
        symlink(at("kept"), at("a/link")).unwrap();
        dir.remove(Path::new("a")).unwrap();
        dir.remove(Path::new("a")).unwrap();
        assert!(!at("a").exists() && at("kept/f").exists());

        sfs::create_dir_all(at("a/mnt")).unwrap();
        let no: Option<&str> = None;
        nix::mount::mount(no, &at("a/mnt"), Some("tmpfs"), nix::mount::MsFlags::empty(), no)
            .unwrap();
        sfs::write(at("a/mnt/f"), "x").unwrap();
        assert!(dir.remove(Path::new("a")).is_err());
        assert!(at("a/mnt/f").exists());
        nix::mount::umount(&at("a/mnt")).unwrap();
    }

    #[test]
    fn a_secret_that_others_decide_about_is_refused() {
        let Some(temp) = testing::root_dir("files_secret") else { return };
        let path = temp.path().join("key");
        sfs::write(&path, "s3cret").unwrap();
        let mode = |at: &Path, mode| {
            sfs::set_permissions(at, sfs::Permissions::from_mode(mode)).unwrap();
        };
        let secret = || super::super::read_secret(&path, LIMIT);
        mode(&path, 0o640);
        assert_eq!(secret().unwrap(), b"s3cret");
        for (bits, why) in [(0o644, "every user"), (0o620, "may write"), (0o602, "may write")] {
            mode(&path, bits);
            let error = text(secret().unwrap_err());
            assert!(error.contains(why) && error.contains("chmod"), "{error}");
        }
        mode(&path, 0o600);
        chown(&path, Some(AGENT), None).unwrap();
        assert!(text(secret().unwrap_err()).contains("belongs to"));
        chown(&path, Some(0), None).unwrap();
        sfs::hard_link(&path, temp.path().join("other")).unwrap();
        assert!(text(secret().unwrap_err()).contains("2 names"));
        sfs::remove_file(temp.path().join("other")).unwrap();
        mode(temp.path(), 0o1777);
        assert!(text(secret().unwrap_err()).contains("may write"), "the directory decides as well");
        mode(temp.path(), 0o755);
        chown(temp.path(), Some(AGENT), None).unwrap();
        assert!(text(secret().unwrap_err()).contains("belongs to"));
        chown(temp.path(), Some(0), None).unwrap();
        sfs::write(&path, [b'x'; 101]).unwrap();
        assert!(text(secret().unwrap_err()).contains("larger than 100"));
        sfs::rename(&path, temp.path().join("real")).unwrap();
        symlink("real", &path).unwrap();
        assert!(text(secret().unwrap_err()).contains("symbolic link"));
    }

    /// The race that paths lose: one thread swaps a directory for a link, root writes below it.
    #[test]
    fn a_swapped_directory_never_leads_out() {
        let Some(temp) = testing::root_dir("files_race") else { return };
        let outside = testing::root_dir("files_race").unwrap();
        let (real, parked, link) =
            (temp.path().join("d"), temp.path().join("parked"), temp.path().join("link"));
        sfs::create_dir(&real).unwrap();
        symlink(outside.path(), &link).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let dir = Dir::open(temp.path()).unwrap();
        let mut refused = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    sfs::rename(&real, &parked).unwrap();
                    sfs::rename(&link, &real).unwrap();
                    sfs::rename(&real, &link).unwrap();
                    sfs::rename(&parked, &real).unwrap();
                }
            });
            let (begun, mut tries) = (std::time::Instant::now(), 0);
            while tries < 2000 || refused == 0 && begun.elapsed().as_secs() < 60 {
                refused += usize::from(dir.write("d/f", b"x", Owner::ROOT, 0o600).is_err());
                tries += 1;
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(refused > 0, "the race was never lost: the test shows nothing");
        assert_eq!(sfs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
