//! Privileges and limits of `run` when it is started in the same way as the doctor: capabilities, limits,
//! its directory.

use std::path::Path;
use std::thread;

use super::Finding;
use crate::control::config::RING_DEFAULT;
use crate::control::process::runtime_dir::{self, RuntimeDirError};
use crate::control::process::{limits, privilege, time_namespace};

/// For `ports` ports with `queues` RX queues in total, and a control socket.
pub fn examine(ports: u64, queues: u64, control: &Path) -> Vec<Finding> {
    let mut findings = vec![capabilities(), memlock(ports), descriptors(ports, queues), clock()];
    findings.extend(directory(control));
    findings
}

fn capabilities() -> Finding {
    let missing: Vec<String> = privilege::missing(0).iter().map(ToString::to_string).collect();
    if missing.is_empty() {
        let all: Vec<String> =
            privilege::NEEDED.iter().map(|need| need.capability.to_string()).collect();
        return Finding::ok("capabilities", format!("all present: {}", all.join(", ")));
    }
    Finding::fail("capabilities", format!("missing: {}", missing.join(", ")), privilege::ADVICE)
}

/// Heartbeats are compared with the kernel's clock.
fn clock() -> Finding {
    match time_namespace::require_kernel_clock() {
        Ok(()) => Finding::ok("clock", "the monotonic clock is the kernel's"),
        Err(error) => {
            Finding::fail("clock", error.to_string(), "nsenter --target 1 --time ferroute run ...")
        }
    }
}

/// UMEM is locked memory; CAP_IPC_LOCK exempts it from the limit (`xdp_umem_account_pages`).
fn memlock(ports: u64) -> Finding {
    if privilege::may_lock_memory() {
        return Finding::ok("memlock", "no limit for this user (CAP_IPC_LOCK)");
    }
    let least = limits::locked_least(ports, RING_DEFAULT, RING_DEFAULT);
    match limits::memlock() {
        // The hard limit: `run` raises the soft limit to it.
        Some(limit) if limit.hard < least => Finding::fail(
            "memlock",
            format!(
                "{} octets of memory may be locked, the packet memory of {ports} port(s) with rings \
                 of {RING_DEFAULT} takes {least} and more",
                limit.hard
            ),
            "CAP_IPC_LOCK, ulimit -l unlimited, LimitMEMLOCK=infinity in the service, or smaller rings",
        ),
        Some(_) => Finding::ok("memlock", "enough memory may be locked"),
        None => Finding::warn("memlock", "the limit cannot be read", "see ulimit -l"),
    }
}

fn descriptors(ports: u64, queues: u64) -> Finding {
    let workers = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let needed = limits::descriptors_needed(ports, queues, workers.min(queues));
    match limits::nofile() {
        Some(limit) if limit.hard < needed => Finding::warn(
            "descriptors",
            format!("{} files may be open, {needed} may be needed", limit.hard),
            format!("ulimit -n {needed}, or LimitNOFILE={needed} in the service"),
        ),
        Some(_) => Finding::ok("descriptors", "enough files may be open"),
        None => Finding::warn("descriptors", "the limit cannot be read", "see ulimit -n"),
    }
}

/// The runtime directory, if the control socket is in it and it exists.
fn directory(control: &Path) -> Option<Finding> {
    let directory =
        control.parent().filter(|_| control.file_name() == Some("control.sock".as_ref()))?;
    directory.symlink_metadata().ok()?;
    Some(match runtime_dir::check(directory) {
        Ok(()) => Finding::ok("directory", format!("{} is this user's alone", directory.display())),
        // The daemon may run as that other user.
        Err(error @ RuntimeDirError::Owner { .. }) => {
            Finding::warn("directory", error.to_string(), "nothing, if that user runs the daemon")
        }
        Err(error) => Finding::fail("directory", error.to_string(), "run does not start with it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Level;

    #[test]
    fn missing_privileges_are_reported_with_a_remedy() {
        let found = thread::spawn(|| {
            privilege::drop_all();
            (capabilities(), memlock(1 << 20))
        });
        let (capabilities, memlock) = found.join().expect("ends");
        assert_eq!(capabilities.level, Level::Fail);
        for need in privilege::NEEDED {
            assert!(capabilities.message.contains(&need.to_string()), "{}", capabilities.message);
        }
        // Unless the limit is infinite.
        if memlock.level == Level::Fail {
            assert!(memlock.advice.expect("is given").contains("CAP_IPC_LOCK"));
        }
        let descriptors = descriptors(1 << 40, 0);
        assert_eq!(descriptors.level, Level::Warn);
    }

    #[test]
    fn a_directory_that_run_would_refuse_is_found() {
        let top = tempfile::tempdir().expect("a directory");
        let (real, link) = (top.path().join("real"), top.path().join("link"));
        assert!(directory(&real.join("control.sock")).is_none(), "run will make it");
        runtime_dir::prepare(&real).expect("is made");
        let level = |path: &Path| directory(&path.join("control.sock")).expect("is there").level;
        assert_eq!(level(&real), Level::Ok);
        std::os::unix::fs::symlink(&real, &link).expect("links");
        assert_eq!(level(&link), Level::Fail);
    }
}
