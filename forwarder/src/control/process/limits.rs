//! Limits of the process: open files (RLIMIT_NOFILE) and locked memory (RLIMIT_MEMLOCK). Both are
//! raised from the soft to the hard limit, which needs no privilege (setrlimit(2)), and compared
//! with what the ports need.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::skb::FRAME_SIZE;

/// Descriptors of a daemon without ports: netlink sockets, maps and programs that all ports share,
/// the TAP device, the control socket, 31 in total; and temporary ones: for loading a program, and
/// [`DESCRIPTORS_KEPT`].
const DESCRIPTORS_BASE: u64 = 68;
/// Descriptors of a port besides its sockets: its program's link and 4 maps, its membership; and
/// temporary ones for opening it.
const DESCRIPTORS_PER_PORT: u64 = 8;
/// Descriptors of a worker besides its sockets.
const DESCRIPTORS_PER_WORKER: u64 = 2;
/// Maximum number of threads that serve clients.
pub const CLIENT_THREADS_MAX: usize = 80;
/// Besides its connection, a client's thread temporarily opens files for two requests, such as the
/// netlink sockets of `link show -d`.
const DESCRIPTORS_OF_ANSWER: u64 = 2;
const DESCRIPTORS_OF_CLIENTS: u64 = CLIENT_THREADS_MAX as u64 * (1 + DESCRIPTORS_OF_ANSWER);

/// Reserved from clients and caches, for reading the firewall, settings and the like, which
/// temporarily opens netlink sockets, iterators and files.
const DESCRIPTORS_KEPT: u64 = 12;

/// A limit, in the unit of its kind; `u64::MAX`: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit in effect.
    pub soft: u64,
    /// The value to which the process may raise it.
    pub hard: u64,
}

fn limit(resource: Resource) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    Some(Limit { soft, hard })
}

/// Octets of memory that may be locked; `None`: it cannot be read.
pub fn memlock() -> Option<Limit> {
    limit(Resource::RLIMIT_MEMLOCK)
}

/// Number of files that may be open; `None`: it cannot be read.
pub fn nofile() -> Option<Limit> {
    limit(Resource::RLIMIT_NOFILE)
}

/// Raises both to the hard limit. If that is refused, the limit stays, and operations that exceed
/// it report an error.
pub fn raise() {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Some(Limit { soft, hard }) = limit(resource)
            && soft < hard
        {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

/// Minimum octets of packet memory that the sockets of this number of ports lock: each socket
/// accounts for its worker's whole memory, which has a frame for every descriptor of every port.
pub fn locked_least(ports: u64, rx_ring: u32, tx_ring: u32) -> u64 {
    let descriptors = u64::from(rx_ring) + u64::from(tx_ring);
    ports.saturating_mul(ports).saturating_mul(descriptors * FRAME_SIZE as u64)
}

/// Maximum descriptors needed by `ports` with `sockets` in total, and `workers`.
pub fn descriptors_needed(ports: u64, sockets: u64, workers: u64) -> u64 {
    DESCRIPTORS_BASE
        + DESCRIPTORS_OF_CLIENTS
        + ports * DESCRIPTORS_PER_PORT
        + workers * DESCRIPTORS_PER_WORKER
        + sockets
}

/// A message if the limit on open files is too low, with advice; `None` if it suffices.
pub fn too_few_descriptors(needed: u64) -> Option<String> {
    too_few_message(nofile()?.soft, needed)
}

fn too_few_message(allowed: u64, needed: u64) -> Option<String> {
    (allowed < needed).then(|| {
        format!(
            "{allowed} files may be open, and the ports and their queues may need {needed}; raise \
             the limit (ulimit -n {needed}, LimitNOFILE={needed})"
        )
    })
}

/// Whether no more descriptors are free than are reserved from clients, while `clients` are served.
pub fn are_descriptors_scarce(clients: usize) -> bool {
    is_out_of_descriptors(DESCRIPTORS_KEPT + clients as u64 * DESCRIPTORS_OF_ANSWER)
}

/// Descriptors available for optional use, including the `used` ones: what the daemon and all
/// clients may need stays free.
pub fn descriptors_to_spare(used: usize) -> usize {
    let Some(Limit { soft, .. }) = nofile() else { return 0 };
    let Some(open) = open_descriptors() else { return 0 };
    let needed = (open + DESCRIPTORS_BASE + DESCRIPTORS_OF_CLIENTS).saturating_sub(used as u64);
    usize::try_from(soft.saturating_sub(needed)).unwrap_or(usize::MAX)
}

/// `None`: it cannot be read, for lack of a descriptor.
fn open_descriptors() -> Option<u64> {
    // One of them is the directory's.
    fs::read_dir("/proc/self/fd").ok().map(|open| (open.count() as u64).saturating_sub(1))
}

/// Whether `wanted` more descriptors would exceed the limit. True also if that cannot be determined
/// for lack of a descriptor.
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
    fn limits_are_raised_to_the_hard_limit() {
        raise();
        for limit in [nofile(), memlock()] {
            let limit = limit.expect("is readable");
            assert_eq!(limit.soft, limit.hard);
        }
    }

    #[test]
    fn the_needs_of_ports_are_compared_with_the_limit() {
        let needed = descriptors_needed(2, 8, 2);
        assert_eq!(needed, 68 + 240 + 2 * 8 + 2 * 2 + 8);
        assert_eq!(too_few_message(needed, needed), None);
        let text = too_few_message(needed - 1, needed).expect("is too few");
        assert!(text.contains("ulimit -n 336") && text.contains("LimitNOFILE=336"), "{text}");
    }

    #[test]
    fn open_files_are_counted() {
        assert!(!is_out_of_descriptors(0));
        let Limit { soft, .. } = nofile().expect("is readable");
        assert!(is_out_of_descriptors(soft));
        assert!(!are_descriptors_scarce(0));
        assert!(are_descriptors_scarce(soft as usize));
        let spare = descriptors_to_spare(0) as u64;
        assert!(spare < soft - DESCRIPTORS_BASE - DESCRIPTORS_OF_CLIENTS, "{spare} of {soft}");
    }
}
