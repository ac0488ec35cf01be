//! Labels of IPv6 addresses, by which the source of a packet is selected (RFC 6724 §2.1; `ip addrlabel`). The kernel's default
//! labels are not those of the RFC.

use std::net::Ipv6Addr;

/// The label of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddrLabel {
    /// The prefix.
    pub prefix: Ipv6Addr,
    /// Its length in bits, 0 to 128.
    pub prefixlen: u8,
    /// Of addresses of this interface only; 0: of all.
    pub ifindex: u32,
    /// The label.
    pub label: u32,
}

impl AddrLabel {
    const fn new(prefix: [u16; 8], prefixlen: u8, label: u32) -> AddrLabel {
        let [a, b, c, d, e, f, g, h] = prefix;
        let prefix = Ipv6Addr::new(a, b, c, d, e, f, g, h);
        AddrLabel { prefix, prefixlen, ifindex: 0, label }
    }

    /// `__ip6addrlbl_match`.
    fn matches(&self, addr: Ipv6Addr, ifindex: u32) -> bool {
        let differences = addr.to_bits() ^ self.prefix.to_bits();
        let is_equal = differences.leading_zeros() >= u32::from(self.prefixlen);
        is_equal && (self.ifindex == 0 || self.ifindex == ifindex)
    }
}

/// All labels, the longest prefix first. The default is the kernel's (`ip6addrlbl_init_table`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddrLabels(Vec<AddrLabel>);

/// `ip6addrlbl_init_table`.
const DEFAULT: [AddrLabel; 10] = [
    AddrLabel::new([0, 0, 0, 0, 0, 0, 0, 1], 128, 0),
    AddrLabel::new([0; 8], 96, 3),
    AddrLabel::new([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, 4),
    AddrLabel::new([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, 6),
    AddrLabel::new([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, 7),
    AddrLabel::new([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, 12),
    AddrLabel::new([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, 2),
    AddrLabel::new([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, 11),
    AddrLabel::new([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, 5),
    AddrLabel::new([0; 8], 0, 1),
];

impl Default for AddrLabels {
    fn default() -> AddrLabels {
        AddrLabels(DEFAULT.into())
    }
}

impl AddrLabels {
    /// IPV6_ADDR_LABEL_DEFAULT: of addresses without a label.
    const NONE: u32 = u32::MAX;

    /// From labels in the kernel's order.
    pub fn new(labels: Vec<AddrLabel>) -> AddrLabels {
        AddrLabels(labels)
    }

    /// The label of an address of an interface, or of a destination behind it (`ipv6_addr_label`).
    pub fn label(&self, addr: Ipv6Addr, ifindex: u32) -> u32 {
        let first = self.0.iter().find(|label| label.matches(addr, ifindex));
        first.map_or(AddrLabels::NONE, |label| label.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    #[test]
    fn default_labels_are_the_kernels() {
        for (text, label) in [
            ("::1", 0),
            ("2a00::1", 1),
            ("2002:1::1", 2),
            ("::192.0.2.1", 3),
            ("::ffff:192.0.2.1", 4),
            ("fd00::1", 5),
            ("2001:0:1::1", 6),
            ("2001:1f::1", 7),
            ("2001:20::1", 1),
            ("3ffe::1", 12),
            ("fec0::1", 11),
        ] {
            assert_eq!(AddrLabels::default().label(addr(text), 2), label, "{text}");
        }
    }

    #[test]
    fn the_first_that_matches_applies() {
        let label = |prefix, prefixlen, ifindex, label| AddrLabel {
            prefix: addr(prefix),
            prefixlen,
            ifindex,
            label,
        };
        let labels = AddrLabels::new(vec![
            label("2001:db8:1::", 48, 3, 40),
            label("2001:db8:1::", 48, 0, 41),
            label("2001:db8::", 32, 0, 42),
        ]);
        let of = |text, ifindex| labels.label(addr(text), ifindex);
        assert_eq!((of("2001:db8:1::1", 3), of("2001:db8:1::1", 2)), (40, 41));
        assert_eq!((of("2001:db8:2::1", 3), of("2001:db9::1", 3)), (42, u32::MAX));
        assert_eq!(AddrLabels::new(Vec::new()).label(addr("::1"), 0), u32::MAX);
    }
}
