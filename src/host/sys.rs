//! System calls that no library wraps: the one file of flock with `unsafe` in it.
#![allow(unsafe_code, reason = "no library we use has a safe form of these calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::libc;
use serde::{Deserialize, Serialize};
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

/// What quotactl(2) is asked, of a file system and its users: linux/quota.h and linux/dqblk_xfs.h.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Quotactl {
    /// `Q_GETQUOTA`
    Get = 0x80_0007,
    /// `Q_SETQUOTA`
    Set = 0x80_0008,
    /// `Q_XGETQSTAT`, which ext4 and the like answer too.
    State = 0x5805,
}

/// `struct if_dqblk`: space in KiB, but for what is in use.
#[repr(C)]
#[derive(Default)]
struct Entry {
    space_hard: u64,
    space_soft: u64,
    space_used: u64,
    files_hard: u64,
    files_soft: u64,
    files_used: u64,
    space_time: u64,
    files_time: u64,
    valid: u32,
}

/// `QIF_BLIMITS` and `QIF_ILIMITS`.
const LIMITS: u32 = 1 | 4;

/// `struct fs_quota_stat`, which is shorter than this.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    flags: u16,
    rest: [u64; 12],
}

/// Whether a file system counts what each user has on it, and whether it holds them to limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// It counts.
    pub counted: bool,
    /// It refuses what is above a limit.
    pub enforced: bool,
}

/// The limits of a user on a file system; 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// KiB.
    pub space: u64,
    /// Files and directories.
    pub files: u64,
}

/// How the file system of an open object stands. Everybody may ask.
///
/// # Errors
/// `ENOSYS` where there are no quotas, or the kernel is older than 5.14.
pub fn quota_state(fs: impl AsFd) -> io::Result<Quotas> {
    let mut state = State::default();
    quotactl(fs, Quotactl::State, 0, &mut state)?;
    // FS_QUOTA_UDQ_ACCT and FS_QUOTA_UDQ_ENFD.
    Ok(Quotas { counted: state.flags & 1 != 0, enforced: state.flags & 2 != 0 })
}

/// The limits of a user on the file system of an open object.
///
/// # Errors
/// Without the right to ask, and where users are not counted.
pub fn quota(fs: impl AsFd, uid: u32) -> io::Result<Quota> {
    let mut entry = Entry::default();
    quotactl(fs, Quotactl::Get, uid, &mut entry)?;
    Ok(Quota { space: entry.space_hard, files: entry.files_hard })
}

/// Sets the limits of a user on the file system of an open object; those that only warn are gone.
///
/// # Errors
/// Without the right to do so, and where users are not counted.
pub fn set_quota(fs: impl AsFd, uid: u32, quota: Quota) -> io::Result<()> {
    let Quota { space, files } = quota;
    let mut entry =
        Entry { space_hard: space, files_hard: files, valid: LIMITS, ..Entry::default() };
    quotactl(fs, Quotactl::Set, uid, &mut entry)
}

/// One call of quotactl_fd(2) about users (`USRQUOTA` is 0).
fn quotactl<T>(fs: impl AsFd, command: Quotactl, uid: u32, data: &mut T) -> io::Result<()> {
    let (fd, command) = (fs.as_fd().as_raw_fd(), (command as u32) << 8);
    // SAFETY: the kernel reads or writes one `if_dqblk` or `fs_quota_stat` at `data`, a live,
    // exclusive reference to a `#[repr(C)]` struct of integers that is at least as large; every bit
    // pattern is valid for it.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, uid, std::ptr::from_mut(data)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A system call that an agent has no business with. Each is made so that it changes nothing
/// outside of the calling process, whoever makes it: what it could spoil is given as null, as a
/// descriptor that is not open, or as a value that the kernel refuses after it has looked at the
/// caller's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// unshare(CLONE_NEWUSER)
    UserNamespace,
    /// unshare(CLONE_NEWNS)
    MountNamespace,
    /// unshare(CLONE_NEWNET)
    NetNamespace,
    /// unshare(CLONE_NEWUTS)
    UtsNamespace,
    /// unshare(CLONE_NEWIPC)
    IpcNamespace,
    /// unshare(CLONE_NEWCGROUP)
    CgroupNamespace,
    /// setns(-1, 0)
    Setns,
    /// fsopen("tmpfs"): the first step of a mount.
    Mount,
    /// bpf(BPF_MAP_CREATE)
    Bpf,
    /// perf_event_open(2) on itself
    Perf,
    /// io_uring_setup(2)
    IoUring,
    /// add_key(2) to the keyring of the process
    AddKey,
    /// keyctl(KEYCTL_GET_KEYRING_ID)
    Keyctl,
    /// userfaultfd(2), user mode only
    Userfaultfd,
    /// init_module(2) of nothing
    InitModule,
    /// kexec_load(2) with flags that do not exist
    Kexec,
    /// reboot(2) without its magic numbers
    Reboot,
    /// swapoff(NULL)
    Swapoff,
    /// clock_settime(2) to a time that does not exist
    SetClock,
    /// sethostname(2) to a name of negative length
    SetHostname,
    /// syslog(SYSLOG_ACTION_SIZE_BUFFER)
    KernelLog,
    /// personality(ADDR_NO_RANDOMIZE)
    Personality,
    /// sched_setscheduler(SCHED_FIFO)
    Realtime,
    /// mmap(2), writable and executable
    WritableCode,
    /// open_by_handle_at(-1)
    OpenByHandle,
    /// fanotify_init(2)
    Fanotify,
}

