//! nftables: base chains of forwarded packets, and the interfaces of flowtables. Their rules are read by
//! [`super::ruleset`].

use std::{fmt, io};

use super::{NFPROTO_INET, NFPROTO_NETDEV, be32, family_name, find, hook_name, string};
use crate::control::netlink::message::{Attr, Attrs, Message, Request, u8_at};
use crate::control::netlink::query::NlSock;

/// `struct nfgenmsg` in octets.
const NFGEN_HEADER: usize = 4;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN.
const GETCHAIN: u16 = 10 << 8 | 4;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN.
const GETGEN: u16 = 10 << 8 | 16;
const NFTA_GEN_ID: u16 = 1;
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
/// An attribute in NFTA_HOOK_DEVS and NFTA_FLOWTABLE_HOOK_DEVS.
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;
const NF_NETDEV_INGRESS: u32 = 0;
const NF_NETDEV_EGRESS: u32 = 1;
const NF_INET_INGRESS: u32 = 5;
const NFTA_FLOWTABLE_HOOK: u16 = 3;
const NFTA_FLOWTABLE_HOOK_DEVS: u16 = 3;

/// The chains and flowtables of the network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nftables {
    /// NFTA_GEN_ID, which every transaction increments, as it was before the rest was read.
    generation: u32,
    chains: Vec<Chain>,
    flowtables: Vec<Flowtable>,
}

impl Nftables {
    /// Reads them. `socket`: of NETLINK_NETFILTER. `None`: the kernel has no nf_tables.
    ///
    /// # Errors
    /// When a request fails.
    pub fn read(socket: &mut NlSock) -> io::Result<Option<Nftables>> {
        let generation = socket.get(
            |flags| Request::new(GETGEN, flags, &[0; NFGEN_HEADER]),
            |message| find(message.attrs(NFGEN_HEADER), NFTA_GEN_ID).and_then(be32),
        );
        let generation = match generation {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            generation => generation?.unwrap_or_default(),
        };
        // Family 0: all. An empty chain counts too, because rules may be added at any time.
        Ok(Some(Nftables {
            generation,
            chains: socket.dump(GETCHAIN, &[0; NFGEN_HEADER], parse_chain)?,
            flowtables: socket.dump(GETFLOWTABLE, &[0; NFGEN_HEADER], parse_flowtable)?,
        }))
    }

    /// The kernel's generation id.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether `now` is different without a transaction, of which the kernel sends no notification: a table
    /// vanishes when its owner ends (`nft_rcv_nl_event`).
    pub fn is_changed_untold(&self, now: &Nftables) -> bool {
        self.generation == now.generation && self != now
    }

    /// Whether there are chains that workers must apply: at a hook that forwarded packets or the router's
    /// own pass, whatever the interface; or flowtables, whose connections are the kernel's. `has_ipsec`: packets for the
    /// router itself may be of IPsec, and pass chains at input.
    pub fn concerns_workers(&self, has_ipsec: bool) -> bool {
        let at_hook = |chain: &Chain| {
            let hook = chain.hook;
            chain.is_of_devices()
                || matches!(hook, None | Some(0 | 2 | 3 | 4))
                || hook == Some(1) && has_ipsec
        };
        let of_ip = |chain: &Chain| family_name(chain.family).is_some();
        let has_flowtable = self.flowtables.iter().any(|table| family_name(table.family).is_some());
        has_flowtable || self.chains.iter().any(|chain| of_ip(chain) && at_hook(chain))
    }

    /// A line for each chain at the egress of an interface of `names`: packets that leave there are the kernel's.
    pub fn at_egress<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = String> + 'a {
        let is_egress =
            |chain: &&Chain| chain.family == NFPROTO_NETDEV && chain.hook == Some(NF_NETDEV_EGRESS);
        self.chains.iter().filter(is_egress).filter_map(|chain| chain.describe_on(names))
    }

    /// Whether a listed chain or flowtable explains nftables' function at a hook; for family
    /// netdev, at a hook of `device`.
    pub fn is_at(&self, family: u8, hook: u32, device: &str) -> bool {
        let is_on = |devices: &[Device]| devices.iter().any(|on| on.is_port(device));
        self.chains.iter().any(|chain| match (family, chain.family) {
            (NFPROTO_NETDEV, _) if !chain.is_of_devices() => false,
            // The ingress hook of family inet has a different number.
            (NFPROTO_NETDEV, NFPROTO_INET) => hook == NF_NETDEV_INGRESS && is_on(&chain.devices),
            (NFPROTO_NETDEV, _) => chain.hook == Some(hook) && is_on(&chain.devices),
            (family, of) => (of == family || of == NFPROTO_INET) && chain.hook == Some(hook),
        }) || family == NFPROTO_NETDEV
            && hook == NF_NETDEV_INGRESS
            && self.flowtables.iter().any(|table| is_on(&table.devices))
    }

    /// Whether the family has a chain of type nat at any hook: all of them use NAT's own netfilter
    /// hooks.
    pub fn has_nat(&self, family: u8) -> bool {
        let of_family = |chain: &&Chain| chain.family == family || chain.family == NFPROTO_INET;
        self.chains.iter().filter(of_family).any(|chain| chain.kind == "nat")
    }
}

