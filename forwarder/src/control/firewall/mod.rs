//! What the kernel would do to forwarded packets and Ferroute would not: netfilter hooks, traffic
//! control and BPF programs on the ports and their VLANs, IPsec policies. Read from the kernel,
//! without a tool, and by who is registered where, not by which tools are known.
//!
//! - [`Rules`]: what there is, once;
//! - [`monitor`]: what there is, followed as it changes;
//! - `nftables`, `hooks`, `xtables`: netfilter; `tc`: filters and tcx programs of interfaces; `xfrm`:
//!   IPsec.
//!
//! Left out: bridges (bridge and ebtables rules see frames that are not routed), chains at input
//! and output (Ferroute leaves packets to and from the router itself to the kernel), BPF programs of
//! cgroups and sockets (they see no forwarded packet), routes with an encapsulation or a program
//! (the mirror leaves these to the kernel).

mod hooks;
pub mod monitor;
mod nftables;
mod tc;
mod xfrm;
mod xtables;

use std::collections::BTreeSet;
use std::io;

pub use self::hooks::Means;
use self::hooks::{Hooks, Reader};
use self::nftables::Nftables;
use self::tc::Qdisc;
use crate::control::netdev::nic::{self, Nic};
use crate::control::netlink::message::{Attrs, string};

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;

/// Everything that would be bypassed for packets between `ports` and their VLANs, a line each; none:
/// nothing.
///
/// # Errors
/// When the kernel cannot be asked; then nothing is known.
pub fn bypassed(ports: &[String]) -> io::Result<Vec<String>> {
    Rules::read()?.bypassed(ports)
}

/// Whether an interface has a clsact or ingress qdisc, with filters or without.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn has_clsact(ifindex: u32) -> io::Result<bool> {
    Ok(tc::has_clsact(&tc::qdiscs()?, ifindex))
}

/// What there is in the network namespace, for whatever ports.
#[derive(Debug)]
pub struct Rules {
    nics: Vec<Nic>,
    nftables: Nftables,
    hooks: Hooks,
    xfrm: Vec<String>,
    qdiscs: BTreeSet<Qdisc>,
    means: Means,
}

impl Rules {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it cannot be asked; then nothing is known.
    pub fn read() -> io::Result<Rules> {
        Rules::read_by(&mut Reader::open()?)
    }

    fn read_by(hooks: &mut Reader) -> io::Result<Rules> {
        Ok(Rules {
            nics: nic::read()?,
            nftables: Nftables::read()?,
            hooks: hooks.read(true)?,
            xfrm: xfrm::read()?,
            qdiscs: tc::qdiscs()?,
            means: hooks.means(),
        })
    }

    /// As [`bypassed`].
    ///
    /// # Errors
    /// When the kernel cannot be asked for the filters of an interface.
    pub fn bypassed(&self, ports: &[String]) -> io::Result<Vec<String>> {
        let devices = self.devices(ports);
        let names: Vec<String> =
            ports.iter().cloned().chain(devices.iter().map(|nic| nic.name.clone())).collect();
        let mut found: Vec<String> = self.nftables.bypassed(&names).collect();
        found.extend(self.hooks.bypassed(&self.nftables));
        found.extend(self.xfrm.iter().cloned());
        for nic in devices {
            if self.means == Means::Netlink {
                found.extend(hooks::on_device(&nic.name, self.nftables.is_on(&nic.name))?);
            }
            found.extend(tc::filters(&nic.name, nic.ifindex, &self.qdiscs)?);
            found.extend(tc::tcx(&nic.name, nic.ifindex)?);
            // On a port it is what stands in the way of our own.
            if !ports.contains(&nic.name) {
                found.extend(nic.xdp_programs.iter().map(|(mode, id)| {
                    format!("XDP program {id} ({mode}) on {} (see ip link)", nic.name)
                }));
            }
        }
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

    /// By what the hooks of netfilter are known.
    pub fn means(&self) -> &Means {
        &self.means
    }

    /// The ports there are, and their VLANs.
    fn devices(&self, ports: &[String]) -> Vec<&Nic> {
        let own = self.nics.iter().filter(|nic| ports.contains(&nic.name));
        own.chain(nic::vlans_of(&self.nics, ports)).collect()
    }
}

/// As nft calls a family; `None`: forwarded packets are not of it.
fn family_name(family: u8) -> Option<&'static str> {
    match family {
        NFPROTO_INET => Some("inet"),
        NFPROTO_IPV4 => Some("ip"),
        NFPROTO_IPV6 => Some("ip6"),
        NFPROTO_NETDEV => Some("netdev"),
        _ => None,
    }
}

/// As nft calls a hook of a family.
fn hook_name(family: u8, hook: u32) -> &'static str {
    match (family, hook) {
        (NFPROTO_NETDEV, 0) | (NFPROTO_INET, 5) => "ingress",
        (NFPROTO_NETDEV, 1) => "egress",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        _ => "unknown",
    }
}

fn find<'a>(mut attrs: Attrs<'a>, kind: u16) -> Option<&'a [u8]> {
    attrs.find(|attr| attr.kind == kind).map(|attr| attr.value)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}
