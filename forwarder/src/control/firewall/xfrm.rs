//! XFRM: IPsec policies that forwarded packets are checked against, and defaults that block.

use std::io;

use crate::control::netlink::message::{Attrs, Request, u8_at, u32_at};
use crate::control::netlink::query::NlSock;
use crate::control::xfrm::policy::{self, Policies};
use crate::ipsec::{Direction, Policy};

const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// The `u32` of flags before the attributes of a reply to XFRM_MSG_GETSPDINFO, in octets.
const SPDINFO_HEADER: usize = 4;
const XFRMA_SPD_INFO: u16 = 1;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// With more policies than this the kernel has all packets: reading them all after every change would take the
/// control thread too long.
const POLICIES_MAX: u32 = 16_384;

/// The policies, and what of XFRM workers cannot apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xfrm {
    /// Policies that workers apply: packets that one concerns are left to the kernel.
    policies: Policies,
    /// The number of policies where there are too many to be read.
    uncounted: u32,
    /// Directions that are blocked by default.
    blocked: Vec<&'static str>,
}

impl Xfrm {
    /// Reads them. `socket`: of NETLINK_XFRM.
    ///
    /// # Errors
    /// When a request fails.
    pub fn read(socket: &mut NlSock) -> io::Result<Xfrm> {
        let count = socket.get(
            |flags| Request::new(XFRM_MSG_GETSPDINFO, flags, &[0; SPDINFO_HEADER]),
            |message| parse_spdinfo(message.attrs(SPDINFO_HEADER)),
        );
        let (policies, uncounted) = match count? {
            Some(0) => (Policies::default(), 0),
            Some(count) if count > POLICIES_MAX => (Policies::default(), count),
            // None: the kernel's reply could not be parsed.
            _ => (policy::read(socket)?, 0),
        };
        let blocked = blocked_by_default(socket.get(
            |flags| Request::new(XFRM_MSG_GETDEFAULT, flags, &[0; 4]),
            |message| parse_default(message.payload),
        ))?;
        Ok(Xfrm { policies, uncounted, blocked })
    }

    /// The policies that workers apply. `None`: there are too many, and they were not read.
    pub fn policies(&self) -> Option<&[(Direction, Policy)]> {
        (self.uncounted == 0).then_some(&self.policies.list)
    }

    /// Why the kernel must have all packets, a line each.
    pub fn obstacles(&self) -> impl Iterator<Item = String> {
        let uncounted = (self.uncounted > 0).then(|| {
            format!(
                "XFRM: {} policies for IPsec, of which Ferroute follows {POLICIES_MAX} at most (see ip xfrm policy)",
                self.uncounted
            )
        });
        let unknown = (self.policies.unknown > 0).then(|| {
            format!(
                "XFRM: {} policies for IPsec that Ferroute does not know (type sub; see ip xfrm policy)",
                self.policies.unknown
            )
        });
        let blocked = (!self.blocked.is_empty()).then(|| {
            let directions = self.blocked.join(" and ");
            format!(
                "XFRM: forwarding is blocked by default ({directions}; see ip xfrm policy getdefault)"
            )
        });
        uncounted.into_iter().chain(unknown).chain(blocked)
    }
}

/// Kernels before 5.14 do not support the request and have no such default (`xfrm_user_rcv_msg`:
/// EINVAL). After any other error, or a short reply, a default that blocks may exist.
fn blocked_by_default(
    answer: io::Result<Option<Vec<&'static str>>>,
) -> io::Result<Vec<&'static str>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        answer => answer?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the XFRM defaults cannot be parsed")
        }),
    }
}

/// The number of policies of the directions in, out and fwd, without those of sockets (`struct
/// xfrmu_spdinfo`).
fn parse_spdinfo(mut attrs: Attrs<'_>) -> Option<u32> {
    let info = attrs.find(|attr| attr.kind == XFRMA_SPD_INFO)?.value;
    let word = |at: usize| u32_at(info, 4 * at);
    Some(word(0)?.saturating_add(word(1)?).saturating_add(word(2)?))
}

/// Directions in which forwarded packets without a policy are dropped (`struct
/// xfrm_userpolicy_default`: in, fwd, out). A forwarded packet is checked as fwd after routing
/// (`xfrm4_policy_check`) and then as out (`xfrm_route_forward`).
fn parse_default(defaults: &[u8]) -> Option<Vec<&'static str>> {
    let blocks = |at| Some(u8_at(defaults, at)? == XFRM_USERPOLICY_BLOCK);
    let directions = [(blocks(1)?, "fwd"), (blocks(2)?, "out")];
    Some(directions.iter().filter(|(blocks, _)| *blocks).map(|(_, name)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_that_block_forwarded_packets_are_those_of_fwd_and_out() {
        assert_eq!(parse_default(&[1, 2, 2, 0]), Some(vec![]));
        assert_eq!(parse_default(&[2, 1, 2, 0]), Some(vec!["fwd"]));
        assert_eq!(parse_default(&[2, 2, 1, 0]), Some(vec!["out"]));
        assert_eq!(parse_default(&[1, 1, 1, 0]), Some(vec!["fwd", "out"]));
        assert_eq!(parse_default(&[1, 1]), None);
    }

    #[test]
    fn only_a_kernel_without_defaults_has_no_default() {
        let refused = |errno| Err(io::Error::from_raw_os_error(errno));
        assert!(blocked_by_default(refused(libc::EINVAL)).expect("an old kernel").is_empty());
        for errno in [libc::EPERM, libc::ENOBUFS, libc::EAGAIN] {
            let error = blocked_by_default(refused(errno)).expect_err("unknown");
            assert_eq!(error.raw_os_error(), Some(errno));
        }
        assert!(blocked_by_default(Ok(None)).is_err(), "too short");
        assert_eq!(blocked_by_default(Ok(Some(vec!["fwd"]))).expect("known"), ["fwd"]);
    }

    #[test]
    fn policies_of_sockets_are_not_counted() {
        let words: Vec<u8> =
            [1u32, 2, 3, 10, 20, 30].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let octets = Request::new(0, 0, &[]).attr(XFRMA_SPD_INFO, &words).finish(0);
        assert_eq!(parse_spdinfo(Attrs(&octets[16..])), Some(6));
        assert_eq!(parse_spdinfo(Attrs(&octets[16..24])), None);
    }
}
