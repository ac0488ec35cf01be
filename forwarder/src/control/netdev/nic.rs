//! Properties and settings of interfaces, by netlink: rtnetlink, the ethtool family (channels,
//! features), the netdev family (XDP features).

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

use crate::control::netdev::ethtool;
use crate::control::netlink::message::{Attr, Attrs, Message, Request, u16_at, u32_at};
use crate::control::netlink::query::{GENL_HEADER, NlSock};
use crate::control::netlink::rtnl::ARPHRD_ETHER;
use crate::io::device::{Channels, Feature};
use crate::tables::vlan::TAGS_MAX;

const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg` in octets.
const IFINFO_HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_XFRM_IF_ID: u16 = 2;
const IFLA_STATS64: u16 = 23;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_LOWER_UP: u32 = 1 << 16;

/// NETDEV_XDP_ACT_BASIC.
pub const XDP_BASIC: u64 = 1;
/// NETDEV_XDP_ACT_NDO_XMIT: it sends frames that are redirected to it.
pub const XDP_NDO_XMIT: u64 = 1 << 2;
/// NETDEV_XDP_ACT_XSK_ZEROCOPY.
pub const XDP_ZEROCOPY: u64 = 1 << 3;
/// NETDEV_XDP_ACT_RX_SG: multi-buffer packets.
pub const XDP_MULTI_BUFFER: u64 = 1 << 5;

/// An interface.
#[derive(Debug, Clone, Default)]
pub struct Nic {
    /// Its ifindex.
    pub ifindex: u32,
    /// Escaped by [`string`](crate::control::netlink::message::string).
    pub name: String,
    /// Its name is UTF-8, so `name` is the kernel's name.
    pub is_named_as_told: bool,
    /// ARPHRD_*.
    pub arphrd: u16,
    /// IFF_*.
    pub flags: u32,
    /// IP MTU in octets.
    pub mtu: u32,
    /// ifindex of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// ifindex of the lower interface, for example of a VLAN; `None`: there is none in this
    /// namespace.
    pub lower: Option<u32>,
    /// `veth`, `vlan`, `bridge`, …; `None`: a NIC.
    pub kind: Option<String>,
    /// IFLA_NUM_RX_QUEUES: the RX queues that its device has been allocated, of which a NIC may use fewer.
    pub rx_queues: u32,
    /// IFLA_NUM_TX_QUEUES.
    pub tx_queues: u32,
    /// Of an xfrm interface: that of its policies and SAs, unless it has those of any (`external`) or of another namespace.
    pub if_id: Option<u32>,
    /// Its hardware address; `None`: not six octets long.
    pub mac: Option<[u8; 6]>,
    /// TX counters.
    pub tx: TxCounters,
    /// Programs attached, by mode.
    pub xdp_programs: Vec<(&'static str, u32)>,
}

/// Counters of `struct rtnl_link_stats64`, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TxCounters {
    /// Packets received or sent.
    pub packets: u64,
    /// Errors and drops.
    pub failed: u64,
}

impl Nic {
    /// Whether it carries Ethernet frames and packets can leave through it, which excludes lo.
    pub fn is_ethernet(&self) -> bool {
        self.arphrd == ARPHRD_ETHER && self.flags & IFF_LOOPBACK == 0
    }

    /// Whether it is a bond, whose members receive its frames.
    pub fn is_bond(&self) -> bool {
        self.kind.as_deref() == Some("bond")
    }

    /// IFF_UP.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Whether the link has carrier.
    pub fn has_carrier(&self) -> bool {
        self.flags & IFF_LOWER_UP != 0
    }
}

/// All interfaces of the namespace.
pub fn read() -> io::Result<Vec<Nic>> {
    read_by(&mut NlSock::open(NETLINK_ROUTE)?)
}

/// The same as [`read`], with an open socket of NETLINK_ROUTE.
pub fn read_by(socket: &mut NlSock) -> io::Result<Vec<Nic>> {
    socket.dump(RTM_GETLINK, &[0; IFINFO_HEADER], parse_link)
}

fn parse_link(message: &Message<'_>) -> Option<Nic> {
    let mut elsewhere = false;
    let mut nic = Nic {
        arphrd: u16_at(message.payload, 2)?,
        ifindex: u32_at(message.payload, 4)?,
        flags: u32_at(message.payload, 8)?,
        ..Nic::default()
    };
    for attr in message.attrs(IFINFO_HEADER) {
        match attr.kind {
            IFLA_ADDRESS => nic.mac = attr.value.try_into().ok(),
            IFLA_STATS64 => {
                // rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped,
                // tx_dropped.
                let words = attr.value.as_chunks::<8>().0;
                let word =
                    |at: usize| words.get(at).map_or(0, |octets| u64::from_ne_bytes(*octets));
                nic.tx = TxCounters { packets: word(1), failed: word(5) + word(7) };
            }
            IFLA_IFNAME => (nic.name, nic.is_named_as_told) = (attr.string(), attr.is_utf8()),
            IFLA_MTU => nic.mtu = attr.u32()?,
            IFLA_LINK => nic.lower = attr.u32(),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_MASTER => nic.master = attr.u32(),
            IFLA_NUM_RX_QUEUES => nic.rx_queues = attr.u32()?,
            IFLA_NUM_TX_QUEUES => nic.tx_queues = attr.u32()?,
            IFLA_LINKINFO => {
                nic.kind = find(attr.nested(), IFLA_INFO_KIND).map(|kind| kind.string());
                let data = find(attr.nested(), IFLA_INFO_DATA);
                let data = data.filter(|_| nic.kind.as_deref() == Some("xfrm"));
                let if_id = data.and_then(|data| find(data.nested(), IFLA_XFRM_IF_ID));
                nic.if_id = if_id.and_then(|attr| attr.u32()).filter(|if_id| *if_id != 0);
            }
            IFLA_XDP => nic.xdp_programs = attr.nested().filter_map(program).collect(),
            _ => {}
        }
    }
    nic.lower = nic.lower.filter(|_| !elsewhere);
    nic.if_id = nic.if_id.filter(|_| !elsewhere);
    Some(nic)
}

/// The VLAN interfaces on `ports`, directly or on another VLAN.
pub fn vlans_of<'a>(nics: &'a [Nic], ports: &[String]) -> Vec<&'a Nic> {
    let mut below: BTreeSet<u32> =
        nics.iter().filter(|nic| ports.contains(&nic.name)).map(|nic| nic.ifindex).collect();
    let mut found: Vec<&Nic> = Vec::new();
    // A VLAN may have a lower ifindex than its lower interface, so repeat for each tag.
    for _ in 0..TAGS_MAX {
        let more = nics.iter().filter(|nic| {
            nic.kind.as_deref() == Some("vlan")
                && nic.lower.is_some_and(|lower| below.contains(&lower))
                && !below.contains(&nic.ifindex)
        });
        let more: Vec<&Nic> = more.collect();
        below.extend(more.iter().map(|nic| nic.ifindex));
        found.extend(more);
    }
    found
}

fn program(attr: Attr<'_>) -> Option<(&'static str, u32)> {
    let mode = match attr.kind {
        IFLA_XDP_DRV_PROG_ID => "native",
        IFLA_XDP_SKB_PROG_ID => "generic",
        IFLA_XDP_HW_PROG_ID => "offload",
        _ => return None,
    };
    attr.u32().filter(|id| *id != 0).map(|id| (mode, id))
}

/// The first attribute of a kind.
pub(crate) fn find<'a>(mut attrs: Attrs<'a>, kind: u16) -> Option<Attr<'a>> {
    attrs.find(|attr| attr.kind == kind)
}

/// The numbers of queues of an interface, as `ethtool -l` prints them; combined channels count as
/// both RX and TX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues {
    /// RX queues.
    pub rx: u32,
    /// TX queues.
    pub tx: u32,
    /// Maximum RX queues.
    pub rx_max: u32,
    /// Maximum TX queues.
    pub tx_max: u32,
    /// How the numbers are set.
    pub set_by: QueuesSetBy,
}

/// How the numbers of an interface's queues are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueuesSetBy {
    /// By combined channels, or not at all.
    Combined,
    /// RX and TX separately, as on a veth: there are no combined channels.
    Apart,
    /// By the interfaces below it, as for a bond: its packets are on the queues on which its members received them.
    Below,
}

impl Queues {
    /// The command that sets this number of queues on interface `name`.
    pub fn command(&self, name: &str, queues: u32) -> String {
        match self.set_by {
            QueuesSetBy::Combined => format!("ethtool -L {name} combined {queues}"),
            QueuesSetBy::Apart => {
                format!("ethtool -L {name} rx {queues} tx {}", queues.min(self.tx_max))
            }
            QueuesSetBy::Below => {
                format!("for each interface below {name}: ethtool -L INTERFACE combined {queues}")
            }
        }
    }
}

/// The queues of an interface. A virtual interface without channels has those of the interfaces below it, because its packets
/// keep the queue on which they were received (`netif_get_rxqueue`); a NIC without channels has one of each.
pub fn queues(ifindex: u32) -> io::Result<Queues> {
    match ethtool::channels(ifindex)? {
        Some(channels) => Ok(of_channels(&channels)),
        None => of_virtual(ifindex, &read()?, DEPTH_MAX, ethtool::channels),
    }
}

/// Interfaces on each other that are followed: more than the kernel permits (`MAX_NEST_DEV`).
const DEPTH_MAX: u32 = 8;

fn of_virtual(
    ifindex: u32,
    nics: &[Nic],
    depth: u32,
    channels: fn(u32) -> io::Result<Option<Channels>>,
) -> io::Result<Queues> {
    let nic = nics.iter().find(|nic| nic.ifindex == ifindex && nic.kind.is_some());
    let Some(nic) = nic.filter(|nic| nic.rx_queues > 1 && depth > 0) else {
        return Ok(of_channels(&Channels::default()));
    };
    let is_below = |other: &&Nic| other.master == Some(ifindex) || nic.lower == Some(other.ifindex);
    let rx_below = nics.iter().filter(is_below).map(|other| {
        let queues = match channels(other.ifindex)? {
            Some(channels) => Ok(of_channels(&channels)),
            None => of_virtual(other.ifindex, nics, depth - 1, channels),
        };
        queues.map(|queues| queues.rx)
    });
    let rx_below = rx_below.collect::<io::Result<Vec<u32>>>()?.into_iter().max();
    // Without one below, or with one in another namespace, it is not known how many are used of those that it has.
    let rx = nic.rx_queues.min(rx_below.unwrap_or(1));
    let tx = nic.tx_queues.clamp(1, rx);
    Ok(Queues { rx, tx, rx_max: rx, tx_max: tx, set_by: QueuesSetBy::Below })
}

fn of_channels(channels: &Channels) -> Queues {
    let (now, max) = (channels.now, channels.max);
    let (rx, tx) = ((now.rx + now.combined).max(1), (now.tx + now.combined).max(1));
    Queues {
        rx,
        tx,
        rx_max: max.rx.max(max.combined).max(rx),
        tx_max: max.tx.max(max.combined).max(tx),
        set_by: match max.combined == 0 && max.rx > 0 {
            true => QueuesSetBy::Apart,
            false => QueuesSetBy::Combined,
        },
    }
}

/// The number of RX queues, see [`queues`].
pub fn rx_queues(ifindex: u32) -> io::Result<u32> {
    Ok(queues(ifindex)?.rx)
}

/// Kernel names of the features that are on: `rx-lro`, `rx-gro-hw`, ….
pub fn features(ifindex: u32) -> io::Result<BTreeSet<String>> {
    let active = ethtool::ask(ifindex, ethtool::FEATURES_GET, |attrs| {
        let active = find(attrs, ETHTOOL_A_FEATURES_ACTIVE)?.nested();
        let bits = find(active, ETHTOOL_A_BITSET_BITS)?.nested();
        Some(bits.filter_map(feature_name).collect())
    });
    Ok(active?.unwrap_or_default())
}

/// Features that strip VLAN tags from received frames, and their names in `ethtool -K`.
const STRIPPING: [(&str, &str); 2] =
    [("rx-vlan-hw-parse", "rxvlan"), ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse")];

/// VLAN tags are stripped from received frames before an XDP program sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripping {
    /// Arguments for `ethtool -K` to turn it off: `eth0 rxvlan off`.
    pub off: String,
    /// The driver does not permit turning it off.
    pub fixed: bool,
}

/// Whether an interface strips VLAN tags. A veth has the feature on, but its frames contain no tag
/// to strip. A driver whose features cannot be read has none.
pub fn vlan_stripping(nic: &Nic) -> Option<Stripping> {
    if nic.kind.as_deref() == Some("veth") {
        return None;
    }
    stripping(&nic.name, &ethtool::features(nic.ifindex).ok()?)
}

fn stripping(name: &str, features: &[Feature]) -> Option<Stripping> {
    let option = |feature: &Feature| {
        let (_, option) = STRIPPING.iter().find(|(stripping, _)| feature.name == *stripping)?;
        feature.on.then_some((*option, feature.fixed))
    };
    let on: Vec<(&str, bool)> = features.iter().filter_map(option).collect();
    let off = on.iter().fold(name.to_owned(), |line, (option, _)| format!("{line} {option} off"));
    let fixed = on.iter().any(|(_, fixed)| *fixed);
    (!on.is_empty()).then_some(Stripping { off, fixed })
}

fn feature_name(bit: Attr<'_>) -> Option<String> {
    find(bit.nested(), ETHTOOL_A_BITSET_BIT_NAME).map(|name| name.string())
}

/// NETDEV_XDP_ACT_* of the driver; `None` if the kernel (before 6.3) does not report them.
pub fn xdp_features(ifindex: u32) -> io::Result<Option<u64>> {
    netdev(ifindex, NETDEV_A_DEV_XDP_FEATURES, |value| {
        value.first_chunk().map(|octets| u64::from_ne_bytes(*octets))
    })
}

/// Maximum number of descriptors for one packet in zero-copy mode; `None`: one, or the kernel
/// (before 6.6) does not report it.
pub fn zerocopy_segments(ifindex: u32) -> io::Result<Option<u32>> {
    netdev(ifindex, NETDEV_A_DEV_XDP_ZC_MAX_SEGS, |value| {
        value.first_chunk().map(|octets| u32::from_ne_bytes(*octets))
    })
}

/// Reads one attribute of an interface from the netdev family.
fn netdev<T>(
    ifindex: u32,
    attribute: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut socket = NlSock::open(NETLINK_GENERIC)?;
    let family = match socket.family("netdev") {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        family => family?,
    };
    socket.get(
        |flags| {
            Request::new(family, flags, &[NETDEV_CMD_DEV_GET, 1, 0, 0])
                .attr(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes())
        },
        |message| read(find(message.attrs(GENL_HEADER), attribute)?.value),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::device::ChannelCounts;

    #[test]
    fn vlans_are_found_on_ports_and_on_each_other() {
        let nic = |ifindex: u32, name: &str, lower: Option<u32>, kind: Option<&str>| Nic {
            ifindex,
            name: name.into(),
            lower,
            kind: kind.map(str::to_owned),
            ..Nic::default()
        };
        let vlan = Some("vlan");
        let nics = [
            nic(3, "inner", Some(9), vlan),
            nic(4, "eth0", None, None),
            nic(5, "eth1", None, None),
            nic(6, "eth1.1", Some(5), vlan),
            nic(7, "macvlan0", Some(4), Some("macvlan")),
            nic(8, "elsewhere", None, vlan),
            nic(9, "outer", Some(4), vlan),
        ];
        let found: Vec<&str> =
            vlans_of(&nics, &["eth0".to_owned()]).iter().map(|nic| nic.name.as_str()).collect();
        assert_eq!(found, ["outer", "inner"]);
    }

    #[test]
    fn the_command_that_sets_queues_matches_the_channels() {
        let counts =
            |rx, tx, combined| ChannelCounts { rx, tx, combined, ..ChannelCounts::default() };
        let of = |now, max| of_channels(&Channels { now, max });
        let nic = of(counts(0, 0, 2), counts(0, 0, 8));
        assert_eq!((nic.rx, nic.tx, nic.rx_max, nic.set_by), (2, 2, 8, QueuesSetBy::Combined));
        assert_eq!(nic.command("eth0", 4), "ethtool -L eth0 combined 4");
        let veth = of(counts(4, 1, 0), counts(8, 2, 0));
        assert_eq!((veth.rx, veth.tx, veth.rx_max, veth.tx_max), (4, 1, 8, 2));
        assert_eq!(veth.command("veth0", 1), "ethtool -L veth0 rx 1 tx 1");
        assert_eq!(veth.command("veth0", 4), "ethtool -L veth0 rx 4 tx 2");
        // A driver with both kinds of channels.
        let both = of(counts(0, 0, 4), counts(4, 4, 4));
        assert_eq!(both.command("eth0", 2), "ethtool -L eth0 combined 2");
        let none = of(ChannelCounts::default(), ChannelCounts::default());
        assert_eq!((none.rx, none.tx, none.rx_max, none.set_by), (1, 1, 1, QueuesSetBy::Combined));
    }

    #[test]
    fn a_bond_has_the_queues_of_its_members() {
        let nic = |ifindex, kind: Option<&str>, master, lower, queues| Nic {
            ifindex,
            kind: kind.map(str::to_owned),
            master,
            lower,
            rx_queues: queues,
            tx_queues: queues,
            ..Nic::default()
        };
        // Each NIC has as many queues as its ifindex, and has been allocated more.
        let channels = |ifindex| {
            let now = ChannelCounts { combined: ifindex, ..ChannelCounts::default() };
            Ok((ifindex < 10).then_some(Channels { now, max: now }))
        };
        let nics = [
            nic(2, None, Some(10), None, 64),
            nic(4, None, Some(10), None, 64),
            nic(10, Some("bond"), None, None, 16),
            nic(11, Some("macvlan"), None, Some(10), 3),
            nic(12, Some("macvlan"), None, Some(10), 1),
            nic(13, Some("macvlan"), None, None, 5),
            nic(14, None, None, None, 64),
            // They are below each other, which the kernel refuses.
            nic(15, Some("bond"), Some(16), None, 16),
            nic(16, Some("bond"), Some(15), None, 16),
        ];
        let rx = |ifindex| of_virtual(ifindex, &nics, DEPTH_MAX, channels).expect("answers").rx;
        assert_eq!([10, 11, 12, 13, 14, 15, 99].map(rx), [4, 3, 1, 1, 1, 1, 1]);
        let bond = of_virtual(10, &nics, DEPTH_MAX, channels).expect("answers");
        assert_eq!((bond.tx, bond.rx_max, bond.set_by), (4, 4, QueuesSetBy::Below));
        assert!(bond.command("bond0", 2).contains("below bond0: ethtool -L INTERFACE combined 2"));
        let without_members = of_virtual(10, &nics[2..], DEPTH_MAX, channels).expect("answers");
        assert_eq!(without_members.rx, 1);
    }

    #[test]
    fn tag_stripping_is_detected_by_the_features_that_are_on() {
        let feature = |name: &str, on, fixed| Feature { name: name.to_owned(), on, fixed };
        let other = feature("rx-gro", true, false);
        assert_eq!(
            stripping("eth0", &[other.clone(), feature("rx-vlan-hw-parse", false, true)]),
            None
        );
        let tagged = [other, feature("rx-vlan-hw-parse", true, false)];
        let expected = Stripping { off: "eth0 rxvlan off".to_owned(), fixed: false };
        assert_eq!(stripping("eth0", &tagged), Some(expected));
        let both = [&tagged[..], &[feature("rx-vlan-stag-hw-parse", true, true)]].concat();
        let expected =
            Stripping { off: "eth0 rxvlan off rx-vlan-stag-hw-parse off".to_owned(), fixed: true };
        assert_eq!(stripping("eth0", &both), Some(expected));
    }

    #[test]
    fn the_loopback_interface_is_read_and_is_no_ethernet() {
        let nics = read().expect("dumps");
        let lo = nics.iter().find(|nic| nic.name == "lo").expect("there is one");
        assert!(!lo.is_ethernet() && lo.mtu > 0 && lo.ifindex == 1);
        assert!(lo.xdp_programs.is_empty() && lo.master.is_none());
        assert_eq!(rx_queues(lo.ifindex).expect("answers"), 1);
    }
}
