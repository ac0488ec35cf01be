//! Limits of the process: open files (RLIMIT_NOFILE) and locked memory (RLIMIT_MEMLOCK). Both are
//! raised to what the process may have without asking (setrlimit(2): from the soft to the hard
//! limit), and held against what the ports need.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::skb::FRAME_SIZE;

/// Descriptors of a daemon without ports: netlink sockets, maps and programs that all ports share,
/// the TAP device, the control socket, 31 in all; and those that are open for a moment: of loading a
/// program, and those of [`DESCRIPTORS_KEPT`].
const DESCRIPTORS_BASE: u64 = 68;
/// Of one port beside its sockets: its program's link and 4 maps, its membership; and of opening it.
const DESCRIPTORS_PER_PORT: u64 = 8;
/// Of one worker beside its sockets.
const DESCRIPTORS_PER_WORKER: u64 = 2;
/// Threads that serve clients, at most.
pub const CLIENT_THREADS_MAX: usize = 80;
/// Beside its connection a client's thread opens files of two questions for a moment, such as the
/// netlink sockets of `link show -d`.
const DESCRIPTORS_OF_ANSWER: u64 = 2;
const DESCRIPTORS_OF_CLIENTS: u64 = CLIENT_THREADS_MAX as u64 * (1 + DESCRIPTORS_OF_ANSWER);

/// Kept from clients and caches, for reading the firewall, settings and the like, which open netlink
/// sockets, iterators and files for a moment.
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

/// Whether no more descriptors are free than are kept from clients, of whom `clients` are served.
pub fn are_descriptors_scarce(clients: usize) -> bool {
    is_out_of_descriptors(DESCRIPTORS_KEPT + clients as u64 * DESCRIPTORS_OF_ANSWER)
}

/// Descriptors that may be put to use where they are not needed, of which `used` are: what the daemon
/// and all clients may still want stays free.
pub fn descriptors_to_spare(used: usize) -> usize {
    let Some(Limit { soft, .. }) = nofile() else { return 0 };
    let Some(open) = open_descriptors() else { return 0 };
    let needed = (open + DESCRIPTORS_BASE + DESCRIPTORS_OF_CLIENTS).saturating_sub(used as u64);
    usize::try_from(soft.saturating_sub(needed)).unwrap_or(usize::MAX)
}

/// `None`: it cannot be found out, for want of a descriptor.
fn open_descriptors() -> Option<u64> {
    // One of them is the directory's.
    fs::read_dir("/proc/self/fd").ok().map(|open| (open.count() as u64).saturating_sub(1))
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
        assert_eq!(needed, 68 + 240 + 2 * 8 + 2 * 2 + 8);
        assert_eq!(tell_too_few(needed, needed), None);
        let text = tell_too_few(needed - 1, needed).expect("is too few");
        assert!(text.contains("ulimit -n 336") && text.contains("LimitNOFILE=336"), "{text}");
    }

    #[test]
    fn open_files_are_counted() {
        assert!(!is_out_of_descriptors(0));
        let Limit { soft, .. } = nofile().expect("is told");
        assert!(is_out_of_descriptors(soft));
        assert!(!are_descriptors_scarce(0));
        assert!(are_descriptors_scarce(soft as usize));
        let spare = descriptors_to_spare(0) as u64;
        assert!(spare < soft - DESCRIPTORS_BASE - DESCRIPTORS_OF_CLIENTS, "{spare} of {soft}");
    }
}