/// Makes the call. What it gives (a descriptor, a mapping) stays with the calling process, which
/// should end soon.
///
/// # Errors
/// What the kernel says.
pub fn attempt(call: Call) -> io::Result<libc::c_long> {
    const NONE: usize = usize::MAX; // -1 as an int
    let unshare = |flag: libc::c_int| (libc::SYS_unshare, [flag as usize, 0, 0, 0, 0]);
    // linux/bpf.h: an array of one element; linux/perf_event.h: software clock, user side only.
    let mut map: [u32; 12] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut event: [u64; 14] = [1 | 112 << 32, 0, 0, 0, 0, 0b110_0000, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut ring = [0u64; 15];
    let no_time: [i64; 2] = [0, -1];
    let priority: [libc::c_int; 1] = [1];
    let (map, event, ring) =
        (map.as_mut_ptr() as usize, event.as_mut_ptr() as usize, ring.as_mut_ptr() as usize);
    let text = |text: &'static std::ffi::CStr| text.as_ptr() as usize;
    let writable_code = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let (number, a) = match call {
        Call::UserNamespace => unshare(libc::CLONE_NEWUSER),
        Call::MountNamespace => unshare(libc::CLONE_NEWNS),
        Call::NetNamespace => unshare(libc::CLONE_NEWNET),
        Call::UtsNamespace => unshare(libc::CLONE_NEWUTS),
        Call::IpcNamespace => unshare(libc::CLONE_NEWIPC),
        Call::CgroupNamespace => unshare(libc::CLONE_NEWCGROUP),
        Call::Setns => (libc::SYS_setns, [NONE, 0, 0, 0, 0]),
        Call::Mount => (libc::SYS_fsopen, [text(c"tmpfs"), 1, 0, 0, 0]),
        Call::Bpf => (libc::SYS_bpf, [0, map, 48, 0, 0]),
        Call::Perf => (libc::SYS_perf_event_open, [event, 0, NONE, NONE, 0]),
        Call::IoUring => (libc::SYS_io_uring_setup, [1, ring, 0, 0, 0]),
        Call::AddKey => {
            (libc::SYS_add_key, [text(c"user"), text(c"flock-probe"), text(c"x"), 1, NONE - 1])
        }
        Call::Keyctl => (libc::SYS_keyctl, [0, NONE - 2, 0, 0, 0]),
        Call::Userfaultfd => (libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
        Call::InitModule => (libc::SYS_init_module, [0, 0, text(c""), 0, 0]),
        Call::Kexec => (libc::SYS_kexec_load, [0, 0, 0, 0xfff0, 0]),
        Call::Reboot => (libc::SYS_reboot, [0, 0, 0, 0, 0]),
        Call::Swapoff => (libc::SYS_swapoff, [0, 0, 0, 0, 0]),
        Call::SetClock => (libc::SYS_clock_settime, [0, no_time.as_ptr() as usize, 0, 0, 0]),
        Call::SetHostname => (libc::SYS_sethostname, [0, NONE, 0, 0, 0]),
        Call::KernelLog => (libc::SYS_syslog, [10, 0, 0, 0, 0]),
        Call::Personality => (libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0]),
        Call::Realtime => (libc::SYS_sched_setscheduler, [0, 1, priority.as_ptr() as usize, 0, 0]),
        Call::WritableCode => {
            (libc::SYS_mmap, [0, 4096, writable_code as usize, private as usize, NONE])
        }
        Call::OpenByHandle => (libc::SYS_open_by_handle_at, [NONE, 0, 0, 0, 0]),
        Call::Fanotify => (libc::SYS_fanotify_init, [0, 0, 0, 0, 0]),
    };
    // SAFETY: every pointer among the arguments is null, which the kernel refuses, or points to one
    // of the arrays above or to a constant text; these live until the call has returned, are as
    // large as the kernel is told, and hold integers alone. The mapping is new memory that no
    // reference of this program points to.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], 0usize) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a system call with arguments that mean nothing: the first three as given, then -1. Nobody
/// should make one of those that end the process or change it, but for a process made for this.
///
/// # Errors
/// What the kernel, or a filter before it, says.
pub fn meaningless(number: libc::c_long, first: [usize; 3]) -> io::Result<libc::c_long> {
    let [a, b, c] = first;
    // SAFETY: no argument is the address of anything: the kernel refuses -1 as one, and the callers
    // give numbers. No call that maps, frees or protects memory takes -1 as a length.
    let result = unsafe { libc::syscall(number, a, b, c, usize::MAX, usize::MAX, usize::MAX) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A kind of System V object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysV {
    /// Shared memory.
    Memory,
    /// A set of semaphores.
    Semaphores,
    /// A message queue.
    Queue,
}

/// Looks a System V object up by its key; with `make`, makes one that every user may use.
///
/// # Errors
/// What the kernel says: there is none, it may not be used, or it is there already.
pub fn sysv(kind: SysV, key: i32, make: bool) -> io::Result<i32> {
    let flags = if make { libc::IPC_CREAT | libc::IPC_EXCL | 0o666 } else { 0o600 };
    // SAFETY: the three calls take integers alone.
    let id = unsafe {
        match kind {
            SysV::Memory => libc::shmget(key, if make { 4096 } else { 0 }, flags),
            SysV::Semaphores => libc::semget(key, libc::c_int::from(make), flags),
            SysV::Queue => libc::msgget(key, flags),
        }
    };
    if id < 0 { Err(io::Error::last_os_error()) } else { Ok(id) }
}

/// Removes a System V object.
///
/// # Errors
/// What the kernel says.
pub fn sysv_remove(kind: SysV, id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID does not look at the buffer, which is null, nor at the number.
    let result = unsafe {
        match kind {
            SysV::Memory => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            SysV::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            SysV::Queue => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
