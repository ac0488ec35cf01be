//! What can go wrong with the XDP program, said so that the reader knows what to do.

use std::io;

use libbpf_rs::MapCore;

use super::XdpMode;

/// Why the XDP program could not be loaded, attached or told something.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The kernel does not let this process use BPF.
    #[error(
        "no permission to {what}: run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and \
         CAP_NET_RAW (CAP_SYS_ADMIN where kernel.unprivileged_bpf_disabled or an older kernel asks)"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
    },
    /// The kernel or libbpf refuses the object.
    #[error(
        "the kernel does not take ferroute's BPF program ({source}); Linux 6.1 or later with \
         CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS and CONFIG_NET_CLS_BPF is needed{}",
        indented(log)
    )]
    Load {
        /// libbpf's error.
        source: libbpf_rs::Error,
        /// What libbpf said, the verifier's words included.
        log: String,
    },
    /// The embedded object has no such map or program.
    #[error(
        "the embedded BPF object has no {0}: it does not belong to this build (scripts/build-xdp)"
    )]
    Incomplete(&'static str),
    /// The array of heartbeats cannot be mapped into memory.
    #[error("cannot map the array of heartbeats into memory: {0}")]
    Heartbeats(io::Error),
    /// No descriptor is left.
    #[error("cannot keep a BPF program's descriptor: {0}; raise the limit with `ulimit -n`")]
    Descriptors(io::Error),
    /// A program that is not ferroute's is on the interface.
    #[error("{ifname} {}", self.reason())]
    ForeignProgram {
        /// The interface.
        ifname: String,
        /// The program's name, at most 15 octets.
        name: String,
        /// The program's id, as `bpftool prog` lists it.
        id: u32,
        /// How it is attached.
        mode: XdpMode,
    },
    /// Another ferroute's program is on the interface.
    #[error(
        "another ferroute is already on {ifname} (XDP program id {id}, {mode} mode): stop it first"
    )]
    AlreadyRunning {
        /// The interface.
        ifname: String,
        /// The program's id.
        id: u32,
        /// How it is attached.
        mode: XdpMode,
    },
    /// The driver has native XDP, or was told to use it, and refuses.
    #[error("{ifname}: {}", self.reason())]
    NativeRefused {
        /// The interface.
        ifname: String,
        /// The driver's errno.
        source: io::Error,
        /// What usually helps.
        hint: &'static str,
    },
    /// Attaching failed otherwise.
    #[error("{ifname}: {}", self.reason())]
    Attach {
        /// The interface.
        ifname: String,
        /// The mode that was tried.
        mode: XdpMode,
        /// The kernel's errno.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("cannot {what} the BPF map {map}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map's name.
        map: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// A queue beyond what the maps hold.
    #[error("queue {queue} is beyond the {max} queues a port may have: reduce them with ethtool -L", max = xdp_prog::QUEUES_MAX)]
    Queue {
        /// The queue's index.
        queue: u32,
    },
}

impl XdpError {
    pub(in crate::control) fn map(
        what: &'static str,
        map: &impl MapCore,
        source: libbpf_rs::Error,
    ) -> Self {
        if source.kind() == libbpf_rs::ErrorKind::PermissionDenied {
            return Self::NotPermitted { what: "use BPF maps" };
        }
        Self::Map { what, map: map.name().to_string_lossy().into_owned(), source }
    }

    /// The same as `Display`, without the name of the interface in front.
    pub fn reason(&self) -> String {
        match self {
            Self::ForeignProgram { ifname, name, id, mode } => format!(
                "has an XDP program already: {name:?}, id {id}, {mode} mode; ferroute does not \
                 replace another's program: stop what attached it, or take it off with `ip link set \
                 dev {ifname} {} off`",
                off(*mode)
            ),
            Self::NativeRefused { source, hint, .. } => {
                format!("its driver refuses native XDP ({source}); {hint}, or use generic mode")
            }
            Self::Attach { mode, source, .. } => {
                format!("the XDP program cannot be attached in {mode} mode: {source}")
            }
            other => other.to_string(),
        }
    }

    /// Whether the driver may have refused for its MTU's sake.
    pub(super) fn is_of_mtu(&self) -> bool {
        let errno = match self {
            Self::NativeRefused { source, .. } => source.raw_os_error(),
            _ => None,
        };
        matches!(errno, Some(libc::ERANGE | libc::EINVAL | libc::E2BIG))
    }

    pub(super) fn load(source: libbpf_rs::Error, log: String) -> Self {
        if source.kind() == libbpf_rs::ErrorKind::PermissionDenied && !log.contains("processed") {
            return Self::NotPermitted { what: "load BPF programs" };
        }
        Self::Load { source, log }
    }
}

/// The keyword of `ip link set dev … off` for a mode.
fn off(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "xdpdrv",
        XdpMode::Generic => "xdpgeneric",
    }
}

/// The end of a log, each line on its own; the verifier can be verbose.
fn indented(log: &str) -> String {
    const LINES_MAX: usize = 30;
    let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LINES_MAX);
    lines[from..].iter().map(|l| format!("\n    {l}")).collect()
}
