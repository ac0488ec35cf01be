//! Errors of the XDP program, with advice on what to do.

use std::io;

use libbpf_rs::{ErrorKind, MapCore};

use super::{XdpMode, program_name};
use crate::control::process::{kernel, limits, privilege};

/// Why the XDP program could not be loaded, attached or configured.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The kernel does not let this process use BPF.
    #[error("no permission to {what}: {why}")]
    NotPermitted {
        /// The operation.
        what: &'static str,
        /// What is missing, if known.
        why: String,
    },
    /// The kernel or libbpf rejects the object.
    #[error("the kernel rejects ferroute's BPF program ({source:#}){advice}{}", indented(log))]
    Load {
        /// libbpf's error.
        source: libbpf_rs::Error,
        /// What to do, if known.
        advice: String,
        /// libbpf's log, including the verifier's.
        log: String,
    },
    /// No memory for the object.
    #[error(
        "no memory for ferroute's BPF program and its maps ({0:#}): raise the limit of the address \
         space (ulimit -v) or of the control group, if there is one"
    )]
    NoMemory(libbpf_rs::Error),
    /// The embedded object has no such map or program.
    #[error(
        "the embedded BPF object has no {0}: it does not belong to this build (scripts/build-xdp)"
    )]
    Incomplete(&'static str),
    /// The array of heartbeats cannot be mapped into memory.
    #[error("cannot map the array of heartbeats into memory: {0}")]
    Heartbeats(io::Error),
    /// No descriptor is left.
    #[error(
        "no descriptor is left for BPF programs and maps: {0}; raise the limit on open files (ulimit \
         -n, LimitNOFILE in the service)"
    )]
    Descriptors(io::Error),
    /// The map of the flows that are steered cannot be mapped into memory.
    #[error("cannot map the memory of the table of flows: {0}")]
    FlowGate(io::Error),
    /// The map of the ports that frames are redirected to cannot be created.
    #[error("cannot create the map of ports that frames are redirected to: {0}")]
    TxPorts(libbpf_rs::Error),
    /// Frames that are redirected and not sent cannot be counted.
    #[error("cannot count redirected frames that are not sent: {0}")]
    RedirectFailures(String),
    /// A program that does not belong to ferroute is on the interface.
    #[error("{ifname} {}", self.reason())]
    ForeignProgram {
        /// The interface.
        ifname: String,
        /// The program's name, at most 15 octets; `None`: reading it needs CAP_SYS_ADMIN.
        name: Option<String>,
        /// The program's id, as `bpftool prog` lists it.
        id: u32,
        /// How it is attached.
        mode: XdpMode,
    },
    /// A program of another ferroute instance is on the interface.
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
    /// Native XDP was requested or is supported, but the driver refuses it.
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
    /// A map operation failed.
    #[error("cannot {what} the BPF map {map}: {source}")]
    Map {
        /// The operation.
        what: &'static str,
        /// The map's name.
        map: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The queue index exceeds the size of the maps.
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
        if source.kind() == ErrorKind::PermissionDenied {
            return Self::not_permitted("use BPF maps");
        }
        if is_descriptors(&source, DESCRIPTORS_OF_MAP) {
            return Self::no_descriptors(&source);
        }
        Self::Map { what, map: map.name().to_string_lossy().into_owned(), source }
    }

    /// An interface has the XDP program `id` already.
    pub(in crate::control) fn taken(ifname: &str, id: u32, mode: XdpMode) -> Self {
        let (ifname, name) = (ifname.to_owned(), program_name(id));
        if name.as_deref() == Some(xdp_prog::PROGRAM_XDP) {
            return Self::AlreadyRunning { ifname, id, mode };
        }
        Self::ForeignProgram { ifname, name, id, mode }
    }

    /// The same as `Display`, without the leading interface name.
    pub fn reason(&self) -> String {
        match self {
            Self::ForeignProgram { ifname, name, id, mode } => {
                let named = name.as_ref().map(|name| format!("{name:?}, "));
                let unnamed = if named.is_none() {
                    " (`bpftool prog show id` names it; it may be another ferroute's)"
                } else {
                    ""
                };
                format!(
                    "has an XDP program already: {}id {id}, {mode} mode{unnamed}; ferroute does not \
                     replace another's program: stop what attached it, or take it off with `ip link \
                     set dev {ifname} {} off`",
                    named.unwrap_or_default(),
                    off(*mode)
                )
            }
            Self::NativeRefused { source, hint, .. } => {
                format!("its driver refuses native XDP ({source}); {hint}, or use generic mode")
            }
            Self::Attach { mode, source, .. } => {
                format!("the XDP program cannot be attached in {mode} mode: {source}")
            }
            other => other.to_string(),
        }
    }

    /// Whether the MTU may be why the driver refused.
    pub(super) fn is_of_mtu(&self) -> bool {
        let errno = match self {
            Self::NativeRefused { source, .. } => source.raw_os_error(),
            _ => None,
        };
        matches!(errno, Some(libc::ERANGE | libc::EINVAL | libc::E2BIG))
    }

    pub(super) fn load(source: libbpf_rs::Error, log: String) -> Self {
        match Refusal::of(&source, &log) {
            Refusal::NotPermitted => Self::not_permitted("load BPF programs"),
            Refusal::NoMemory => Self::NoMemory(source),
            Refusal::NoDescriptors => Self::no_descriptors(&source),
            Refusal::Unfit(advice) => Self::Load { advice, source, log },
        }
    }

    fn no_descriptors(source: &libbpf_rs::Error) -> Self {
        Self::Descriptors(io::Error::other(format!("{source:#}")))
    }

    pub(super) fn not_permitted(what: &'static str) -> Self {
        Self::NotPermitted { what, why: privilege::why_not_permitted() }
    }
}

