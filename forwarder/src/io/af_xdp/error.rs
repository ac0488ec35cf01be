//! Errors of opening a port, with advice on what to do.

use std::io;

use crate::skb::FRAME_SIZE;

/// The operation that the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::io) enum Step {
    Socket,
    Register,
    Rings,
    BusyPoll,
    Bind,
}

/// Why the ports of a worker could not be opened. The message contains advice.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// socket(2) returned EPERM.
    #[error(
        "no permission to open AF_XDP sockets: run as root, or with CAP_NET_RAW (sockets), \
         CAP_NET_ADMIN and CAP_BPF (the XDP program), and CAP_IPC_LOCK (packet memory)"
    )]
    NoPermission,
    /// The kernel has no AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets ({0}): it must be 5.4 or later with CONFIG_XDP_SOCKETS"
    )]
    NoAfXdp(io::Error),
    /// No descriptor is left: EMFILE of the process, ENFILE of the system.
    #[error(
        "no descriptor is left for an AF_XDP socket ({0}): raise the limit on open files (ulimit -n, \
         LimitNOFILE in the service)"
    )]
    NoDescriptors(io::Error),
    /// ENOBUFS of XDP_UMEM_REG: the user may not lock this much memory (`xdp_umem_account_pages`).
    #[error(
        "{octets} octets of packet memory may not be locked ({source}), which each socket accounts \
         for anew: raise the limit on locked memory (ulimit -l unlimited, LimitMEMLOCK=infinity), run \
         with CAP_IPC_LOCK, or use smaller rings"
    )]
    NotLockable {
        /// Octets that one socket registers.
        octets: u64,
        /// The kernel's error.
        source: io::Error,
    },
    /// No memory for packets.
    #[error(
        "no memory for {octets} octets of packets ({source}): use smaller rings, or raise the limit \
         of the address space (ulimit -v) or of the control group, if there is one"
    )]
    NoMemory {
        /// Requested octets.
        octets: u64,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refuses to register the packet memory for another reason.
    #[error("{octets} octets of packet memory could not be registered: {source}")]
    Register {
        /// Requested octets.
        octets: u64,
        /// The kernel's error.
        source: io::Error,
    },
    /// The rings could not be set up.
    #[error("{ifname}, queue {queue}: the socket's rings could not be set up: {source}")]
    Rings {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// There is no such interface (any more).
    #[error("there is no interface {ifname} with index {ifindex} in this network namespace")]
    NoInterface {
        /// Name of the interface.
        ifname: String,
        /// Its index.
        ifindex: u32,
    },
    /// bind(2) returned EINVAL.
    #[error("{ifname} {}", self.reason())]
    NoQueue {
        /// Name of the interface.
        ifname: String,
        /// The requested queue.
        queue: u32,
    },
    /// Another socket is bound to the queue.
    #[error(
        "queue {queue} of {ifname} is in use by another AF_XDP program (see `ss --xdp -p`), or by \
         a second instance of this one"
    )]
    Busy {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
    },
    /// Zero-copy was requested and is not supported.
    #[error(
        "zero-copy is not possible on queue {queue} of {ifname} (driver {driver}: {source}): use \
         mode auto or copy"
    )]
    NoZeroCopy {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// Name of its driver.
        driver: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// SO_PREFER_BUSY_POLL, SO_BUSY_POLL or SO_BUSY_POLL_BUDGET was refused.
    #[error(
        "{ifname}, queue {queue}: the kernel refuses busy polling through the socket \
         ({source}): that needs Linux 5.11 and CAP_NET_ADMIN; use --poll adaptive"
    )]
    BusyPoll {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another error of bind(2).
    #[error("{ifname}, queue {queue}: the AF_XDP socket could not be bound: {source}")]
    Bind {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// A ring size is not a power of two, or there are too many frames.
    #[error("{0}")]
    BadOptions(String),
    /// The pool has too few free frames to receive into.
    #[error(
        "{free} frames are free, {ifname} needs {wanted} for its fill ring; restart ferroute to \
         allocate memory for the current number of queues"
    )]
    NoFrames {
        /// Name of the interface.
        ifname: String,
        /// Free frames.
        free: usize,
        /// Required frames.
        wanted: usize,
    },
    /// The driver xsk-rs was chosen, and is not in this program.
    #[error(
        "this program was built without the driver xsk-rs: build it with `cargo build --release -p \
         forwarder --features xsk-rs`, or use --driver af_xdp"
    )]
    NoXskRs,
    /// The driver xsk-rs can bind no further socket: EBADF of bind(2) with XDP_SHARED_UMEM.
    #[error(
        "queue {queue} of {ifname} cannot be opened: the interface of the first AF_XDP socket, {first}, \
         was removed, and libxdp binds all further sockets through that one; start ferroute anew, or \
         use --driver af_xdp"
    )]
    FirstSocketLost {
        /// Name of the interface.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// Name that the first socket's interface had.
        first: String,
    },
    /// The port to be opened is open.
    #[error("port {0} is open already")]
    PortInUse(u16),
}

