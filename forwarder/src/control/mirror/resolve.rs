//! Asks the kernel to resolve neighbours and to keep them reachable. The kernel owns the neighbour
//! table; packets forwarded in userspace do not update its entries, so each use has to be reported
//! (NTF_USE: as if a packet had been sent).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::state::Family;
use crate::control::netlink::message::Request;
use crate::control::netlink::rtnl::Requests;
use crate::control::netlink::socket::SockError;

/// Minimum interval between requests for the same neighbour. The kernel repeats its probes each
/// second; but it removes the entry when the interface goes down, and a packet that arrives right
/// after must not wait a second for the next request.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// Neighbours whose last request is remembered, to bound memory during a scan of a large prefix.
const ASKED_MAX: usize = 4096;

const RTM_NEWNEIGH: u16 = 28;
const NLM_F_CREATE: u16 = 0x400;
const NTF_USE: u8 = 1;
const NDA_DST: u16 = 1;

/// The time of the last request for each neighbour.
#[derive(Debug, Default)]
pub struct Resolver {
    asked: HashMap<(u32, IpAddr), Instant>,
}

impl Resolver {
    /// Asks for the neighbour `addr` on interface `oif`, unless it was requested recently or too
    /// many requests are remembered. Returns whether the request was sent.
    pub fn resolve(
        &mut self,
        requests: &mut Requests,
        oif: u32,
        addr: IpAddr,
        now: Instant,
    ) -> Result<bool, SockError> {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < ASK_INTERVAL;
        if self.asked.get(&(oif, addr)).is_some_and(recent) {
            return Ok(false);
        }
        if self.asked.len() >= ASKED_MAX {
            self.asked.retain(|_, at| recent(at));
            if self.asked.len() >= ASKED_MAX {
                return Ok(false);
            }
        }
        self.asked.insert((oif, addr), now);
        use_neighbour(requests, oif, addr)?;
        Ok(true)
    }
}

/// RTM_NEWNEIGH with NTF_USE: the kernel resolves an entry that is not valid, and confirms a stale
/// one (`neigh_event_send`).
fn use_neighbour(requests: &mut Requests, oif: u32, addr: IpAddr) -> Result<(), SockError> {
    requests.change("use neighbour", |flags| {
        let mut header = [0u8; 12];
        header[0] = Family::of(&addr).af();
        header[4..8].copy_from_slice(&oif.to_ne_bytes());
        header[10] = NTF_USE;
        let request = Request::new(RTM_NEWNEIGH, flags | NLM_F_CREATE, &header);
        match addr {
            IpAddr::V4(addr) => request.attr(NDA_DST, &addr.octets()),
            IpAddr::V6(addr) => request.attr(NDA_DST, &addr.octets()),
        }
    })
}
