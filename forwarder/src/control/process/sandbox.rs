//! What a running daemon may ask of the kernel: system calls by seccomp, writing to files by Landlock.
//!
//! Both are irrevocable. The system calls are some of those that the systemd unit permits (SystemCallFilter), not that of
//! executing programs; what is not permitted fails with EPERM. Landlock leaves files as they are, even to root, except where
//! the daemon has its own. Neither needs a privilege: a kernel without one of them is not an error, and is told.

use std::path::PathBuf;

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictSelfAttr, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// System calls that each daemon may use.
#[rustfmt::skip]
const PERMITTED: &[i64] = &[
    // Memory.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_membarrier, libc::SYS_memfd_create, libc::SYS_mlock, libc::SYS_mlock2,
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_munlock, libc::SYS_munmap,
    // Threads, and the end of the process.
    libc::SYS_capget, libc::SYS_capset, libc::SYS_clone, libc::SYS_clone3, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_get_robust_list, libc::SYS_getcpu, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_gettid, libc::SYS_prctl, libc::SYS_restart_syscall, libc::SYS_rseq,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_yield, libc::SYS_set_robust_list,
    libc::SYS_set_tid_address, libc::SYS_tgkill,
    // Users, limits, the machine.
    libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getgroups, libc::SYS_getrandom,
    libc::SYS_getresgid, libc::SYS_getresuid, libc::SYS_getrusage, libc::SYS_getuid, libc::SYS_prlimit64,
    libc::SYS_sysinfo, libc::SYS_uname,
    // Time.
    libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_signalfd4,
    // Files.
    libc::SYS_close, libc::SYS_close_range, libc::SYS_copy_file_range, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_fallocate, libc::SYS_fchmod, libc::SYS_fchmodat,
    libc::SYS_fcntl, libc::SYS_fdatasync, libc::SYS_flock, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync,
    libc::SYS_ftruncate, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_inotify_add_watch, libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch, libc::SYS_ioctl, libc::SYS_linkat, libc::SYS_lseek, libc::SYS_mkdirat,
    libc::SYS_newfstatat, libc::SYS_openat, libc::SYS_openat2, libc::SYS_pipe2, libc::SYS_pread64, libc::SYS_preadv,
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_read, libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_renameat,
    libc::SYS_renameat2, libc::SYS_sendfile, libc::SYS_statfs, libc::SYS_statx, libc::SYS_unlinkat,
    libc::SYS_utimensat, libc::SYS_write, libc::SYS_writev,
    // Waiting.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2,
    libc::SYS_ppoll, libc::SYS_pselect6,
    // Sockets, BPF.
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_bind, libc::SYS_bpf, libc::SYS_connect, libc::SYS_getpeername,
    libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_listen, libc::SYS_recvfrom, libc::SYS_recvmmsg,
    libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_setsockopt,
    libc::SYS_shutdown, libc::SYS_socket, libc::SYS_socketpair,
];

/// Older forms of them, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const PERMITTED_OLDER: &[i64] = &[
    libc::SYS_access, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_creat, libc::SYS_dup2, libc::SYS_epoll_create,
    libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_getdents, libc::SYS_getrlimit, libc::SYS_inotify_init,
    libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir, libc::SYS_open, libc::SYS_poll, libc::SYS_readlink,
    libc::SYS_rename, libc::SYS_select, libc::SYS_signalfd, libc::SYS_stat, libc::SYS_time, libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const PERMITTED_OLDER: &[i64] = &[];

/// What a daemon that keeps CAP_SYS_ADMIN needs besides: it mounts the sysfs of its network namespace, where it
/// changes interrupts.
const PERMITTED_TO_MOUNT: &[i64] =
    &[libc::SYS_mount, libc::SYS_setns, libc::SYS_umount2, libc::SYS_unshare];

/// Newest version of Landlock's interface that is used, where the kernel has it. Later ones also restrict connecting to
/// sockets with a path, as those of the journal and of the service manager are.
const LANDLOCK: ABI = ABI::V8;

