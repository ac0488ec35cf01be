//! Detects interfaces whose packets another interface takes (rx_handler), even if that one is in
//! another network namespace, whose events are not received here.
//!
//! The kernel's list of interfaces with an rx_handler is read as often as sysctls and whenever
//! interfaces change ([`RxHandlerIter`]). If it is not available, an interface counts as taken from
//! when its macvlan or ipvlan was moved away (IFLA_NEW_NETNSID) until the interface itself is
//! removed, and this limit is reported.

use std::collections::BTreeSet;
use std::io;

use super::Unmirrored;
use super::compile::links::RX_HANDLER_KINDS;
use super::state::LinkState;
use crate::io::af_xdp::rx_handlers::RxHandlerIter;

/// Reads which interfaces are taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// Error: why the iterator is not available.
    handlers: io::Result<RxHandlerIter>,
    /// Error of the last read.
    error: Option<io::Error>,
    /// Not all interfaces were read.
    is_cut: bool,
}

impl Taken {
    pub(super) fn open() -> Taken {
        Taken::by(RxHandlerIter::open())
    }

    pub(super) fn by(handlers: io::Result<RxHandlerIter>) -> Taken {
        Taken { handlers, error: None, is_cut: false }
    }

    /// Updates `taken` from the kernel. Returns whether it changed.
    pub(super) fn read(&mut self, taken: &mut BTreeSet<u32>) -> bool {
        let Ok(handlers) = &mut self.handlers else { return false };
        match handlers.read() {
            Ok(now) => {
                (self.error, self.is_cut) = (None, !now.is_all);
                let changed = *taken != now.interfaces;
                *taken = now.interfaces;
                changed
            }
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }

    /// Whether the last read succeeded, or the iterator is not available at all.
    pub(super) fn is_current(&self) -> bool {
        self.error.is_none()
    }

    /// What is unknown.
    pub(super) fn unmirrored(&self) -> Option<Unmirrored> {
        let why = match (&self.handlers, &self.error) {
            (Err(error), _) => {
                format!("the kernel's list of rx_handlers is not available: {error}")
            }
            (_, Some(error)) => format!("the kernel's list of rx_handlers cannot be read: {error}"),
            (Ok(handlers), _) if self.is_cut => {
                format!("only the first {} interfaces are checked", handlers.interfaces_max())
            }
            _ => return None,
        };
        Some(Unmirrored {
            what: "macvlan and ipvlan interfaces in other network namespaces".into(),
            why: format!(
                "{why}; packets of ports that have one may be forwarded instead of delivered to it"
            ),
        })
    }
}

/// The lower interface of a macvlan or ipvlan that was moved to another namespace.
pub(super) fn lower_of_moved(gone: &LinkState) -> Option<u32> {
    let takes = gone.kind.as_deref().is_some_and(|kind| RX_HANDLER_KINDS.contains(&kind));
    gone.link.filter(|_| takes && gone.link_netnsid.is_none() && gone.new_netnsid.is_some())
}
