//! The one file where `unsafe` is allowed.
#![allow(unsafe_code, reason = "system calls that no crate wraps")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

/// Which packets a BPF program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Coming in.
    Ingress,
    /// Going out.
    Egress,
}

/// `struct` of `BPF_PROG_QUERY` in `union bpf_attr`, see linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    rest: [u32; 8],
}

/// How many BPF programs filter the packets of a cgroup, those of its parents included.
///
/// # Errors
/// What bpf(2) says: without the right to ask, or without cgroup BPF in the kernel.
pub fn cgroup_bpf_programs(cgroup: &File, direction: Direction) -> io::Result<u32> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    let mut query = ProgQuery {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: match direction {
            Direction::Ingress => 0,
            Direction::Egress => 1,
        },
        query_flags: BPF_F_QUERY_EFFECTIVE,
        ..ProgQuery::default()
    };
    // SAFETY: `query` has the layout of the kernel's struct, is valid for its whole length for the
    // duration of the call, and names no buffer (`prog_ids` is null, `prog_cnt` 0).
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            std::ptr::from_mut(&mut query),
            size_of::<ProgQuery>(),
        )
    };
    if status == 0 { Ok(query.prog_cnt) } else { Err(io::Error::last_os_error()) }
}
