//! Parses and builds netlink messages and attributes (RFC 3549, include/uapi/linux/netlink.h).
//! Nothing here panics, whatever the octets are.
//!
//! The parsers of netlink-packet-route reject a whole message because of one unexpected attribute,
//! allocate for every attribute, and do not support nexthop objects or netconf. The mirror needs
//! the known attributes of every message of a table of a million routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct nlmsghdr` in octets.
const MESSAGE_HEADER: usize = 16;
/// `struct nlattr` in octets.
const ATTR_HEADER: usize = 4;
/// Most requests are shorter.
const REQUEST_OCTETS: usize = 192;
const NLA_F_NESTED: u16 = 0x8000;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER masked off.
const ATTR_TYPE_MASK: u16 = 0x3fff;

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// The octet at `at`.
pub fn u8_at(data: &[u8], at: usize) -> Option<u8> {
    data.get(at).copied()
}

/// The 16 bits at `at`, host byte order.
pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// The 32 bits at `at`, host byte order.
pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// RTM_*, NLMSG_*.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
    /// Sequence number of the request.
    pub seq: u32,
    /// The octets after the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a fixed header of `header` octets.
    pub fn attrs(&self, header: usize) -> Attrs<'a> {
        Attrs(self.payload.get(align(header)..).unwrap_or_default())
    }

    /// NLMSG_ERROR: the negative errno, 0 for an acknowledgement; and the kernel's error text
    /// (NLMSGERR_ATTR_MSG), if any.
    pub fn error(&self) -> Option<(i32, String)> {
        let errno = u32_at(self.payload, 0)? as i32;
        let request = u32_at(self.payload, 4)? as usize;
        // NLM_F_CAPPED: only the header of the request is included.
        let quoted = if self.flags & 0x100 != 0 { MESSAGE_HEADER } else { request };
        let mut attrs = Attrs(self.payload.get(4 + align(quoted)..).unwrap_or_default());
        let text = attrs.find(|attr| attr.kind == 1).map(|attr| attr.string()).unwrap_or_default();
        Some((errno, text))
    }
}

/// The messages of one datagram; ends at the first malformed one.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
    broken: bool,
}

impl<'a> Messages<'a> {
    /// Of a received datagram.
    pub fn new(datagram: &'a [u8]) -> Messages<'a> {
        Messages { rest: datagram, broken: false }
    }

    /// Whether a malformed message ended the iteration.
    pub fn broken(&self) -> bool {
        self.broken
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let message = u32_at(self.rest, 0)
            .and_then(|len| self.rest.get(..len as usize))
            .filter(|octets| octets.len() >= MESSAGE_HEADER);
        let Some(octets) = message else {
            self.broken = true;
            self.rest = &[];
            return None;
        };
        self.rest = self.rest.get(align(octets.len())..).unwrap_or_default();
        Some(Message {
            kind: u16_at(octets, 4)?,
            flags: u16_at(octets, 6)?,
            seq: u32_at(octets, 8)?,
            payload: &octets[MESSAGE_HEADER..],
        })
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attr<'a> {
    /// Its type, without the flags.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The value as an octet.
    pub fn u8(&self) -> Option<u8> {
        u8_at(self.value, 0)
    }

    /// The value as 16 bits.
    pub fn u16(&self) -> Option<u16> {
        u16_at(self.value, 0)
    }

    /// The value as 32 bits.
    pub fn u32(&self) -> Option<u32> {
        u32_at(self.value, 0)
    }

    /// The value as a NUL-terminated string; see [`string`].
    pub fn string(&self) -> String {
        string(self.value)
    }

    /// Whether the NUL-terminated string is UTF-8.
    pub fn is_utf8(&self) -> bool {
        std::str::from_utf8(until_nul(self.value)).is_ok()
    }

    /// The value as an address of the family that its length determines.
    pub fn ip(&self) -> Option<IpAddr> {
        ip(self.value)
    }

    /// The value as attributes.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.value)
    }
}

/// The string up to a NUL or the end. Octets that are not UTF-8 are escaped, as `\xff`, so that
/// different names remain different.
pub fn string(octets: &[u8]) -> String {
    let mut text = String::new();
    for chunk in until_nul(octets).utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|octet| text.push_str(&format!("\\x{octet:02x}")));
    }
    text
}

fn until_nul(octets: &[u8]) -> &[u8] {
    octets.split(|octet| *octet == 0).next().unwrap_or_default()
}

/// 4 octets: IPv4; 16: IPv6.
pub fn ip(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// A sequence of attributes; ends at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let octets = self.0.get(..u16_at(self.0, 0)? as usize)?;
        let attr =
            Attr { kind: u16_at(octets, 2)? & ATTR_TYPE_MASK, value: octets.get(ATTR_HEADER..)? };
        self.0 = self.0.get(align(octets.len())..).unwrap_or_default();
        Some(attr)
    }
}

