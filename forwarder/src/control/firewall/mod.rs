//! What the kernel would do to forwarded packets and Ferroute would not: nftables chains at the
//! hooks they pass, legacy iptables, IPsec policies. Read from the kernel, without a tool.
//!
//! Left out: bridges (bridge and ebtables rules see frames that are not routed), chains at input
//! and output (Ferroute leaves packets to and from the router itself to the kernel), and tc
//! filters, which [`crate::control::doctor`] mentions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_XFRM};

use crate::control::netdev::nic::{self, Nic};
use crate::control::netlink::message::{Attrs, Message, Request, u8_at, u16_at};
use crate::control::netlink::query::NlSock;

/// `struct nfgenmsg` in octets.
const NFGEN_HEADER: usize = 4;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN.
const GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;

const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// Offset of `dir` in `struct xfrm_userpolicy_info`: behind a selector of 56 octets, two lifetimes
/// of 64 and 32, priority and index.
const XFRM_POLICY_DIR: usize = 56 + 64 + 32 + 4 + 4;
/// Offset of `family` in the selector: behind two addresses and four ports and masks.
const XFRM_SELECTOR_FAMILY: usize = 2 * 16 + 4 * 2;

/// Everything that would be bypassed for packets between `ports` and their VLANs, a line each; none:
/// nothing.
///
/// # Errors
/// When the kernel cannot be asked; then nothing is known.
pub fn bypassed(ports: &[String]) -> io::Result<Vec<String>> {
    Rules::read()?.bypassed(ports)
}

/// What there is in the network namespace, for whatever ports.
#[derive(Debug)]
pub struct Rules {
    nics: Vec<Nic>,
    chains: Vec<Chain>,
    /// What every forwarded packet meets: of legacy iptables and IPsec.
    everywhere: Vec<String>,
    /// Interfaces that tc filters may sit on.
    hooked: BTreeSet<u32>,
}

impl Rules {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it cannot be asked; then nothing is known.
    pub fn read() -> io::Result<Rules> {
        let mut everywhere = iptables("iptables", "ip_tables_names")?;
        everywhere.extend(iptables("ip6tables", "ip6_tables_names")?);
        everywhere.extend(xfrm()?);
        let (nics, chains, hooked) = (nic::read()?, nftables()?, nic::tc_hooked()?);
        Ok(Rules { nics, chains, everywhere, hooked })
    }

    /// As [`bypassed`].
    ///
    /// # Errors
    /// When the kernel cannot be asked for the filters of an interface.
    pub fn bypassed(&self, ports: &[String]) -> io::Result<Vec<String>> {
        let vlans = nic::vlans_of(&self.nics, ports);
        let names: Vec<String> =
            ports.iter().chain(vlans.iter().map(|nic| &nic.name)).cloned().collect();
        let chains = self.chains.iter().filter_map(|chain| describe(chain, &names));
        let mut found: Vec<String> = chains.chain(self.everywhere.iter().cloned()).collect();
        let own = self.nics.iter().filter(|nic| ports.contains(&nic.name));
        found.extend(tc(own.chain(vlans.iter().copied()), &self.hooked)?);
        // On a port it is what stands in the way of our own.
        let programs =
            vlans.iter().flat_map(|nic| nic.xdp_programs.iter().map(move |program| (nic, program)));
        found.extend(
            programs.map(|(nic, (mode, id))| format!("XDP program {id} ({mode}) on {}", nic.name)),
        );
        Ok(found)
    }

    /// Rules that an interface or its VLANs alone have: not those that every port meets.
    ///
    /// # Errors
    /// As for [`Rules::bypassed`].
    pub fn own(&self, name: &str) -> io::Result<Vec<String>> {
        let everywhere = self.bypassed(&[])?;
        let found = self.bypassed(&[name.to_owned()])?;
        Ok(found.into_iter().filter(|rule| !everywhere.contains(rule)).collect())
    }
}

/// Filters at the interfaces' ingress and egress: userspace receives before the one and sends past
/// the other.
fn tc<'a>(nics: impl Iterator<Item = &'a Nic>, hooked: &BTreeSet<u32>) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for nic in nics.filter(|nic| hooked.contains(&nic.ifindex)) {
        let filters = nic::tc_filters(nic.ifindex)?;
        found.extend(filters.into_iter().map(|(direction, kind)| {
            format!("tc filter ({kind}) at the {direction} of {}", nic.name)
        }));
    }
    Ok(found)
}

