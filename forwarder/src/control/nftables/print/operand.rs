//! What registers hold, and its text: the left side of a comparison or lookup.

use super::fields::{self, Field, Proto};
use super::value::{Kind, Order, hex, prefix_len, shift_right};
use crate::control::nftables::netlink_text;
use crate::control::nftables::uapi::META_NAMES;
use crate::netfilter::conntrack::Direction;
use crate::netfilter::nft::ruleset::{
    CtKey, ExthdrOp, Family, FibKey, FibQuery, MetaKey, PayloadBase, Reg, Set, TupleEnd,
};
use crate::netfilter::nft::xfrm::{XfrmKey, XfrmQuery};

/// What a register holds.
#[derive(Debug, Clone)]
pub(super) struct Operand<'a> {
    pub(super) what: What<'a>,
    /// Octets.
    pub(super) len: usize,
    pub(super) mask: Option<Vec<u8>>,
    pub(super) order: Order,
    /// Positions of the expressions that made it.
    pub(super) from: Vec<usize>,
}

/// Where a value is from.
#[derive(Debug, Clone)]
pub(super) enum What<'a> {
    Payload {
        base: PayloadBase,
        offset: u32,
    },
    /// A part of the packet of which bits were changed: those that `mask` does not have.
    Changed {
        base: PayloadBase,
        offset: u32,
        mask: &'a [u8],
        xor: &'a [u8],
    },
    Exthdr {
        op: ExthdrOp,
        kind: u8,
        offset: u32,
        present: bool,
    },
    Meta(MetaKey),
    Ct(CtKey),
    Fib(FibQuery),
    Xfrm(XfrmQuery),
    Value(&'a [u8]),
    /// Data of a map, with the text of its key.
    Map {
        key: String,
        set: &'a Set,
        fields: Vec<Left>,
    },
    /// An expression of a type.
    Text(String, Kind),
}

/// The left side of a comparison.
#[derive(Debug, Clone)]
pub(super) struct Left {
    pub(super) text: String,
    pub(super) kind: Kind,
    order: Order,
    /// Octets in the register.
    pub(super) len: usize,
    /// Octets of the field, of which the register may have the first only.
    whole: usize,
    /// Bits after the field.
    shift: u32,
    /// In network byte order; as long as the field.
    pub(super) mask: Option<Vec<u8>>,
    /// The header that its name implies.
    pub(super) header: Header,
    pub(super) source: Source,
}

/// A header that a name implies, so that the test for the header need not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    None,
    Link,
    Network(L3),
    /// With its protocol number.
    Transport(u8),
}

/// Values that tell which headers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// NFPROTO_*.
    NfProto,
    /// The EtherType, from `meta` or from the packet.
    EtherType,
    L4Proto,
    /// The field of the IPv4 or IPv6 header.
    Protocol(L3),
    IifType,
    IcmpType,
    Other,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum L3 {
    Ip,
    Ip6,
}

/// What the statements so far tell of the packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) l3: Option<L3>,
    pub(super) l4: Option<u8>,
    pub(super) icmp_type: Option<u8>,
}

impl Left {
    /// Octets of a register as a value in network byte order.
    pub(super) fn value(&self, octets: &[u8]) -> Vec<u8> {
        let mut octets = self.kind.to_network(octets, self.order);
        octets.resize(octets.len().max(self.whole), 0);
        shift_right(&octets, self.shift)
    }

    /// A value of a register as text.
    pub(super) fn value_text(&self, octets: &[u8]) -> String {
        match self.kind {
            // A prefix of names is shorter than a name.
            Kind::IfName => self.kind.text(octets),
            kind => kind.text(&self.value(octets)),
        }
    }

    /// The text, with the mask.
    pub(super) fn masked(&self) -> String {
        match &self.mask {
            Some(mask) => format!("{} & {}", self.text, self.kind.text(mask)),
            None => self.text.clone(),
        }
    }
}

impl Known {
    /// Before the first statement of a rule.
    pub(super) fn of(family: Family) -> Known {
        let l3 = match family {
            Family::Ip => Some(L3::Ip),
            Family::Ip6 => Some(L3::Ip6),
            _ => None,
        };
        Known { l3, l4: None, icmp_type: None }
    }

    /// The text of an operand; `None`: it has no known form.
    pub(super) fn left(&self, operand: &Operand<'_>) -> Option<Left> {
        match &operand.what {
            What::Payload { base, offset } => self.payload(operand, *base, *offset),
            What::Exthdr { op, kind, offset, present } => {
                exthdr(operand, *op, *kind, *offset, *present)
            }
            What::Meta(key) => meta(operand, *key),
            What::Ct(key) => ct(operand, *key),
            What::Fib(query) => fib(operand, *query),
            What::Xfrm(query) => xfrm(operand, *query),
            What::Text(text, kind) => plain(operand, text.clone(), *kind, Source::Other)
                .filter(|_| operand.mask.is_none()),
            What::Value(_) | What::Map { .. } | What::Changed { .. } => None,
        }
    }