/// A request under construction.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// Starts a message of `kind` with `flags` and a fixed header.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Request {
        let mut octets = Vec::with_capacity(REQUEST_OCTETS);
        octets.resize(MESSAGE_HEADER, 0);
        octets[4..6].copy_from_slice(&kind.to_ne_bytes());
        octets[6..8].copy_from_slice(&flags.to_ne_bytes());
        octets.extend_from_slice(header);
        octets.resize(align(octets.len()), 0);
        Request(octets)
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Request {
        self.0.extend_from_slice(&((ATTR_HEADER + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// Appends an attribute whose value is the attributes that `fill` appends.
    #[must_use]
    pub fn nested(self, kind: u16, fill: impl FnOnce(Request) -> Request) -> Request {
        let start = self.0.len();
        let mut request = fill(self.attr(NLA_F_NESTED | kind, &[]));
        let len = (request.0.len() - start) as u16;
        request.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        request
    }

    /// Returns the octets to send, with the length and `seq` set.
    pub fn finish(mut self, seq: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_message_is_parsed_back() {
        let octets = Request::new(24, 0x301, &[2, 24, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0])
            .attr(1, &[192, 0, 2, 0])
            .attr(4, &7u32.to_ne_bytes())
            .attr(3, b"eth0\0")
            .finish(9);
        let mut messages = Messages::new(&octets);
        let message = messages.next().expect("one message");
        assert_eq!((message.kind, message.flags, message.seq), (24, 0x301, 9));
        let attrs: Vec<_> = message.attrs(12).collect();
        assert_eq!(attrs.len(), 3);
        assert_eq!(attrs[0].ip(), Some(Ipv4Addr::new(192, 0, 2, 0).into()));
        assert_eq!(attrs[1].u32(), Some(7));
        assert_eq!(attrs[2].string(), "eth0");
        assert!(messages.next().is_none() && !messages.broken());
    }

    #[test]
    fn nested_attributes_are_parsed_back() {
        let octets = Request::new(24, 0, &[])
            .nested(7, |inner| inner.attr(1, &[5]).nested(2, |last| last.attr(3, &[6, 7])))
            .attr(8, &[9])
            .finish(1);
        let mut attrs = Attrs(&octets[16..]);
        let (first, second) = (attrs.next().expect("the first"), attrs.next().expect("the second"));
        assert!(attrs.next().is_none() && attrs.0.is_empty());
        assert_eq!((first.kind, second.kind, second.u8()), (7, 8, Some(9)));
        let inner: Vec<_> = first.nested().collect();
        assert_eq!((inner[0].kind, inner[0].u8(), inner[1].kind), (1, Some(5), 2));
        assert_eq!(inner[1].nested().next().expect("the last").value, [6, 7]);
    }

    #[test]
    fn a_truncated_message_ends_the_iteration_without_a_panic() {
        let octets = Request::new(24, 0, &[0; 12]).attr(1, &[1, 2, 3, 4]).attr(9, &[5]).finish(1);
        for len in 0..octets.len() {
            let mut messages = Messages::new(&octets[..len]);
            assert!(messages.next().is_none());
            assert_eq!(messages.broken(), len != 0);
        }
        for len in 28..octets.len() {
            assert!(Attrs(&octets[28..len]).count() < 2 || len > 40);
        }
    }

    #[test]
    fn wrong_lengths_end_the_iteration() {
        for len in [0u16, 3, 9, 0xffff] {
            let mut octets = vec![0; 8];
            octets[0..2].copy_from_slice(&len.to_ne_bytes());
            assert!(Attrs(&octets).next().is_none(), "length {len}");
        }
        let mut octets = vec![0; 16];
        for len in [0u32, 15, 17, u32::MAX] {
            octets[0..4].copy_from_slice(&len.to_ne_bytes());
            let mut messages = Messages::new(&octets);
            assert!(messages.next().is_none() && messages.broken(), "length {len}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_remain_different() {
        assert_eq!(string(b"eth0\0rest"), "eth0");
        assert_eq!(string(b"a\xff"), "a\\xff");
        assert_ne!(string(b"a\xff"), string(b"a\xfe"));
        assert_eq!(string("gr\u{f6}\u{df}e".as_bytes()), "gr\u{f6}\u{df}e");
        let attr = |value| Attr { kind: 3, value };
        assert!(attr(b"a\x1b[31mb\0\xff").is_utf8());
        assert!(!attr(b"a\xff\0").is_utf8());
    }
}
