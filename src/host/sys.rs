//! System calls that no library wraps: the one file of flock with `unsafe` in it.
#![allow(unsafe_code, reason = "no library we use has a safe form of these calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::libc;
use tokio::io::unix::AsyncFd;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the processes of the control group.
    Ingress,
    /// From them.
    Egress,
}

/// `BPF_PROG_QUERY` of `enum bpf_cmd` in linux/bpf.h.
const PROG_QUERY: libc::c_int = 16;
/// `BPF_CGROUP_INET_INGRESS` and `_EGRESS` of `enum bpf_attach_type`.
const CGROUP_INET_INGRESS: u32 = 0;
const CGROUP_INET_EGRESS: u32 = 1;

/// The `query` member of `union bpf_attr`, as far as every kernel since 4.16 has it.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// How many programs filter the packets of this control group, as attached to itself (what its
/// parents have attached is not counted). `IPAddressDeny=` is one of them, or it does nothing.
///
/// # Errors
/// Without the right to ask, on a descriptor that is no cgroup v2 directory, and on a kernel
/// without cgroup BPF (`EINVAL`).
pub fn cgroup_bpf_programs(cgroup: impl AsFd, direction: Direction) -> io::Result<u32> {
    let attach_type = match direction {
        Direction::Ingress => CGROUP_INET_INGRESS,
        Direction::Egress => CGROUP_INET_EGRESS,
    };
    let fd = cgroup.as_fd().as_raw_fd();
    let target_fd = u32::try_from(fd).map_err(io::Error::other)?;
    let mut query = Query { target_fd, attach_type, ..Query::default() };
    bpf(PROG_QUERY, &mut query)?;
    Ok(query.prog_cnt)
}

/// Lets the tokio runtime wait for a descriptor that no type of tokio's own stands for.
///
/// # Errors
/// When the descriptor cannot be polled. Panics outside of a runtime.
pub fn pollable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` has one and the same descriptor for its whole life, keeps it open that
    // long, and is moved into the `AsyncFd` here, which drops it after it has deregistered it.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(io::Error::from)
}

/// One call of bpf(2) whose attributes carry no pointer, or pointers that outlive the call.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes at `attributes`, which is
    // a live, exclusive reference to a `#[repr(C)]` struct of integers, for which every bit
    // pattern is valid. `Query` has no pointer in it: `prog_ids` is null and `prog_cnt` 0, so that
    // the kernel only counts.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;
    use std::fs::{self, File};
    use std::os::fd::FromRawFd as _;

    /// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is needed.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }

    /// `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }

    /// "Return 1": lets every packet pass.
    fn program() -> OwnedFd {
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let mut load = Load {
            prog_type: 8, // BPF_PROG_TYPE_CGROUP_SKB
            insn_cnt: 2,
            insns: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..Load::default()
        };
        let fd = bpf(5, &mut load).unwrap();
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
    }

    fn unified() -> Option<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        line.split(' ').nth(1).map(str::to_owned)
    }

    #[test]
    fn counts_what_is_attached_and_nothing_else() {
        if !testing::needs_root("cgroup_bpf") {
            return;
        }
        let root = unified().expect("a cgroup v2 hierarchy");
        let path = format!("{root}/flock-test-{}", std::process::id());
        fs::create_dir(&path).unwrap();
        let group = File::open(&path).unwrap();
        let count = |direction| cgroup_bpf_programs(&group, direction);
        let before = count(Direction::Egress).unwrap();
        let program = program();
        let mut attach = Attach {
            target_fd: u32::try_from(group.as_raw_fd()).unwrap(),
            attach_bpf_fd: u32::try_from(program.as_raw_fd()).unwrap(),
            attach_type: CGROUP_INET_EGRESS,
            attach_flags: 2, // BPF_F_ALLOW_MULTI
        };
        let attached = bpf(8, &mut attach);
        let after = (count(Direction::Egress), count(Direction::Ingress));
        fs::remove_dir(&path).unwrap();
        attached.unwrap();
        assert_eq!((before, after.0.unwrap(), after.1.unwrap()), (0, 1, 0));
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_an_error() {
        if testing::needs_root("cgroup_bpf_error") {
            let dir = File::open("/proc").unwrap();
            assert!(cgroup_bpf_programs(&dir, Direction::Egress).is_err());
        }
    }
}
