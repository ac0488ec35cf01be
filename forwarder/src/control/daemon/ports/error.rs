//! Why an interface is not a port, or not yet.

use std::io;

use crate::control::steering::XdpError;
use crate::control::steering::punt::PuntError;
use crate::io::af_xdp::OpenError;

/// Why a port could not be opened. Shown behind the interface's name, so the text is without it.
#[derive(Debug, thiserror::Error)]
pub(in crate::control::daemon) enum PortError {
    /// The interface cannot be a port as it is: what it has or is.
    #[error("{0}")]
    Unfit(String),
    /// It went away meanwhile.
    #[error("is gone")]
    Gone,
    /// Interfaces cannot be read.
    #[error("cannot be looked at: {0}")]
    Unreadable(io::Error),
    /// The kernel does not tell the number of its queues.
    #[error("the number of its queues cannot be read: {0}")]
    Queues(io::Error),
    /// No socket for one of its queues.
    #[error("{}", .0.reason())]
    Socket(#[from] OpenError),
    /// No XDP program on it.
    #[error("{}", .0.reason())]
    Program(#[from] XdpError),
    /// Packets could not go back to the kernel.
    #[error(transparent)]
    Punt(#[from] PuntError),
    /// A worker that should serve it does not answer: it is stopped, or kept from its CPU.
    #[error("worker {0} does not answer")]
    WorkerStalled(usize),
    /// No descriptor is left.
    #[error("no descriptor for its sockets: {0}; raise the limit with `ulimit -n`")]
    Descriptors(io::Error),
}

impl PortError {
    /// The same with the name of the interface, as a message of its own.
    pub(super) fn about(&self, ifname: &str) -> String {
        match self {
            PortError::Unfit(_) | PortError::Gone => format!("interface {ifname} {self}"),
            PortError::Socket(error) => error.to_string(),
            PortError::Program(error) => error.to_string(),
            _ => format!("interface {ifname}: {self}"),
        }
    }

    /// Whether another's program is on the interface, which says more than that its queues are busy.
    pub(super) fn is_taken(error: &XdpError) -> bool {
        matches!(error, XdpError::ForeignProgram { .. } | XdpError::AlreadyRunning { .. })
    }

    /// Whether another socket is bound to the queue; the kernel may still be letting go of it.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, PortError::Socket(OpenError::Busy { .. }))
    }
}
