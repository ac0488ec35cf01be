//! Limits of the process: open files (RLIMIT_NOFILE) and locked memory (RLIMIT_MEMLOCK). Both are
//! raised to what the process may have without asking (setrlimit(2): from the soft to the hard
//! limit), and held against what the ports need.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::skb::FRAME_SIZE;

/// Descriptors of a daemon without ports: netlink sockets, maps and programs that all ports share,
/// the TAP device, the control socket; and those that loading a program takes for a moment.
const DESCRIPTORS_BASE: u64 = 48;
/// Of one port beside its sockets: its program's link and maps.
const DESCRIPTORS_PER_PORT: u64 = 8;
/// Of one worker beside its sockets.
const DESCRIPTORS_PER_WORKER: u64 = 2;
/// Clients that are served at once, and what goes on with them.
const DESCRIPTORS_OF_CLIENTS: u64 = 32;

/// Kept from clients, for netlink sockets and the like that are opened for a moment.
const DESCRIPTORS_KEPT: u64 = 12;

/// A limit, in the unit of its kind; `u64::MAX`: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// What the process may raise it to.
    pub hard: u64,
}

fn limit(resource: Resource) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    Some(Limit { soft, hard })
}

/// Octets of memory that may be locked; `None`: the kernel does not say.
pub fn memlock() -> Option<Limit> {
    limit(Resource::RLIMIT_MEMLOCK)
}

/// Files that may be open; `None`: the kernel does not say.
pub fn nofile() -> Option<Limit> {
    limit(Resource::RLIMIT_NOFILE)
}

/// Raises both to the hard limit. Where that is refused, the limit stays, and what does not fit is
/// told when it is tried.
pub fn raise() {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Some(Limit { soft, hard }) = limit(resource)
            && soft < hard
        {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

/// Octets of packet memory that the sockets of so many ports lock at least: each socket accounts for
/// its worker's whole memory, which has a frame for every descriptor of every port.
pub fn locked_least(ports: u64, rx_ring: u32, tx_ring: u32) -> u64 {
    let descriptors = u64::from(rx_ring) + u64::from(tx_ring);
    ports.saturating_mul(ports).saturating_mul(descriptors * FRAME_SIZE as u64)
}

/// Descriptors that `ports` with so many sockets together, and `workers`, need at most.
pub fn descriptors_needed(ports: u64, sockets: u64, workers: u64) -> u64 {
    DESCRIPTORS_BASE
        + DESCRIPTORS_OF_CLIENTS
        + ports * DESCRIPTORS_PER_PORT
        + workers * DESCRIPTORS_PER_WORKER
        + sockets
}

/// Says what is wrong with the limit on open files, and what to do; `None`: it suffices.
pub fn too_few_descriptors(needed: u64) -> Option<String> {
    tell_too_few(nofile()?.soft, needed)
}

fn tell_too_few(allowed: u64, needed: u64) -> Option<String> {
    (allowed < needed).then(|| {
        format!(
            "{allowed} files may be open, and the ports and their queues may need {needed}; raise \
             the limit (ulimit -n {needed}, LimitNOFILE={needed})"
        )
    })
}

/// Whether no more descriptors are free than are kept from clients.
pub fn are_descriptors_scarce() -> bool {
    is_out_of_descriptors(DESCRIPTORS_KEPT)
}

/// Whether the process has so many files open that another `wanted` would be beyond its limit. True
/// also when that cannot be found out for want of a descriptor.
pub fn is_out_of_descriptors(wanted: u64) -> bool {
    let Some(Limit { soft, .. }) = nofile() else { return false };
    match fs::read_dir("/proc/self/fd") {
        // One of them is the directory's.
        Ok(open) => (open.count() as u64).saturating_sub(1).saturating_add(wanted) > soft,
        Err(error) => matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_to_what_is_allowed() {
        raise();
        for limit in [nofile(), memlock()] {
            let limit = limit.expect("is told");
            assert_eq!(limit.soft, limit.hard);
        }
    }

    #[test]
    fn what_ports_need_is_held_against_the_limit() {
        let needed = descriptors_needed(2, 8, 2);
        assert_eq!(needed, 48 + 32 + 2 * 8 + 2 * 2 + 8);
        assert_eq!(tell_too_few(needed, needed), None);
        let text = tell_too_few(needed - 1, needed).expect("is too few");
        assert!(text.contains("ulimit -n 108") && text.contains("LimitNOFILE=108"), "{text}");
    }

    #[test]
    fn open_files_are_counted() {
        assert!(!is_out_of_descriptors(0));
        let Limit { soft, .. } = nofile().expect("is told");
        assert!(is_out_of_descriptors(soft));
        assert!(!are_descriptors_scarce());
    }
}