/// Lets this process only use the system calls that a running daemon needs, in all threads. `mounts`: also those that
/// mount a file system. Others fail with EPERM.
///
/// PR_SET_NO_NEW_PRIVS must be set in this thread.
///
/// # Errors
/// When the kernel refuses, or has no seccomp.
pub fn filter_system_calls(mounts: bool) -> Result<()> {
    let more = if mounts { PERMITTED_TO_MOUNT } else { &[] };
    let permitted = [PERMITTED, PERMITTED_OLDER, more].concat();
    let filter = SeccompFilter::new(
        permitted.into_iter().map(|number| (number, Vec::new())).collect(),
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let program = BpfProgram::try_from(filter)?;
    seccompiler::apply_filter_all_threads(&program).context("seccomp")
}

/// Where files may be changed.
#[derive(Debug, Default)]
pub struct Writable {
    /// In these directories files may be made, written and removed.
    pub own: Vec<PathBuf>,
    /// In these only removed: those of sockets, which are served already.
    pub sockets: Vec<PathBuf>,
}

/// Lets this thread, and those that it starts from now on, change files in some directories only, and execute nothing. TAP
/// devices can still be created. TCP sockets can neither be bound nor connected, from Linux 6.7 on. From Linux 7.0 on, that
/// applies to threads that run already, too. Reading is not restricted, except by the permissions of files.
///
/// # Errors
/// When the kernel refuses, or has no Landlock.
pub fn restrict_files(writable: &Writable) -> Result<()> {
    restrict(writable, true)
}

fn restrict(writable: &Writable, all_threads: bool) -> Result<()> {
    let handled = AccessFs::from_write(LANDLOCK) | AccessFs::Execute;
    let own = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .create()?
        .all_threads(all_threads)?;
    let own = writable.own.iter().map(|directory| (directory, own));
    let sockets = writable.sockets.iter().map(|directory| (directory, AccessFs::RemoveFile.into()));
    for (directory, access) in own.chain(sockets) {
        let opened = PathFd::new(directory).with_context(|| directory.display().to_string())?;
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    for device in ["/dev/net/tun", "/dev/null"] {
        // Without it, opening it fails later, with advice.
        let Ok(opened) = PathFd::new(device) else { continue };
        let access = AccessFs::WriteFile | AccessFs::IoctlDev;
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            anyhow::bail!(
                "Landlock is not among the security modules that the kernel was started with (lsm=)"
            )
        }
        (RulesetStatus::NotEnforced, _) => anyhow::bail!("the kernel has no Landlock"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    #[test]
    fn system_calls_are_listed_once() {
        let mut all = [PERMITTED, PERMITTED_OLDER, PERMITTED_TO_MOUNT].concat();
        let listed = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), listed);
        assert!(!all.contains(&libc::SYS_execve) && !all.contains(&libc::SYS_ptrace));
    }

    #[test]
    fn files_are_changed_only_in_directories_that_are_named() {
        let [own, sockets, other] = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let file = |directory: &tempfile::TempDir| directory.path().join("file");
        let (mine, socket, outside) = (file(&own), file(&sockets), file(&other));
        for path in [&socket, &outside] {
            fs::write(path, "as it was").expect("writes");
        }
        let writable =
            Writable { own: vec![own.path().to_owned()], sockets: vec![sockets.path().to_owned()] };
        // In a thread of its own: the other ones of this process go on.
        let outside_of_it = outside.clone();
        let restricted = thread::spawn(move || {
            restrict(&writable, false)?;
            anyhow::Ok([
                fs::write(&mine, "x").is_ok(),
                fs::write(&mine, "y").is_ok(),
                fs::remove_file(&mine).is_ok(),
                fs::write(&socket, "changed").is_err(),
                fs::remove_file(&socket).is_ok(),
                fs::write(&outside_of_it, "changed").is_err(),
                fs::remove_file(&outside_of_it).is_err(),
                std::process::Command::new("true").status().is_err(),
            ])
        });
        match restricted.join().expect("ends") {
            Ok(results) => assert_eq!(results, [true; 8]),
            Err(error) => {
                let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
                assert!(!modules.contains("landlock"), "{error:#}");
            }
        }
        assert_eq!(fs::read(&outside).expect("reads"), b"as it was");
    }
}
