//! What rules read of IPsec: `ipsec` and `rt ipsec` of nftables (net/netfilter/nft_xfrm.c, nft_rt.c), and the match
//! `policy` of iptables (net/netfilter/xt_policy.c). A packet that workers protect or open has one SA.

use std::fmt;
use std::net::IpAddr;

use super::op::Flow;
use super::packet::Packet;
use crate::ipsec::{Mode, State};
use crate::netfilter::Hook;
use crate::wire::Protocol;

/// An SA, as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaInfo {
    /// Source and destination.
    pub ends: [IpAddr; 2],
    /// ESP or AH.
    pub protocol: Protocol,
    /// Security parameters index.
    pub spi: u32,
    /// What templates ask for.
    pub reqid: u32,
    /// Its mode.
    pub mode: Mode,
}

impl SaInfo {
    /// Of an SA.
    #[inline]
    pub fn of(state: &State) -> SaInfo {
        let config = state.config();
        SaInfo {
            ends: [config.src, config.dst],
            protocol: state.protocol(),
            spi: config.spi,
            reqid: config.reqid,
            mode: config.mode,
        }
    }
}

/// XFRM_POLICY_*: which SA is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XfrmDir {
    /// The one that the packet was received with.
    In,
    /// The one that the packet is to be sent with.
    Out,
}

impl XfrmDir {
    fn sa_of(self, packet: &Packet<'_>) -> Option<SaInfo> {
        match self {
            XfrmDir::In => packet.received_by,
            XfrmDir::Out => packet.sent_by,
        }
    }
}

/// As nft and iptables write it.
impl fmt::Display for XfrmDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XfrmDir::In => "in",
            XfrmDir::Out => "out",
        })
    }
}

/// Keys of `ipsec` and `rt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XfrmKey {
    /// NFT_XFRM_KEY_DADDR_IP4: destination of a tunnel, 32 bits, network byte order.
    Daddr4,
    /// NFT_XFRM_KEY_DADDR_IP6: destination of a tunnel, 128 bits, network byte order.
    Daddr6,
    /// NFT_XFRM_KEY_SADDR_IP4: source of a tunnel, 32 bits, network byte order.
    Saddr4,
    /// NFT_XFRM_KEY_SADDR_IP6: source of a tunnel, 128 bits, network byte order.
    Saddr6,
    /// NFT_XFRM_KEY_REQID: 32 bits, host byte order.
    Reqid,
    /// NFT_XFRM_KEY_SPI: 32 bits, network byte order.
    Spi,
    /// NFT_RT_XFRM: whether there is an SA, 8 bits.
    Present,
}

/// What an expression reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XfrmQuery {
    /// Of which SA.
    pub dir: XfrmDir,
    /// How many SAs are applied to the packet before that one.
    pub spnum: u8,
    /// What.
    pub key: XfrmKey,
}

impl XfrmQuery {
    /// `rt ipsec`.
    pub const RT: XfrmQuery = XfrmQuery { dir: XfrmDir::Out, spnum: 0, key: XfrmKey::Present };

    /// Octets that it writes to the register.
    pub fn octets(self) -> usize {
        match self.key {
            XfrmKey::Daddr4 | XfrmKey::Saddr4 | XfrmKey::Reqid | XfrmKey::Spi => 4,
            XfrmKey::Daddr6 | XfrmKey::Saddr6 => 16,
            XfrmKey::Present => 1,
        }
    }

    /// `nft_xfrm_get_eval`, `nft_rt_get_eval`: writes the value to `to`, and returns its length in octets. `None`: break.
    pub(super) fn eval(self, packet: &Packet<'_>, to: &mut [u8; 16]) -> Option<usize> {
        let sa = self.dir.sa_of(packet);
        if self.key == XfrmKey::Present {
            // Until it is routed, it has no route.
            to[0] = sa.is_some().into();
            return (packet.hook != Hook::PreRouting).then_some(1);
        }
        let sa = sa.filter(|_| self.spnum == 0)?;
        let [src, dst] = sa.ends;
        // `xfrm_state_addr_ok`.
        let address = |end| (sa.mode == Mode::Tunnel).then_some(end);
        let word = match (self.key, src, dst) {
            (XfrmKey::Reqid, ..) => sa.reqid.to_ne_bytes(),
            (XfrmKey::Spi, ..) => sa.spi.to_be_bytes(),
            (XfrmKey::Saddr4, IpAddr::V4(src), _) => address(src.octets())?,
            (XfrmKey::Daddr4, _, IpAddr::V4(dst)) => address(dst.octets())?,
            (XfrmKey::Saddr6, IpAddr::V6(end), _) | (XfrmKey::Daddr6, _, IpAddr::V6(end)) => {
                (sa.mode == Mode::Tunnel).then(|| *to = end.octets())?;
                return Some(16);
            }
            _ => return None,
        };
        to[..4].copy_from_slice(&word);
        Some(4)
    }
}

