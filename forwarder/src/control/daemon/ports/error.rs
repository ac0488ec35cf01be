//! Why an interface is not a port, or not yet.

use std::io;

use crate::control::steering::XdpError;
use crate::control::steering::punt::PuntError;
use crate::io::af_xdp::OpenError;

/// Why a port could not be opened. Printed after the interface's name, so the text does not name it.
#[derive(Debug, thiserror::Error)]
pub(in crate::control::daemon) enum PortError {
    /// The interface cannot be a port because of a property or setting.
    #[error("{0}")]
    Unfit(String),
    /// It was removed meanwhile.
    #[error("is gone")]
    Gone,
    /// The interfaces cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// The kernel does not report the number of its queues.
    #[error("the number of its queues cannot be read: {0}")]
    Queues(io::Error),
    /// A socket could not be opened on one of its queues.
    #[error("{}", .0.reason())]
    Socket(#[from] OpenError),
    /// The XDP program could not be attached.
    #[error("{}", .0.reason())]
    Program(#[from] XdpError),
    /// Packets could not be handed back to the kernel.
    #[error(transparent)]
    Punt(#[from] PuntError),
    /// The worker that should serve it does not answer: it is stopped, or does not get its CPU.
    #[error("worker {0} does not answer")]
    WorkerStalled(usize),
    /// Out of file descriptors.
    #[error("no descriptor for its sockets: {0}; raise the limit with `ulimit -n`")]
    Descriptors(io::Error),
}

impl PortError {
    /// The error with the interface's name, as a complete message.
    pub(super) fn about(&self, ifname: &str) -> String {
        match self {
            PortError::Unfit(_) | PortError::Gone => format!("interface {ifname} {self}"),
            PortError::Socket(error) => error.to_string(),
            PortError::Program(error) => error.to_string(),
            _ => format!("interface {ifname}: {self}"),
        }
    }

    /// Whether another process's program is attached, which explains more than that its queues are busy.
    pub(super) fn is_taken(error: &XdpError) -> bool {
        matches!(error, XdpError::ForeignProgram { .. } | XdpError::AlreadyRunning { .. })
    }

    /// Whether another socket is bound to the queue; the kernel may still be releasing it.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, PortError::Socket(OpenError::Busy { .. }))
    }
}