    fn proto(&self, base: PayloadBase) -> Option<(Proto, Header)> {
        Some(match base {
            PayloadBase::Link => (fields::ETHER, Header::Link),
            PayloadBase::Network => match self.l3? {
                L3::Ip => (fields::IP, Header::Network(L3::Ip)),
                L3::Ip6 => (fields::IP6, Header::Network(L3::Ip6)),
            },
            PayloadBase::Transport => {
                let known = self.l4.and_then(|l4| {
                    Some((fields::transport(l4, self.icmp_type)?, Header::Transport(l4)))
                });
                known.unwrap_or((fields::TH, Header::None))
            }
        })
    }

    /// Octets of the first field of several that one load has.
    pub(super) fn first_field(&self, base: PayloadBase, offset: u32, len: usize) -> Option<usize> {
        let (proto, _) = self.proto(base)?;
        let bits = u32::try_from(len).ok()?.checked_mul(8)?;
        let (_, _, field, _) = proto.beginning(offset.checked_mul(8)?, bits)?;
        (*field < bits && field.is_multiple_of(8)).then_some(*field as usize / 8)
    }

    fn payload(&self, operand: &Operand<'_>, base: PayloadBase, offset: u32) -> Option<Left> {
        let at = offset.checked_mul(8)?;
        let place = Place::of(operand, at)?;
        let named = self.proto(base).and_then(|(proto, header)| {
            let mut left = place.field(&proto, "", operand)?;
            left.source = source(&proto, &left.text);
            left.text = format!("{} {}", proto.name, left.text);
            left.header = header;
            Some(left)
        });
        named.or_else(|| {
            let base = match base {
                PayloadBase::Link => "ll",
                PayloadBase::Network => "nh",
                PayloadBase::Transport => "th",
            };
            let (at, bits, shift, mask) = match place.within {
                Some((at, bits)) => (at, bits, place.at + place.bits - at - bits, None),
                None => (place.at, place.bits, 0, operand.mask.clone()),
            };
            let text = format!("@{base},{at},{bits}");
            let left = plain(operand, text, Kind::Hex, Source::Other)?;
            Some(Left { shift, mask, ..left })
        })
    }
}

/// The bits of an operand.
struct Place {
    at: u32,
    bits: u32,
    /// First bit and bits of a mask of adjacent bits.
    within: Option<(u32, u32)>,
}

impl Place {
    fn of(operand: &Operand<'_>, at: u32) -> Option<Place> {
        let bits = u32::try_from(operand.len).ok()?.checked_mul(8)?;
        at.checked_add(bits)?;
        let within = match (&operand.mask, operand.order) {
            (Some(mask), Order::Own) => adjacent(mask).map(|(from, bits)| (at + from, bits)),
            _ => None,
        };
        Some(Place { at, bits, within })
    }

    /// The field of a header at this place; the text is its name after `prefix`.
    fn field(&self, proto: &Proto, prefix: &str, operand: &Operand<'_>) -> Option<Left> {
        let named = |field: &Field| format!("{prefix}{}", field.0);
        if let Some(field) = proto.exact(self.at, self.bits) {
            let left = plain(operand, named(field), field.3, Source::Other)?;
            return Some(Left { mask: masked_field(operand, field.3), ..left });
        }
        if let Some((at, bits)) = self.within
            && let Some(field) = proto.exact(at, bits)
        {
            let left = plain(operand, named(field), field.3, Source::Other)?;
            return Some(Left { shift: self.at + self.bits - at - bits, ..left });
        }
        // The first octets of an address.
        let field = proto.beginning(self.at, self.bits).filter(|field| field.3.is_address())?;
        let whole = field.2 as usize / 8;
        let mut mask = operand.mask.clone().unwrap_or_else(|| vec![0xff; operand.len]);
        mask.resize(whole.max(mask.len()), 0);
        let left = plain(operand, named(field), field.3, Source::Other)?;
        Some(Left { whole, mask: Some(mask), ..left })
    }
}

fn masked_field(operand: &Operand<'_>, kind: Kind) -> Option<Vec<u8>> {
    operand.mask.as_ref().map(|mask| kind.to_network(mask, operand.order))
}