/// Why the kernel or libbpf rejects a BPF object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotPermitted,
    NoMemory,
    NoDescriptors,
    /// Anything else, and what to do if known.
    Unfit(String),
}

impl Refusal {
    /// From libbpf's error and log, including the verifier's.
    pub(crate) fn of(source: &libbpf_rs::Error, log: &str) -> Refusal {
        match source.kind() {
            // The verifier also returns EACCES, for a program that it has examined: then its log is
            // reported, unless a missing privilege may be the reason.
            ErrorKind::PermissionDenied
                if !log.contains("processed") || !privilege::missing(0).is_empty() =>
            {
                Refusal::NotPermitted
            }
            ErrorKind::OutOfMemory => Refusal::NoMemory,
            _ if is_descriptors(source, DESCRIPTORS_OF_OBJECT) => Refusal::NoDescriptors,
            kind => Refusal::Unfit(advice(kind)),
        }
    }
}

/// Descriptors used temporarily to load the object, and for one map handle.
const DESCRIPTORS_OF_OBJECT: u64 = 24;
const DESCRIPTORS_OF_MAP: u64 = 1;

/// Whether an error without a kind in libbpf is a lack of descriptors. libbpf does not return the
/// errno and has closed its descriptors, so the limit is compared with what the operation takes.
fn is_descriptors(source: &libbpf_rs::Error, taken: u64) -> bool {
    source.kind() == ErrorKind::Other && limits::is_out_of_descriptors(taken)
}

/// The kernel version and options that are required, if they may be missing.
fn advice(kind: ErrorKind) -> String {
    let release = kernel::release();
    match kernel::version(&release) {
        Some(version) if version < kernel::OLDEST => {
            let (major, minor) = kernel::OLDEST;
            format!("; Linux {major}.{minor} or later is needed, this is {release}")
        }
        _ if matches!(kind, ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            "; a custom kernel needs CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS and \
             CONFIG_NET_CLS_BPF"
                .to_owned()
        }
        _ => String::new(),
    }
}

/// The keyword of `ip link set dev … off` for a mode.
fn off(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "xdpdrv",
        XdpMode::Generic => "xdpgeneric",
    }
}

/// The end of a log, indented, because the verifier can be verbose.
fn indented(log: &str) -> String {
    const LINES_MAX: usize = 30;
    let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LINES_MAX);
    lines[from..].iter().map(|l| format!("\n    {l}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(errno: i32, log: &str) -> XdpError {
        XdpError::load(libbpf_rs::Error::from_raw_os_error(errno), log.to_owned())
    }

    #[test]
    fn the_kernel_version_is_reported_only_if_it_is_too_old() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINVAL, libc::ENOSPC] {
            let text = load(errno, "").to_string();
            assert!(!text.contains("Linux 6.1"), "{text}");
        }
        assert!(matches!(load(libc::ENOMEM, ""), XdpError::NoMemory(_)));
        assert!(load(libc::EINVAL, "").to_string().contains("CONFIG_XDP_SOCKETS"));
        assert!(!load(libc::ENOSPC, "").to_string().contains("CONFIG_XDP_SOCKETS"));
    }

    #[test]
    fn a_permission_error_names_the_missing_capabilities() {
        let text = std::thread::spawn(|| {
            privilege::drop_all();
            load(libc::EACCES, "R7 pointer comparison prohibited\nprocessed 21 insns").to_string()
        });
        let text = text.join().expect("ends");
        assert!(text.contains("CAP_PERFMON") && !text.contains("R7"), "{text}");
    }
}