impl OpenError {
    /// The same as `Display`, without the leading interface name.
    pub fn reason(&self) -> String {
        match self {
            OpenError::NoQueue { ifname, queue } => format!(
                "does not support an AF_XDP socket on queue {queue}: it has fewer queues (see \
                 `ethtool -l {ifname}`), or its MTU does not fit frames of {FRAME_SIZE} octets"
            ),
            other => other.to_string(),
        }
    }

    /// Reads what the kernel said when a socket for a queue was opened.
    pub(in crate::io) fn from_os(
        step: Step,
        source: io::Error,
        config: &super::PortConfig,
        octets: u64,
    ) -> OpenError {
        let (ifname, queue) = (config.ifname.clone(), config.queue);
        let errno = source.raw_os_error().unwrap_or(0);
        match (step, errno) {
            (_, libc::EMFILE | libc::ENFILE) => OpenError::NoDescriptors(source),
            (Step::Socket, libc::EPERM | libc::EACCES) => OpenError::NoPermission,
            (Step::Socket, libc::EAFNOSUPPORT | libc::ESOCKTNOSUPPORT) => {
                OpenError::NoAfXdp(source)
            }
            (Step::BusyPoll, _) => OpenError::BusyPoll { ifname, queue, source },
            (Step::Register, libc::ENOBUFS) => OpenError::NotLockable { octets, source },
            (Step::Register | Step::Rings, libc::ENOMEM) => OpenError::NoMemory { octets, source },
            (Step::Register, _) => OpenError::Register { octets, source },
            (Step::Bind, libc::ENODEV) => {
                OpenError::NoInterface { ifname, ifindex: config.ifindex }
            }
            (Step::Bind, libc::EINVAL) => OpenError::NoQueue { ifname, queue },
            (Step::Bind, libc::EBUSY) => OpenError::Busy { ifname, queue },
            (Step::Bind, _) => OpenError::Bind { ifname, queue, source },
            (Step::Socket | Step::Rings, _) => OpenError::Rings { ifname, queue, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BindMode, PortConfig};
    use super::*;

    #[test]
    fn each_errno_is_reported_with_its_cause() {
        let config = PortConfig {
            ifname: "p".into(),
            ifindex: 7,
            queue: 0,
            mode: BindMode::Auto,
            multi_buffer: false,
            zerocopy_segments: 1,
        };
        let said = |step, errno| {
            let source = io::Error::from_raw_os_error(errno);
            OpenError::from_os(step, source, &config, 4096).to_string()
        };
        for step in [Step::Socket, Step::Register, Step::Rings, Step::Bind] {
            for errno in [libc::EMFILE, libc::ENFILE] {
                let text = said(step, errno);
                assert!(text.contains("ulimit -n") && !text.contains("Linux"), "{text}");
            }
        }
        for (step, errno, word) in [
            (Step::Socket, libc::EPERM, "CAP_NET_RAW"),
            (Step::Socket, libc::EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
            (Step::Register, libc::ENOBUFS, "CAP_IPC_LOCK"),
            (Step::Register, libc::ENOMEM, "no memory for 4096 octets"),
            (Step::Rings, libc::ENOMEM, "no memory"),
            (Step::Register, libc::EINVAL, "could not be registered"),
            (Step::Bind, libc::EBUSY, "in use"),
        ] {
            let text = said(step, errno);
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}
