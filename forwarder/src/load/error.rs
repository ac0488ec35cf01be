//! Errors of load generation, with what the user can do about them.

use std::io;

use super::traffic::TrafficError;
use crate::control::process::privilege;
use crate::control::steering::Refusal;
use crate::io::af_xdp::OpenError;
use crate::io::pcap::PcapError;

/// Why load generation failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The traffic cannot be sent.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// A network namespace cannot be entered.
    #[error("network namespace {name}: {source}; `ip netns` lists those that have names")]
    Netns {
        /// Its name or path as given.
        name: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// No interface of that name.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Netlink failed.
    #[error("cannot read the kernel's interfaces: {0}")]
    Netlink(io::Error),
    /// Not an Ethernet interface.
    #[error("{0} carries no Ethernet frames")]
    NotEthernet(String),
    /// The interface is down.
    #[error("{0} is down: ip link set {1} up")]
    Down(String, String),
    /// The interface has no carrier.
    #[error("{0} has no carrier: check its cable, or the other end of the veth")]
    NoCarrier(String),
    /// A frame is too long for the interface.
    #[error("{size} octets do not fit {place}, whose MTU is {mtu}: at most {max}")]
    TooLong {
        /// The interface.
        place: String,
        /// The longest frame asked for, in octets without the FCS.
        size: usize,
        /// Its IP MTU.
        mtu: u32,
        /// The longest frame it takes, in octets without the FCS.
        max: usize,
    },
    /// CAP_BPF or another capability is missing.
    #[error("no permission to load BPF programs: {0}")]
    NotPermitted(String),
    /// Out of descriptors (EMFILE, ENFILE).
    #[error(
        "no descriptor is left for BPF programs and maps ({0:#}): raise the limit on open files \
         (ulimit -n)"
    )]
    NoDescriptors(libbpf_rs::Error),
    /// Out of memory (ENOMEM).
    #[error("no memory for the load generator's BPF programs and maps: {0:#}")]
    NoMemory(libbpf_rs::Error),
    /// The kernel rejects the BPF object.
    #[error(
        "the kernel rejects the load generator's BPF programs ({source:#}){advice}{}",
        indented(.log)
    )]
    Load {
        /// What to do, if that is known.
        advice: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
        /// libbpf's and the verifier's messages.
        log: String,
    },
    /// The embedded object lacks a map or program.
    #[error("the embedded BPF object has no {0}: it does not belong to this build")]
    Incomplete(&'static str),
    /// A map cannot be used.
    #[error("the BPF map {0} cannot be used: {1}")]
    Map(&'static str, libbpf_rs::Error),
    /// XDP cannot be attached.
    #[error("{place}: the XDP program cannot be attached: {source}{}", attach_hint(.source))]
    Attach {
        /// The interface.
        place: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// BPF_PROG_RUN failed.
    #[error("{place}: the kernel does not run the generator's program: {source}")]
    Run {
        /// The interface.
        place: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The port does not accept frames from XDP.
    #[error(
        "{0} does not accept frames from XDP; on a veth the other end needs an XDP program or GRO \
         (ethtool -K … gro on): or use AF_XDP (--engine af_xdp)"
    )]
    NothingSent(String),
    /// AF_XDP sockets cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// More threads than queues.
    #[error(
        "{threads} threads for the {queues} queues of {place}: AF_XDP needs a queue for each thread \
         (ethtool -L), or use --engine xdp"
    )]
    Queues {
        /// The interface.
        place: String,
        /// The number requested.
        threads: usize,
        /// The number that the interface has.
        queues: u32,
    },
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] PcapError),
    /// The capture cannot be sent.
    #[error("{0}: {1}")]
    CaptureUnfit(String, String),
    /// A thread cannot be started or pinned.
    #[error("a generator's thread cannot run: {0}")]
    Thread(String),
}

fn attach_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "; it has another program: `ip link` shows it",
        Some(libc::EPERM | libc::EACCES) => "; run as root, or with CAP_NET_ADMIN and CAP_BPF",
        _ => "",
    }
}

fn indented(log: &str) -> String {
    const LINES_MAX: usize = 20;
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LINES_MAX);
    lines[from..].iter().map(|line| format!("\n    {line}")).collect()
}

impl LoadError {
    pub(super) fn load(source: libbpf_rs::Error, log: String) -> LoadError {
        match Refusal::of(&source, &log) {
            Refusal::NotPermitted => LoadError::NotPermitted(privilege::why_not_permitted()),
            Refusal::NoMemory => LoadError::NoMemory(source),
            Refusal::NoDescriptors => LoadError::NoDescriptors(source),
            Refusal::Unfit(advice) => LoadError::Load { advice, source, log },
        }
    }
}