/// A base chain, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    kind: String,
    hook: u32,
    priority: i32,
    drops: bool,
    devices: Vec<String>,
}

/// Base chains that forwarded packets pass. An empty chain counts too: rules come and go.
fn nftables() -> io::Result<Vec<Chain>> {
    let mut socket = match NlSock::open(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    // Family 0: all.
    match socket.dump(GETCHAIN, &[0; NFGEN_HEADER], parse_chain) {
        // nfnetlink knows no nf_tables: the kernel has none.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        chains => chains,
    }
}

/// `None` for chains without a hook, which are only jumped to.
fn parse_chain(message: &Message<'_>) -> Option<Chain> {
    let attrs = message.attrs(NFGEN_HEADER);
    let text = |kind| find(attrs, kind).map(string).unwrap_or_default();
    let hook = Attrs(find(attrs, NFTA_CHAIN_HOOK)?);
    let mut devices: Vec<String> = find(hook, NFTA_HOOK_DEV).map(string).into_iter().collect();
    devices.extend(Attrs(find(hook, NFTA_HOOK_DEVS).unwrap_or_default()).map(|dev| dev.string()));
    Some(Chain {
        family: u8_at(message.payload, 0)?,
        table: text(NFTA_CHAIN_TABLE),
        name: text(NFTA_CHAIN_NAME),
        kind: text(NFTA_CHAIN_TYPE),
        hook: find(hook, NFTA_HOOK_HOOKNUM).and_then(be32)?,
        priority: find(hook, NFTA_HOOK_PRIORITY).and_then(be32)? as i32,
        // NF_DROP is 0.
        drops: find(attrs, NFTA_CHAIN_POLICY).and_then(be32) == Some(0),
        devices,
    })
}

fn find<'a>(mut attrs: Attrs<'a>, kind: u16) -> Option<&'a [u8]> {
    attrs.find(|attr| attr.kind == kind).map(|attr| attr.value)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

fn string(value: &[u8]) -> String {
    let text = value.split(|octet| *octet == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// As `nft list chains` says it; `None` when forwarded packets do not pass there.
fn describe(chain: &Chain, ports: &[String]) -> Option<String> {
    let family = match chain.family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        NFPROTO_NETDEV => "netdev",
        _ => return None,
    };
    let on_ports = || {
        let mut at = chain.devices.iter().filter(|device| matches_port(device, ports)).peekable();
        at.peek()?;
        Some(at.map(String::as_str).collect::<Vec<_>>().join(", "))
    };
    let hook = match (chain.family, chain.hook) {
        (NFPROTO_NETDEV, 0) | (NFPROTO_INET, 5) => format!("ingress on {}", on_ports()?),
        (NFPROTO_NETDEV, 1) => format!("egress on {}", on_ports()?),
        (NFPROTO_NETDEV, _) => return None,
        (_, 0) => "prerouting".into(),
        (_, 2) => "forward".into(),
        (_, 4) => "postrouting".into(),
        _ => return None,
    };
    let Chain { table, name, kind, priority, .. } = chain;
    let policy = if chain.drops { ", policy drop" } else { "" };
    Some(format!(
        "nftables: chain {family} {table} {name} (type {kind}, hook {hook}, priority {priority}\
         {policy})"
    ))
}

/// A device of a chain may be a pattern: `eth*`.
fn matches_port(device: &str, ports: &[String]) -> bool {
    ports.iter().any(|port| match device.strip_suffix('*') {
        Some(prefix) => port.starts_with(prefix),
        None => port == device,
    })
}

/// Tables of the old iptables that the kernel has set up. Their rules cannot be read here, so a
/// table counts as rules.
fn iptables(program: &str, file: &str) -> io::Result<Vec<String>> {
    // Of this thread's namespace: /proc/net is the main thread's.
    let path = format!("/proc/thread-self/net/{file}");
    let names = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // Only root's user id opens it, whatever the capabilities: what is not known may be there.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(vec![format!("{program}-legacy: perhaps; {path} is for root to read")]);
        }
        names => names?,
    };
    Ok(names
        .lines()
        .map(|table| format!("{program}-legacy: table {table} (see {program}-legacy-save)"))
        .collect())
}