/// First bit and number of bits of a mask whose bits are adjacent.
fn adjacent(mask: &[u8]) -> Option<(u32, u32)> {
    let first = mask.iter().position(|octet| *octet != 0)?;
    let lead = first as u32 * 8 + mask.get(first)?.leading_zeros();
    let ones: u32 = mask.iter().map(|octet| octet.count_ones()).sum();
    // All bits before the last one of the field.
    let mut bits = (0..mask.len() as u32 * 8).filter(|bit| {
        mask.get(*bit as usize / 8).is_some_and(|octet| octet >> (7 - bit % 8) & 1 == 1)
    });
    (bits.next_back()? + 1 - lead == ones).then_some((lead, ones))
}

/// An operand that is a whole value.
fn plain(operand: &Operand<'_>, text: String, kind: Kind, source: Source) -> Option<Left> {
    Some(Left {
        text,
        kind,
        order: operand.order,
        len: operand.len,
        whole: operand.len,
        shift: 0,
        mask: None,
        header: Header::None,
        source,
    })
}

fn source(proto: &Proto, field: &str) -> Source {
    match (proto.name, field) {
        ("ether", "type") => Source::EtherType,
        ("ip", "protocol") => Source::Protocol(L3::Ip),
        ("ip6", "nexthdr") => Source::Protocol(L3::Ip6),
        ("icmp" | "icmpv6", "type") => Source::IcmpType,
        _ => Source::Other,
    }
}

fn exthdr(
    operand: &Operand<'_>,
    op: ExthdrOp,
    kind: u8,
    offset: u32,
    present: bool,
) -> Option<Left> {
    let (proto, of_field, of_presence) = fields::extension(op, kind)?;
    let header = match op {
        ExthdrOp::Ipv6 => Header::Network(L3::Ip6),
        ExthdrOp::TcpOpt => Header::Transport(6),
        ExthdrOp::Ipv4 => Header::Network(L3::Ip),
    };
    let left = if present {
        let text = format!("{of_presence}{}", proto.name);
        plain(operand, text, Kind::Presence, Source::Other).filter(|_| operand.mask.is_none())
    } else {
        let place = Place::of(operand, offset.checked_mul(8)?)?;
        place.field(&proto, &format!("{of_field}{} ", proto.name), operand)
    }?;
    Some(Left { header, ..left })
}

fn ct(operand: &Operand<'_>, key: CtKey) -> Option<Left> {
    let of = |direction: Direction, end: TupleEnd, src: &str, dst: &str| {
        let direction = if direction == Direction::Original { "original" } else { "reply" };
        format!("ct {direction} {}", if end == TupleEnd::Src { src } else { dst })
    };
    let tuple = match key {
        CtKey::Ipv4(at, end) => Some((of(at, end, "ip saddr", "ip daddr"), Kind::Ipv4)),
        CtKey::Ipv6(at, end) => Some((of(at, end, "ip6 saddr", "ip6 daddr"), Kind::Ipv6)),
        CtKey::Port(at, end) => Some((of(at, end, "proto-src", "proto-dst"), Kind::Port)),
        _ => None,
    };
    if let Some((text, kind)) = tuple {
        let left = plain(operand, text, kind, Source::Other)?;
        return Some(Left { mask: masked_field(operand, kind), ..left });
    }
    let (text, kind) = match key {
        CtKey::State => ("ct state", Kind::CtState),
        CtKey::Direction => ("ct direction", Kind::CtDirection),
        CtKey::Status => ("ct status", Kind::CtStatus),
        CtKey::Mark => ("ct mark", Kind::Mark),
        CtKey::L3Proto => ("ct l3proto", Kind::NfProto),
        CtKey::Protocol => ("ct protocol", Kind::Proto),
        CtKey::Zone => ("ct zone", Kind::HostNumber),
        CtKey::Ipv4(..) | CtKey::Ipv6(..) | CtKey::Port(..) => return None,
    };
    let left = plain(operand, text.to_owned(), kind, Source::Other)?;
    Some(Left { mask: masked_field(operand, kind), ..left })
}

fn fib(operand: &Operand<'_>, query: FibQuery) -> Option<Left> {
    let kind = match query.key {
        _ if query.present => Kind::Presence,
        FibKey::Oif => Kind::HostNumber,
        FibKey::OifName => Kind::IfName,
        FibKey::Type => Kind::AddrType,
    };
    let left = plain(operand, netlink_text::fib(query), kind, Source::Other)?;
    operand.mask.is_none().then_some(left)
}

fn xfrm(operand: &Operand<'_>, query: XfrmQuery) -> Option<Left> {
    let kind = match query.key {
        XfrmKey::Present => Kind::Presence,
        XfrmKey::Daddr4 | XfrmKey::Saddr4 => Kind::Ipv4,
        XfrmKey::Daddr6 | XfrmKey::Saddr6 => Kind::Ipv6,
        XfrmKey::Reqid => Kind::HostNumber,
        XfrmKey::Spi => Kind::Number,
    };
    let left = plain(operand, query.to_string(), kind, Source::Other)?;
    Some(Left { mask: masked_field(operand, kind), ..left })
}