/// A flowtable: forwards packets of connections that rules added to it, at the ingress of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flowtable {
    family: u8,
    devices: Vec<Device>,
}

fn parse_flowtable(message: &Message<'_>) -> Option<Flowtable> {
    let attrs = message.attrs(NFGEN_HEADER);
    let hook = Attrs(find(attrs, NFTA_FLOWTABLE_HOOK).unwrap_or_default());
    let devices = Attrs(find(hook, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default());
    Some(Flowtable {
        family: u8_at(message.payload, 0)?,
        devices: devices.map(Device::of_attr).collect(),
    })
}

/// The fields of a base chain that are needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    kind: String,
    /// `None`: the hook could not be parsed.
    hook: Option<u32>,
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
    // If there is one, the kernel sends it twice.
    devices.dedup();
    Some(Chain {
        family: u8_at(message.payload, 0)?,
        table: text(NFTA_CHAIN_TABLE),
        name: text(NFTA_CHAIN_NAME),
        kind: text(NFTA_CHAIN_TYPE),
        hook: find(hook, NFTA_HOOK_HOOKNUM).and_then(be32),
        priority: find(hook, NFTA_HOOK_PRIORITY).and_then(be32).unwrap_or_default() as i32,
        // NF_DROP is 0.
        drops: find(attrs, NFTA_CHAIN_POLICY).and_then(be32) == Some(0),
        devices,
    })
}

impl Chain {
    /// Whether it is at hooks of interfaces rather than of a protocol.
    fn is_of_devices(&self) -> bool {
        match self.family {
            NFPROTO_NETDEV => self.hook.is_some(),
            NFPROTO_INET => self.hook == Some(NF_INET_INGRESS),
            _ => false,
        }
    }

    /// Describes a chain that is on interfaces.
    fn describe_on(&self, names: &[String]) -> Option<String> {
        let hook = self.hook.filter(|_| self.is_of_devices())?;
        let devices = on_ports(&self.devices, names)?;
        self.line(&format!("{} on {devices}", hook_name(self.family, hook)))
    }

    fn line(&self, hook: &str) -> Option<String> {
        let Chain { table, name, kind, priority, .. } = self;
        let family = family_name(self.family)?;
        let policy = if self.drops { ", policy drop" } else { "" };
        Some(format!(
            "nftables: chain {family} {table} {name} (type {kind}, hook {hook}, priority \
             {priority}{policy})"
        ))
    }
}

/// The interfaces of a chain or flowtable.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    Name(String),
    /// All interfaces whose names begin with this; `eth*` in a ruleset.
    Prefix(String),
    /// An attribute that this version does not know.
    Unknown,
}

impl Device {
    fn of_attr(attr: Attr<'_>) -> Device {
        Device::of(attr.kind, attr.value)
    }