/// IPsec policies of the namespace, and a default that blocks.
fn xfrm() -> io::Result<Vec<String>> {
    let mut socket = match NlSock::open(NETLINK_XFRM) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    // A selector and an index: all zero asks for all.
    let policies = socket.dump(XFRM_MSG_GETPOLICY, &[0; 64], parse_policy)?;
    let mut counts = BTreeMap::new();
    for (direction, family) in policies {
        *counts.entry((direction, family)).or_insert(0u64) += 1;
    }
    let mut found: Vec<String> = counts
        .iter()
        .map(|((direction, family), count)| {
            format!(
                "XFRM: {count} {family} {direction} {} for IPsec (see ip xfrm policy)",
                plural(*count)
            )
        })
        .collect();
    let default = socket.get(
        |flags| Request::new(XFRM_MSG_GETDEFAULT, flags, &[0; 4]),
        |message| u8_at(message.payload, 1),
    );
    // Kernels before 5.14 do not know the question and have no such default.
    if let Ok(Some(XFRM_USERPOLICY_BLOCK)) = default {
        found.push("XFRM: forwarding is blocked by default (see ip xfrm policy getdefault)".into());
    }
    Ok(found)
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "policy" } else { "policies" }
}

/// Direction and family. `None` for policies of one socket, which no forwarded packet meets.
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

    fn chain(family: u8, hook: u32, devices: &[&str]) -> Chain {
        Chain {
            family,
            table: "t".into(),
            name: "c".into(),
            kind: "filter".into(),
            hook,
            priority: -10,
            drops: true,
            devices: devices.iter().map(|d| d.to_string()).collect(),
        }
    }

    #[test]
    fn chains_that_forwarded_packets_pass_are_described() {
        let ports = ["eth0".to_owned(), "eth1".to_owned()];
        let shown =
            |family, hook, devices: &[&str]| describe(&chain(family, hook, devices), &ports);
        assert_eq!(
            shown(NFPROTO_INET, 2, &[]).as_deref(),
            Some("nftables: chain inet t c (type filter, hook forward, priority -10, policy drop)")
        );
        for (hook, passes) in [(0, true), (1, false), (2, true), (3, false), (4, true)] {
            assert_eq!(shown(NFPROTO_IPV4, hook, &[]).is_some(), passes, "hook {hook}");
            assert_eq!(shown(NFPROTO_IPV6, hook, &[]).is_some(), passes, "hook {hook}");
        }
        let ingress = shown(NFPROTO_NETDEV, 0, &["eth9", "eth1"]).expect("is on a port");
        assert!(ingress.contains("hook ingress on eth1,"), "{ingress}");
        assert!(shown(NFPROTO_NETDEV, 1, &["eth*"]).is_some());
        assert!(shown(NFPROTO_NETDEV, 0, &["lo"]).is_none());
        assert!(shown(NFPROTO_INET, 5, &["lo"]).is_none());
        let nfproto_bridge = 7;
        assert!(shown(nfproto_bridge, 2, &[]).is_none());
    }

    #[test]
    fn a_chain_is_read_from_its_message_and_octets_that_lie_are_no_chain() {
        let be = |n: u32| n.to_be_bytes();
        let hook = Request::new(0, 0, &[])
            .attr(NFTA_HOOK_HOOKNUM, &be(2))
            .attr(NFTA_HOOK_PRIORITY, &be(-5i32 as u32))
            .finish(0);
        let message = Request::new(GETCHAIN, 0, &[NFPROTO_IPV4, 0, 0, 0])
            .attr(NFTA_CHAIN_TABLE, b"filter\0")
            .attr(NFTA_CHAIN_NAME, b"FORWARD\0")
            .attr(0x8000 | NFTA_CHAIN_HOOK, &hook[16..])
            .attr(NFTA_CHAIN_POLICY, &be(1))
            .attr(NFTA_CHAIN_TYPE, b"filter\0")
            .finish(0);
        let payload = &message[16..];
        let read = |payload| parse_chain(&Message { kind: GETCHAIN, flags: 0, seq: 0, payload });
        let chain = read(payload).expect("a base chain");
        assert_eq!((chain.name.as_str(), chain.hook, chain.priority), ("FORWARD", 2, -5));
        assert!(!chain.drops);
        for len in 0..payload.len() {
            // None panics; what is cut behind the hook is still a base chain.
            let _ = read(&payload[..len]);
        }
        assert!(read(&[]).is_none());
    }
}
