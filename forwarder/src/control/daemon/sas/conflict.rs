//! With the SAs of a file: whether the kernel has SAs, too.
//!
//! It may not have any. If one had a key of the file, both would send the same numbers; and which SA a policy uses would
//! depend on who has the packet.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::thread;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_XFRM;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{error, info};

use super::{DATAGRAMS_MAX, RCVBUF, Shared, WAIT};
use crate::control::netlink::events::{Events, Group, Received};
use crate::control::netlink::query::{NlSock, is_interrupted};
use crate::control::process::privilege;
use crate::control::xfrm::changes::XFRMNLGRP_SA;
use crate::control::xfrm::state;

/// Until the next attempt after an error.
const RETRY: Duration = Duration::from_secs(1);

/// Begins the reason after an error.
const UNKNOWN: &str = "it is not known whether the kernel has SAs";

/// The first SA that the kernel has, as a reason not to use those of a file. One that is being negotiated is none.
///
/// # Errors
/// When they cannot be read.
pub(super) fn conflict(requests: &mut NlSock) -> io::Result<Option<String>> {
    let found = state::read(requests)?.into_iter().find(|sa| sa.id.spi != 0);
    Ok(found.map(|sa| {
        format!(
            "the kernel has the SA {}, and the file has SAs, too: it must have none (ip xfrm state delete), or they belong in \
             the kernel and not in the file",
            sa.id
        )
    }))
}

/// Runs until it is stopped.
pub(super) fn watch(shared: &Shared) {
    privilege::confine_follower();
    while !shared.stopping.load(Relaxed) {
        if let Err(error) = follow(shared) {
            tell(shared, Some(format!("{UNKNOWN}: {error}")));
            thread::sleep(RETRY);
        }
    }
}

fn follow(shared: &Shared) -> io::Result<()> {
    let mut events = Events::open(NETLINK_XFRM, &[Group::Required(XFRMNLGRP_SA)], RCVBUF)
        .map_err(io::Error::other)?;
    let mut requests = NlSock::open(NETLINK_XFRM)?;
    let mut is_stale = true;
    while !shared.stopping.load(Relaxed) {
        if is_stale {
            match conflict(&mut requests) {
                Err(error) if is_interrupted(&error) => continue,
                found => tell(shared, found?),
            }
        }
        let timeout = PollTimeout::try_from(WAIT).unwrap_or(PollTimeout::ZERO);
        // Errors show when the socket is read.
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout);
        is_stale = false;
        for _ in 0..DATAGRAMS_MAX {
            match events.receive().map_err(io::Error::other)? {
                Received::Empty => break,
                Received::Overrun | Received::Datagram(_) => is_stale = true,
            }
        }
        if is_stale {
            // Notifications have keys.
            events.wipe();
        }
    }
    Ok(())
}

fn tell(shared: &Shared, found: Option<String>) {
    let before = shared.conflict.load_full();
    if before.as_deref() == found.as_ref() {
        return;
    }
    match &found {
        Some(found) => error!("IPsec: no SA of the file is used: {found}"),
        None => info!("IPsec: {}", over(before.as_deref().map_or("", String::as_str))),
    }
    shared.conflict.store(found.map(Arc::new));
    shared.changes.fetch_add(1, Release);
}

/// What to say when there is no reason any more.
fn over(before: &str) -> &'static str {
    match before.starts_with(UNKNOWN) {
        true => "it is known again that the kernel has no SAs",
        false => "the kernel has no SAs any more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_error_the_kernel_had_no_sas_either() {
        assert!(over(&format!("{UNKNOWN}: EIO")).starts_with("it is known again"));
        assert!(over("the kernel has the SA x").starts_with("the kernel has no SAs any more"));
    }
}
