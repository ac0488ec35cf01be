//! nftables: base chains that forwarded packets pass, and flowtables that forward past them.

use std::{fmt, io};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{NFPROTO_INET, NFPROTO_NETDEV, be32, family_name, find, string};
use crate::control::netlink::message::{Attr, Attrs, Message, u8_at};
use crate::control::netlink::query::NlSock;

/// `struct nfgenmsg` in octets.
const NFGEN_HEADER: usize = 4;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN.
const GETCHAIN: u16 = 10 << 8 | 4;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETFLOWTABLE.
const GETFLOWTABLE: u16 = 10 << 8 | 23;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
/// Of the attributes in NFTA_HOOK_DEVS and NFTA_FLOWTABLE_HOOK_DEVS.
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;
const NFTA_FLOWTABLE_TABLE: u16 = 1;
const NFTA_FLOWTABLE_NAME: u16 = 2;
const NFTA_FLOWTABLE_HOOK: u16 = 3;
const NFTA_FLOWTABLE_HOOK_DEVS: u16 = 3;

/// What there is of it in the network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nftables {
    chains: Vec<Chain>,
    flowtables: Vec<Flowtable>,
}

impl Nftables {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn read() -> io::Result<Nftables> {
        let mut socket = match NlSock::open(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                return Ok(Nftables::default());
            }
            socket => socket?,
        };
        // Family 0: all. An empty chain counts too: rules come and go.
        match socket.dump(GETCHAIN, &[0; NFGEN_HEADER], parse_chain) {
            // nfnetlink knows no nf_tables: the kernel has none.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Nftables::default()),
            chains => Ok(Nftables {
                chains: chains?,
                flowtables: socket.dump(GETFLOWTABLE, &[0; NFGEN_HEADER], parse_flowtable)?,
            }),
        }
    }

    /// A line for each chain and flowtable that packets between `ports` pass.
    pub fn bypassed<'a>(&'a self, ports: &'a [String]) -> impl Iterator<Item = String> + 'a {
        let chains = self.chains.iter().filter_map(|chain| describe(chain, ports));
        chains.chain(self.flowtables.iter().filter_map(|table| table.describe(ports)))
    }

    /// Whether a chain or flowtable is on the interface.
    pub fn is_on(&self, name: &str) -> bool {
        let chains = self.chains.iter().flat_map(|chain| &chain.devices);
        let mut devices = chains.chain(self.flowtables.iter().flat_map(|table| &table.devices));
        devices.any(|device| device.is_port(name))
    }

    /// Whether there is a chain of type nat in the family, at whatever hook: all of them work by
    /// NAT's own netfilter hooks.
    pub fn has_nat(&self, family: u8) -> bool {
        let of_family = |chain: &&Chain| chain.family == family || chain.family == NFPROTO_INET;
        self.chains.iter().filter(of_family).any(|chain| chain.kind == "nat")
    }
}

/// Flows that are forwarded at the ingress of its devices, past every rule that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flowtable {
    family: u8,
    table: String,
    name: String,
    devices: Vec<Device>,
}

impl Flowtable {
    /// `None` when it is on none of the ports.
    fn describe(&self, ports: &[String]) -> Option<String> {
        let Flowtable { table, name, .. } = self;
        let family = family_name(self.family)?;
        let devices = on_ports(&self.devices, ports)?;
        Some(format!("nftables: flowtable {family} {table} {name} on {devices}"))
    }
}