    /// Linux 6.17 has a separate attribute for a prefix; 6.16 sends it as a name without the
    /// terminating NUL (`nft_nla_put_hook_dev`).
    fn of(kind: u16, value: &[u8]) -> Device {
        match kind {
            NFTA_DEVICE_NAME if value.ends_with(&[0]) => Device::Name(string(value)),
            NFTA_DEVICE_NAME | NFTA_DEVICE_PREFIX => Device::Prefix(prefix(value)),
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

/// The part of the prefix that is valid UTF-8: a wildcard may end within a character, while
/// interface names contain all of its octets.
fn prefix(value: &[u8]) -> String {
    let octets = value.split(|octet| *octet == 0).next().unwrap_or_default();
    octets.utf8_chunks().next().map(|chunk| chunk.valid().to_owned()).unwrap_or_default()
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

/// The devices that are ports, as text; `None` if there are none.
fn on_ports(devices: &[Device], ports: &[String]) -> Option<String> {
    let is_port = |device: &&Device| ports.iter().any(|port| device.is_port(port));
    let at: Vec<String> = devices.iter().filter(is_port).map(Device::to_string).collect();
    (!at.is_empty()).then(|| at.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::{NFPROTO_IPV4, NFPROTO_IPV6};
    use super::*;

    fn chain(family: u8, hook: u32, devices: &[&str]) -> Chain {
        Chain {
            family,
            table: "t".into(),
            name: "c".into(),
            kind: "filter".into(),
            hook: Some(hook),
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

    impl Nftables {
        /// A chain at the ingress of an interface.
        pub fn on_ingress(device: &str) -> Nftables {
            Nftables { chains: vec![chain(NFPROTO_NETDEV, 0, &[device])], ..Nftables::default() }
        }
    }

    #[test]
    fn chains_concern_workers_and_those_at_egress_are_described() {
        let ports = ["eth0".to_owned(), "eth1".to_owned()];
        let of = |family, hook, devices: &[&str]| {
            let chains = vec![chain(family, hook, devices)];
            Nftables { chains, ..Nftables::default() }
        };
        let shown = |family, hook, devices: &[&str]| {
            let nftables = of(family, hook, devices);
            assert!(nftables.concerns_workers(false));
            let lines: Vec<String> = nftables.at_egress(&ports).collect();
            assert!(lines.len() < 2, "{lines:?}");
            lines.into_iter().next()
        };
        assert_eq!(
            shown(NFPROTO_NETDEV, 1, &["eth9", "eth1"]).as_deref(),
            Some(
                "nftables: chain netdev t c (type filter, hook egress on eth1, priority -10, policy drop)"
            )
        );
        assert!(shown(NFPROTO_NETDEV, 1, &["eth*"]).is_some());
        assert!(shown(NFPROTO_NETDEV, 1, &["lo"]).is_none());
        assert!(shown(NFPROTO_NETDEV, 0, &["eth1"]).is_none(), "workers run it");
        assert!(shown(NFPROTO_INET, 5, &["eth1"]).is_none());
        for (hook, concerns) in [(0, true), (1, false), (2, true), (3, true), (4, true)] {
            for family in [NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET] {
                assert_eq!(of(family, hook, &[]).concerns_workers(false), concerns, "hook {hook}");
            }
        }
        let nfproto_bridge = 7;
        assert!(!of(nfproto_bridge, 2, &[]).concerns_workers(false));
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
        let cut = Device::of(NFTA_DEVICE_PREFIX, b"gr\xc3\0");
        assert!(cut.is_port("gr\u{f6}n0"), "a wildcard may end within a character");

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
    fn a_function_of_nftables_is_explained_only_at_the_hooks_of_a_chain() {
        let of = |family, hook, devices: &[&str]| {
            let chains = vec![chain(family, hook, devices)];
            Nftables { chains, ..Nftables::default() }
        };
        let wildcard = of(NFPROTO_NETDEV, 0, &["eth*"]);
        assert!(wildcard.is_at(NFPROTO_NETDEV, 0, "eth0"));
        assert!(!wildcard.is_at(NFPROTO_NETDEV, 1, "eth0"), "ingress is not egress");
        assert!(!wildcard.is_at(NFPROTO_NETDEV, 0, "lo"));
        assert!(!wildcard.is_at(NFPROTO_IPV4, 0, ""));
        assert!(of(NFPROTO_INET, 5, &["eth0"]).is_at(NFPROTO_NETDEV, 0, "eth0"));
        let forward = of(NFPROTO_INET, 2, &[]);
        assert!(forward.is_at(NFPROTO_IPV6, 2, "") && !forward.is_at(NFPROTO_IPV6, 0, ""));
        assert!(!of(NFPROTO_IPV4, 2, &[]).is_at(NFPROTO_IPV6, 2, ""));
        let devices = vec![Device::Name("eth0".into())];
        let flowtables = vec![Flowtable { family: NFPROTO_INET, devices }];
        let flows = Nftables { flowtables, ..Nftables::default() };
        assert!(flows.concerns_workers(false), "its connections are the kernel's");
        assert_eq!(flows.at_egress(&["eth0".to_owned()]).count(), 0, "it is no filter");
        assert!(flows.is_at(NFPROTO_NETDEV, 0, "eth0") && !flows.is_at(NFPROTO_NETDEV, 0, "eth1"));
    }

    #[test]
    fn a_chain_is_parsed_and_a_malformed_message_is_no_chain() {
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
        assert_eq!((chain.name.as_str(), chain.hook, chain.priority), ("FORWARD", Some(2), -5));
        assert!(!chain.drops);
        for len in 0..payload.len() {
            // Truncated messages do not panic; if the hook is complete, they are still a base
            // chain.
            let _ = read(&payload[..len]);
        }
        assert!(read(&[]).is_none());
        // A hook that cannot be parsed counts as a hook.
        let message = Request::new(GETCHAIN, 0, &[NFPROTO_IPV4, 0, 0, 0])
            .attr(0x8000 | NFTA_CHAIN_HOOK, &[])
            .finish(0);
        let chains = read(&message[16..]).into_iter().collect();
        let nftables = Nftables { chains, ..Nftables::default() };
        assert!(nftables.concerns_workers(false));
    }
}
