//! Interfaces that take the packets of the one they sit on, wherever they are: in another network
//! namespace nothing is told of them here.
//!
//! The kernel is asked which interfaces have an rx_handler, as often as sysctls are read and whenever
//! interfaces changed ([`RxHandlerIter`]). Where it cannot be asked, one is known to be taken from when
//! its macvlan or ipvlan was moved away (IFLA_NEW_NETNSID) until it is gone itself, and that is told.

use std::collections::BTreeSet;
use std::io;

use super::Unmirrored;
use super::compile::links::RX_HANDLER_KINDS;
use super::state::LinkState;
use crate::io::af_xdp::rx_handlers::RxHandlerIter;

/// How it is known which interfaces are taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// An error: why the kernel cannot be asked.
    handlers: io::Result<RxHandlerIter>,
    /// Why it did not answer last.
    error: Option<io::Error>,
    /// Some were not looked at.
    is_cut: bool,
}

impl Taken {
    pub(super) fn open() -> Taken {
        Taken::by(RxHandlerIter::open())
    }

    pub(super) fn by(handlers: io::Result<RxHandlerIter>) -> Taken {
        Taken { handlers, error: None, is_cut: false }
    }

    /// Makes `taken` what the kernel answers. Whether it changed.
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

    /// Whether the kernel answered when it was asked last, or cannot be asked at all.
    pub(super) fn is_current(&self) -> bool {
        self.error.is_none()
    }

    /// What is not known.
    pub(super) fn unmirrored(&self) -> Option<Unmirrored> {
        let why = match (&self.handlers, &self.error) {
            (Err(error), _) => format!("the kernel cannot be asked: {error}"),
            (_, Some(error)) => format!("the kernel does not answer: {error}"),
            (Ok(handlers), _) if self.is_cut => {
                format!("only the first {} interfaces are looked at", handlers.interfaces_max())
            }
            _ => return None,
        };
        Some(Unmirrored {
            what: "macvlan and ipvlan interfaces in other network namespaces".into(),
            why: format!(
                "{why}; packets of ports that have such may be forwarded instead of taken"
            ),
        })
    }
}

/// The interface whose packets one takes that has gone to another namespace.
pub(super) fn lower_of_moved(gone: &LinkState) -> Option<u32> {
    let takes = gone.kind.as_deref().is_some_and(|kind| RX_HANDLER_KINDS.contains(&kind));
    gone.link.filter(|_| takes && gone.link_netnsid.is_none() && gone.new_netnsid.is_some())
}