/// As nft writes it.
impl fmt::Display for XfrmQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self.key {
            XfrmKey::Present => return f.write_str("rt ipsec"),
            XfrmKey::Daddr4 => "ip daddr",
            XfrmKey::Daddr6 => "ip6 daddr",
            XfrmKey::Saddr4 => "ip saddr",
            XfrmKey::Saddr6 => "ip6 saddr",
            XfrmKey::Reqid => "reqid",
            XfrmKey::Spi => "spi",
        };
        let dir = self.dir;
        match self.spnum {
            0 => write!(f, "ipsec {dir} {key}"),
            spnum => write!(f, "ipsec {dir} spnum {spnum} {key}"),
        }
    }
}

/// Most elements of a [`PolicyMatch`] (XT_POLICY_MAX_ELEM).
pub const POLICY_ELEMS_MAX: usize = 4;

/// The match `policy`: `struct xt_policy_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyMatch {
    /// Of which SA.
    pub dir: XfrmDir,
    /// XT_POLICY_MATCH_NONE: matches packets without one.
    pub is_none: bool,
    /// XT_POLICY_MATCH_STRICT: each SA matches the element in its place, and there are as many; otherwise one of them
    /// matches the first.
    pub is_strict: bool,
    /// At most [`POLICY_ELEMS_MAX`].
    pub elems: Vec<PolicyElem>,
}

/// `struct xt_policy_elem`. What is `None` is not compared; the flags: matches what is different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyElem {
    /// Source and destination, each with its mask, as in a header, filled up with zeros.
    pub ends: [Option<(AddressMatch, bool)>; 2],
    /// ESP or AH.
    pub protocol: Option<(u8, bool)>,
    /// Whether it is a tunnel.
    pub is_tunnel: Option<(bool, bool)>,
    /// Security parameters index.
    pub spi: Option<(u32, bool)>,
    /// What templates ask for.
    pub reqid: Option<(u32, bool)>,
}

/// An address and its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressMatch {
    /// As in a header, filled up with zeros.
    pub address: [u8; 16],
    /// Bits that are compared.
    pub mask: [u8; 16],
}

impl PolicyMatch {
    /// `policy_mt`. `is_ipv4`: of a table of IPv4, by which addresses are compared.
    pub(super) fn eval(&self, packet: &Packet<'_>, is_ipv4: bool) -> Flow {
        let sa = self.dir.sa_of(packet);
        let matches = match sa {
            None => self.is_none,
            Some(_) if self.is_none || (self.is_strict && self.elems.len() != 1) => false,
            Some(sa) => self.elems.first().is_some_and(|elem| elem.matches(&sa, is_ipv4)),
        };
        if matches { Flow::Continue } else { Flow::Break }
    }
}

impl PolicyElem {
    /// `match_xfrm_state`.
    fn matches(&self, sa: &SaInfo, is_ipv4: bool) -> bool {
        fn compares<T: PartialEq>(of: Option<(T, bool)>, value: T) -> bool {
            of.is_none_or(|(with, invert)| (with == value) != invert)
        }
        let has_ends =
            self.ends.iter().zip(sa.ends).all(|(of, end)| {
                of.is_none_or(|(with, invert)| with.matches(end, is_ipv4) != invert)
            });
        has_ends
            && compares(self.protocol, sa.protocol.0)
            && compares(self.is_tunnel, sa.mode == Mode::Tunnel)
            && compares(self.spi, sa.spi)
            && compares(self.reqid, sa.reqid)
    }
}

impl AddressMatch {
    /// `xt_addr_cmp`: compares as many octets as addresses of the table have, whatever the SA's family.
    fn matches(&self, end: IpAddr, is_ipv4: bool) -> bool {
        let mut octets = [0; 16];
        match end {
            IpAddr::V4(end) => octets[..4].copy_from_slice(&end.octets()),
            IpAddr::V6(end) => octets = end.octets(),
        }
        let len = if is_ipv4 { 4 } else { 16 };
        let all = octets.iter().zip(&self.address).zip(&self.mask).take(len);
        all.fold(0, |differ, ((one, other), mask)| differ | ((one ^ other) & mask)) == 0
    }
}

/// As iptables writes it, but for addresses, which are octets.
impl fmt::Display for PolicyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.dir;
        let pol = if self.is_none { "none" } else { "ipsec" };
        write!(f, "xt match policy dir {dir} pol {pol}")?;
        if self.is_strict {
            f.write_str(" strict")?;
        }
        let not = |invert: bool| if invert { "! " } else { "" };
        for (n, elem) in self.elems.iter().enumerate() {
            if n > 0 {
                f.write_str(" next")?;
            }
            if let Some((reqid, invert)) = elem.reqid {
                write!(f, " {}reqid {reqid}", not(invert))?;
            }
            if let Some((spi, invert)) = elem.spi {
                write!(f, " {}spi 0x{spi:x}", not(invert))?;
            }
            if let Some((protocol, invert)) = elem.protocol {
                write!(f, " {}proto {}", not(invert), Protocol(protocol))?;
            }
            if let Some((is_tunnel, invert)) = elem.is_tunnel {
                let mode = if is_tunnel { "tunnel" } else { "transport" };
                write!(f, " {}mode {mode}", not(invert))?;
            }
            for (name, end) in ["tunnel-src", "tunnel-dst"].iter().zip(&elem.ends) {
                if let Some((AddressMatch { address, mask }, invert)) = end {
                    write!(f, " {}{name} {address:02x?}/{mask:02x?}", not(*invert))?;
                }
            }
        }
        Ok(())
    }
}
