//! XFRM: IPsec policies that forwarded packets are checked against, and defaults that block.

use std::collections::BTreeMap;
use std::io;

use crate::control::netlink::message::{Attrs, Message, Request, u8_at, u16_at, u32_at};
use crate::control::netlink::query::NlSock;

const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// The `u32` of flags before the attributes of a reply to XFRM_MSG_GETSPDINFO, in octets.
const SPDINFO_HEADER: usize = 4;
const XFRMA_SPD_INFO: u16 = 1;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// Offset of `dir` in `struct xfrm_userpolicy_info`: after a selector of 56 octets, two lifetimes
/// of 64 and 32, priority and index.
const XFRM_POLICY_DIR: usize = 56 + 64 + 32 + 4 + 4;
/// Offset of `family` in the selector: after two addresses and four ports and masks.
const XFRM_SELECTOR_FAMILY: usize = 2 * 16 + 4 * 2;
/// More policies than this are only counted: reading them all after every change would keep the
/// control thread busy, and one is enough to know.
const LISTED_MAX: u32 = 1000;

/// Policies of the namespace and defaults that block, a line each. `socket`: of NETLINK_XFRM.
///
/// # Errors
/// When a request fails.
pub fn read(socket: &mut NlSock) -> io::Result<Vec<String>> {
    let count = socket.get(
        |flags| Request::new(XFRM_MSG_GETSPDINFO, flags, &[0; SPDINFO_HEADER]),
        |message| parse_spdinfo(message.attrs(SPDINFO_HEADER)),
    );
    let mut found = match count? {
        Some(0) => Vec::new(),
        Some(count) if count > LISTED_MAX => vec![line(count.into(), "", "")],
        // None: the kernel's reply could not be parsed.
        _ => list(socket)?,
    };
    let directions = blocked_by_default(socket.get(
        |flags| Request::new(XFRM_MSG_GETDEFAULT, flags, &[0; 4]),
        |message| parse_default(message.payload),
    ))?;
    if !directions.is_empty() {
        let directions = directions.join(" and ");
        found.push(format!(
            "XFRM: forwarding is blocked by default ({directions}; see ip xfrm policy getdefault)"
        ));
    }
    Ok(found)
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

/// A line for each direction and family.
fn list(socket: &mut NlSock) -> io::Result<Vec<String>> {
    // A selector and an index: all zero requests all policies.
    let policies = socket.dump(XFRM_MSG_GETPOLICY, &[0; 64], parse_policy)?;
    let mut counts = BTreeMap::new();
    for of in policies {
        *counts.entry(of).or_insert(0u64) += 1;
    }
    let lines = counts.iter().map(|((direction, family), count)| line(*count, family, direction));
    Ok(lines.collect())
}

fn line(count: u64, family: &str, direction: &str) -> String {
    let what = [family, direction, if count == 1 { "policy" } else { "policies" }];
    let what: Vec<&str> = what.into_iter().filter(|word| !word.is_empty()).collect();
    format!("XFRM: {count} {} for IPsec (see ip xfrm policy)", what.join(" "))
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

/// Direction and family. `None` for policies of a socket, which do not apply to forwarded packets.
fn parse_policy(message: &Message<'_>) -> Option<(&'static str, &'static str)> {
    let direction = match u8_at(message.payload, XFRM_POLICY_DIR)? {
        0 => "in",
        1 => "out",
        2 => "fwd",
        _ => return None,
    };
    let family = match i32::from(u16_at(message.payload, XFRM_SELECTOR_FAMILY)?) {
        libc::AF_INET => "IPv4",
        libc::AF_INET6 => "IPv6",
        _ => "any",
    };
    Some((direction, family))
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
        assert_eq!(
            line(1, "IPv4", "fwd"),
            "XFRM: 1 IPv4 fwd policy for IPsec (see ip xfrm policy)"
        );
        assert_eq!(line(2000, "", ""), "XFRM: 2000 policies for IPsec (see ip xfrm policy)");
    }
}
