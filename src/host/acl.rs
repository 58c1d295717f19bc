//! POSIX access control lists as plain data, read and written on an open object.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use posix_acl::{ACLError, PosixACL, Qualifier};
use rustix::fs::{self, Mode};
use rustix::io::Errno;

use super::files::{Handle, Kind};

/// Reading.
pub const R: u32 = posix_acl::ACL_READ;
/// Writing.
pub const W: u32 = posix_acl::ACL_WRITE;
/// Executing, or passing through a directory.
pub const X: u32 = posix_acl::ACL_EXECUTE;

/// Whom an entry is about. The order is the one in which `getfacl` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The owner.
    Owner,
    /// A user by number.
    User(u32),
    /// The owning group.
    OwningGroup,
    /// A group by number.
    Group(u32),
    /// The most that users and groups named here, and the owning group, can have.
    Mask,
    /// Everybody else.
    Other,
    /// An entry that is none of these.
    Unknown,
}

/// Why a list could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AclError(#[source] pub io::Error);

impl From<ACLError> for AclError {
    fn from(error: ACLError) -> Self {
        let os = error.as_io_error().and_then(io::Error::raw_os_error);
        // What it did not get from the system is its own verdict: the list makes no sense.
        Self(os.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error))
    }
}

/// A list. One without entries stands for "no default list".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Acl(BTreeMap<Who, u32>);

impl Acl {
    /// No list at all: what a directory has that hands nothing down.
    pub const NONE: Self = Self(BTreeMap::new());

    /// The list that stands for permission bits.
    #[must_use]
    pub fn of_mode(mode: u32) -> Self {
        Self(BTreeMap::from([
            (Who::Owner, mode >> 6 & 7),
            (Who::OwningGroup, mode >> 3 & 7),
            (Who::Other, mode & 7),
        ]))
    }

    /// The list with one entry more, and the mask that lets all of it hold.
    #[must_use]
    pub fn with(mut self, who: Who, permissions: u32) -> Self {
        self.0.insert(who, permissions);
        let masked = |who: &Who| matches!(who, Who::User(_) | Who::OwningGroup | Who::Group(_));
        let mask = self.0.iter().filter(|(who, _)| masked(who)).fold(0, |sum, (_, p)| sum | p);
        self.0.insert(Who::Mask, mask);
        self
    }

    /// The list without the users that `keep` does not want.
    #[must_use]
    pub fn only_users(mut self, keep: impl Fn(u32) -> bool) -> Self {
        self.0.retain(|who, _| match who {
            Who::User(uid) => keep(*uid),
            _ => true,
        });
        self
    }

    /// The list as it is on the object, with the one it hands down (none if no directory).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn read(handle: &Handle) -> Result<(Self, Self), AclError> {
        let access = Self::from(&PosixACL::read_acl(handle.proc_path())?);
        let default = match handle.kind() {
            Kind::Dir => Self::from(&PosixACL::read_default_acl(handle.proc_path())?),
            _ => Self::NONE,
        };
        Ok((access, default))
    }

    /// Makes this the access list of the object, with these set-user-id, set-group-id and sticky
    /// bits.
    ///
    /// # Errors
    /// When the file system has no ACLs, or the system refuses.
    pub fn write(&self, handle: &Handle, special: u32) -> Result<(), AclError> {
        if self.0.contains_key(&Who::Mask) {
            return Ok(self.to_posix().write_acl(handle.proc_path())?);
        }
        // The library adds a mask to every list it writes. In this order nobody has more than the
        // former or the new list gives: with a list in place the mode's group bits are its mask.
        let bits = |who| self.0.get(&who).copied().unwrap_or(0);
        let mode = bits(Who::Owner) << 6 | bits(Who::OwningGroup) << 3 | bits(Who::Other);
        fs::chmod(handle.proc_path(), Mode::from_raw_mode(special | mode))
            .map_err(|error| AclError(error.into()))?;
        drop_list(handle, "system.posix_acl_access")
    }

    /// Makes this the list that the directory hands down; an empty one hands down nothing.
    ///
    /// # Errors
    /// As [`Acl::write`].
    pub fn write_default(&self, handle: &Handle) -> Result<(), AclError> {
        if self.0.is_empty() {
            return drop_list(handle, "system.posix_acl_default");
        }
        Ok(self.to_posix().write_default_acl(handle.proc_path())?)
    }

    fn to_posix(&self) -> PosixACL {
        let mut acl = PosixACL::empty();
        for (who, permissions) in &self.0 {
            let qualifier = match *who {
                Who::Owner => Qualifier::UserObj,
                Who::User(uid) => Qualifier::User(uid),
                Who::OwningGroup => Qualifier::GroupObj,
                Who::Group(gid) => Qualifier::Group(gid),
                // The library computes the same mask as `with`.
                Who::Mask | Who::Unknown => continue,
                Who::Other => Qualifier::Other,
            };
            acl.set(qualifier, *permissions);
        }
        acl
    }
}

/// Removes a list; the library cannot.
fn drop_list(handle: &Handle, name: &str) -> Result<(), AclError> {
    match fs::removexattr(handle.proc_path(), name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(AclError(error.into())),
    }
}

impl From<&PosixACL> for Acl {
    fn from(acl: &PosixACL) -> Self {
        let entry = |entry: posix_acl::ACLEntry| {
            let who = match entry.qual {
                Qualifier::UserObj => Who::Owner,
                Qualifier::User(uid) => Who::User(uid),
                Qualifier::GroupObj => Who::OwningGroup,
                Qualifier::Group(gid) => Who::Group(gid),
                Qualifier::Mask => Who::Mask,
                Qualifier::Other => Who::Other,
                // The kernel has no entry of another kind; if it had, none of our lists has it.
                Qualifier::Undefined => Who::Unknown,
            };
            (who, entry.perm)
        };
        Self(acl.entries().into_iter().map(entry).collect())
    }
}

impl fmt::Display for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (n, (who, permissions)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match who {
                Who::Owner => write!(f, "{comma}u::")?,
                Who::User(uid) => write!(f, "{comma}u:{uid}:")?,
                Who::OwningGroup => write!(f, "{comma}g::")?,
                Who::Group(gid) => write!(f, "{comma}g:{gid}:")?,
                Who::Mask => write!(f, "{comma}m::")?,
                Who::Other => write!(f, "{comma}o::")?,
                Who::Unknown => write!(f, "{comma}?:")?,
            }
            let letter = |bit, letter| if permissions & bit == 0 { '-' } else { letter };
            write!(f, "{}{}{}", letter(R, 'r'), letter(W, 'w'), letter(X, 'x'))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_lets_every_entry_hold() {
        let acl = Acl::of_mode(0o700).with(Who::Group(7), R | X).with(Who::User(9), R | W | X);
        assert_eq!(acl.to_string(), "u::rwx,u:9:rwx,g::---,g:7:r-x,m::rwx,o::---");
        assert_eq!(
            Acl::from(&{
                let mut posix = acl.to_posix();
                posix.fix_mask();
                posix
            }),
            acl
        );
        assert_eq!(Acl::of_mode(0o4711).to_string(), "u::rwx,g::--x,o::--x");
        assert_eq!(Acl::NONE.to_string(), "none");
    }
}