fn meta(operand: &Operand<'_>, key: MetaKey) -> Option<Left> {
    let (text, kind) = match key {
        MetaKey::Len => ("meta length", Kind::HostNumber),
        MetaKey::Protocol => ("meta protocol", Kind::EtherType),
        MetaKey::Mark => ("meta mark", Kind::Mark),
        MetaKey::Iif => ("iif", Kind::HostNumber),
        MetaKey::Oif => ("oif", Kind::HostNumber),
        MetaKey::IifName => ("iifname", Kind::IfName),
        MetaKey::OifName => ("oifname", Kind::IfName),
        MetaKey::IifType => ("meta iiftype", Kind::ArpHrd),
        MetaKey::OifType => ("meta oiftype", Kind::ArpHrd),
        MetaKey::NfProto => ("meta nfproto", Kind::NfProto),
        MetaKey::L4Proto => ("meta l4proto", Kind::Proto),
        MetaKey::PktType => ("meta pkttype", Kind::PktType),
        MetaKey::SecPath => ("meta ipsec", Kind::Presence),
        MetaKey::SkUid => ("meta skuid", Kind::HostNumber),
        MetaKey::SkGid => ("meta skgid", Kind::HostNumber),
        MetaKey::Other(number) => {
            let name = *META_NAMES.get(number as usize)?;
            let (text, kind) = match name {
                "cpu" | "cgroup" | "rtclassid" | "sdif" => {
                    (format!("meta {name}"), Kind::HostNumber)
                }
                "iifgroup" | "oifgroup" => (name.to_owned(), Kind::HostNumber),
                "priority" => (format!("meta {name}"), Kind::Priority),
                "iifkind" | "oifkind" | "sdifname" => (format!("meta {name}"), Kind::IfName),
                _ => return None,
            };
            return plain(operand, text, kind, Source::Other);
        }
    };
    let source = match key {
        MetaKey::Protocol => Source::EtherType,
        MetaKey::NfProto => Source::NfProto,
        MetaKey::L4Proto => Source::L4Proto,
        MetaKey::IifType => Source::IifType,
        _ => Source::Other,
    };
    let left = plain(operand, text.to_owned(), kind, source)?;
    Some(Left { mask: masked_field(operand, kind), ..left })
}

/// Octets of registers for a value.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// The registers.
#[derive(Debug, Default)]
pub(super) struct Registers<'a>(Vec<(usize, Operand<'a>)>);

impl<'a> Registers<'a> {
    /// What begins at a register.
    pub(super) fn get(&self, reg: Reg) -> Option<&Operand<'a>> {
        self.at(reg.0.into())
    }

    /// What begins at an octet of the register file.
    pub(super) fn at(&self, at: usize) -> Option<&Operand<'a>> {
        self.0.iter().find(|(from, _)| *from == at).map(|(_, operand)| operand)
    }

    /// Writes a register.
    pub(super) fn set(&mut self, reg: Reg, operand: Operand<'a>) {
        self.clear(reg, operand.len);
        self.0.push((reg.0.into(), operand));
    }

    /// Forgets what is in `len` octets from a register on.
    pub(super) fn clear(&mut self, reg: Reg, len: usize) {
        let (from, to) = (usize::from(reg.0), usize::from(reg.0) + padded(len));
        self.0.retain(|(at, other)| *at >= to || at + padded(other.len) <= from);
    }

    /// Forgets everything.
    pub(super) fn clear_all(&mut self) {
        self.0.clear();
    }
}

/// The text of a prefix: an address and the length of its mask.
pub(super) fn prefix(left: &Left, value: &[u8]) -> Option<String> {
    let len =
        left.mask.as_ref().filter(|_| left.kind.is_address()).and_then(|mask| prefix_len(mask))?;
    Some(format!("{}/{len}", left.kind.text(value)))
}

/// A mark that is combined with constants, as nft writes it: `(mark & mask) ^ xor`, in host byte order.
pub(super) fn combined(text: &str, mask: u32, xor: u32) -> String {
    let or = !mask & xor;
    let (xor, mask) = (xor & mask, mask | or);
    let mut text = text.to_owned();
    for (sign, constant, is_void) in
        [("&", mask, mask == u32::MAX), ("^", xor, xor == 0), ("|", or, or == 0)]
    {
        if !is_void {
            text = format!("{text} {sign} 0x{constant:08x}");
        }
    }
    text
}

/// A key of unknown type.
pub(super) fn unknown(octets: &[u8]) -> String {
    hex(octets)
}