fn parse_flowtable(message: &Message<'_>) -> Option<Flowtable> {
    let attrs = message.attrs(NFGEN_HEADER);
    let text = |kind| find(attrs, kind).map(string).unwrap_or_default();
    let hook = Attrs(find(attrs, NFTA_FLOWTABLE_HOOK).unwrap_or_default());
    let devices = Attrs(find(hook, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default());
    Some(Flowtable {
        family: u8_at(message.payload, 0)?,
        table: text(NFTA_FLOWTABLE_TABLE),
        name: text(NFTA_FLOWTABLE_NAME),
        devices: devices.map(Device::of_attr).collect(),
    })
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
    devices: Vec<Device>,
}

/// `None` for chains without a hook, which are only jumped to.
fn parse_chain(message: &Message<'_>) -> Option<Chain> {
    let attrs = message.attrs(NFGEN_HEADER);
    let text = |kind| find(attrs, kind).map(string).unwrap_or_default();
    let hook = Attrs(find(attrs, NFTA_CHAIN_HOOK)?);
    let one = find(hook, NFTA_HOOK_DEV).map(|value| Device::of(NFTA_DEVICE_NAME, value));
    let mut devices: Vec<Device> = one.into_iter().collect();
    devices.extend(Attrs(find(hook, NFTA_HOOK_DEVS).unwrap_or_default()).map(Device::of_attr));
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

/// As `nft list chains` says it; `None` when forwarded packets do not pass there.
fn describe(chain: &Chain, ports: &[String]) -> Option<String> {
    let family = family_name(chain.family)?;
    let on_ports = || on_ports(&chain.devices, ports);
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

/// Which interfaces a chain or flowtable is on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    Name(String),
    /// All whose names begin so; `eth*` in a ruleset.
    Prefix(String),
    /// Of an attribute that only newer kernels send.
    Unknown,
}

impl Device {
    fn of_attr(attr: Attr<'_>) -> Device {
        Device::of(attr.kind, attr.value)
    }

    /// Linux 6.17 has an attribute of its own for a prefix; 6.16 sends it as a name without the NUL
    /// at its end (`nft_nla_put_hook_dev`).
    fn of(kind: u16, value: &[u8]) -> Device {
        match kind {
            NFTA_DEVICE_NAME if value.ends_with(&[0]) => Device::Name(string(value)),
            NFTA_DEVICE_NAME | NFTA_DEVICE_PREFIX => Device::Prefix(string(value)),
            _ => Device::Unknown,
        }
    }

    fn is_port(&self, port: &str) -> bool {
        match self {
            Device::Name(name) => port == name,
            Device::Prefix(prefix) => port.starts_with(prefix),
            Device::Unknown => true,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Name(name) => f.write_str(name),
            Device::Prefix(prefix) => write!(f, "{prefix}*"),
            Device::Unknown => f.write_str("interfaces of an unknown kind"),
        }
    }
}

/// Those of the devices that are ports, as text; `None`: none is.
fn on_ports(devices: &[Device], ports: &[String]) -> Option<String> {
    let is_port = |device: &&Device| ports.iter().any(|port| device.is_port(port));
    let at: Vec<String> = devices.iter().filter(is_port).map(Device::to_string).collect();
    (!at.is_empty()).then(|| at.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::{NFPROTO_IPV4, NFPROTO_IPV6};
    use super::*;
    use crate::control::netlink::message::Request;

    fn chain(family: u8, hook: u32, devices: &[&str]) -> Chain {
        Chain {
            family,
            table: "t".into(),
            name: "c".into(),
            kind: "filter".into(),
            hook,
            priority: -10,
            drops: true,
            devices: devices
                .iter()
                .map(|name| match name.strip_suffix('*') {
                    Some(prefix) => Device::of(NFTA_DEVICE_PREFIX, prefix.as_bytes()),
                    None => Device::of(NFTA_DEVICE_NAME, format!("{name}\0").as_bytes()),
                })
                .collect(),
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
    fn devices_are_read_as_each_kernel_sends_them() {
        assert_eq!(Device::of(NFTA_DEVICE_NAME, b"eth0\0"), Device::Name("eth0".into()));
        let prefix = Device::Prefix("eth".into());
        assert_eq!(Device::of(NFTA_DEVICE_PREFIX, b"eth\0"), prefix, "Linux 6.17");
        assert_eq!(Device::of(NFTA_DEVICE_NAME, b"eth"), prefix, "Linux 6.16");
        assert_eq!(prefix.to_string(), "eth*");
        assert!(prefix.is_port("eth7") && !prefix.is_port("lo"));
        assert!(Device::of(3, b"whatever").is_port("eth0"), "a newer kernel");

        let be = |n: u32| n.to_be_bytes();
        let devices = Request::new(0, 0, &[]).attr(NFTA_DEVICE_PREFIX, b"rt-\0").finish(0);
        let hook = Request::new(0, 0, &[])
            .attr(NFTA_HOOK_HOOKNUM, &be(0))
            .attr(NFTA_HOOK_PRIORITY, &be(0))
            .attr(0x8000 | NFTA_HOOK_DEVS, &devices[16..])
            .finish(0);
        let message = Request::new(GETCHAIN, 0, &[NFPROTO_NETDEV, 0, 0, 0])
            .attr(0x8000 | NFTA_CHAIN_HOOK, &hook[16..])
            .finish(0);
        let payload = &message[16..];
        let chain = parse_chain(&Message { kind: GETCHAIN, flags: 0, seq: 0, payload });
        assert_eq!(chain.expect("a base chain").devices, [Device::Prefix("rt-".into())]);
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
