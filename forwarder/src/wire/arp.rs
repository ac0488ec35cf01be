//! ARP (RFC 826) for IPv4 over Ethernet.

use std::fmt;
use std::net::Ipv4Addr;

use super::error::require;
use super::octets::{array, get_u8, get_u16, put, put_u8, put_u16};
use super::{Error, EtherType, MacAddr};

/// Length for IPv4 over Ethernet, in octets.
pub const PACKET_LEN: usize = 28;
/// Hardware type of Ethernet (`ar$hrd`).
pub const HARDWARE_ETHERNET: u16 = 1;

mod field {
    use crate::wire::octets::Field;

    pub const HARDWARE_TYPE: Field = 0..2;
    pub const PROTOCOL_TYPE: Field = 2..4;
    pub const HARDWARE_LEN: usize = 4;
    pub const PROTOCOL_LEN: usize = 5;
    pub const OPERATION: Field = 6..8;
    pub const SENDER_MAC: Field = 8..14;
    pub const SENDER_IP: Field = 14..18;
    pub const TARGET_MAC: Field = 18..24;
    pub const TARGET_IP: Field = 24..28;
}

/// The operation of an ARP packet (`ar$op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation(pub u16);

impl Operation {
    /// Request for the target's address.
    pub const REQUEST: Self = Self(1);
    /// Reply with the sender's address.
    pub const REPLY: Self = Self(2);
}

view! {
    /// An ARP packet for IPv4 over Ethernet.
    ArpPacket
}

impl<T: AsRef<[u8]>> ArpPacket<T> {
    /// Whether the packet is complete and is for IPv4 over Ethernet.
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), PACKET_LEN)?;
        let (hardware_type, protocol_type) = (self.hardware_type(), self.protocol_type());
        if hardware_type != HARDWARE_ETHERNET
            || protocol_type != EtherType::IPV4.0
            || self.hardware_len() != 6
            || self.protocol_len() != 4
        {
            return Err(Error::NotIpv4OverEthernet { hardware_type, protocol_type });
        }
        Ok(())
    }

    /// Hardware type (`ar$hrd`).
    #[inline]
    pub fn hardware_type(&self) -> u16 {
        get_u16(self.as_octets(), field::HARDWARE_TYPE)
    }

    /// Protocol type (`ar$pro`), an EtherType.
    #[inline]
    pub fn protocol_type(&self) -> u16 {
        get_u16(self.as_octets(), field::PROTOCOL_TYPE)
    }

    /// Length of a hardware address, in octets (`ar$hln`).
    #[inline]
    pub fn hardware_len(&self) -> u8 {
        get_u8(self.as_octets(), field::HARDWARE_LEN)
    }

    /// Length of a protocol address, in octets (`ar$pln`).
    #[inline]
    pub fn protocol_len(&self) -> u8 {
        get_u8(self.as_octets(), field::PROTOCOL_LEN)
    }

    /// The operation.
    #[inline]
    pub fn operation(&self) -> Operation {
        Operation(get_u16(self.as_octets(), field::OPERATION))
    }

    /// The sender's Ethernet address (`ar$sha`).
    #[inline]
    pub fn sender_mac(&self) -> MacAddr {
        MacAddr(array(self.as_octets(), field::SENDER_MAC))
    }

    /// The sender's IPv4 address (`ar$spa`).
    #[inline]
    pub fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.as_octets(), field::SENDER_IP))
    }

    /// The target's Ethernet address (`ar$tha`); unused in a request.
    #[inline]
    pub fn target_mac(&self) -> MacAddr {
        MacAddr(array(self.as_octets(), field::TARGET_MAC))
    }

    /// The target's IPv4 address (`ar$tpa`).
    #[inline]
    pub fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.as_octets(), field::TARGET_IP))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> ArpPacket<T> {
    /// Writes the four fields that are the same in every ARP packet for IPv4 over Ethernet.
    pub fn set_ipv4_over_ethernet(&mut self) {
        let octets = self.buffer.as_mut();
        put_u16(octets, field::HARDWARE_TYPE, HARDWARE_ETHERNET);
        put_u16(octets, field::PROTOCOL_TYPE, EtherType::IPV4.0);
        put_u8(octets, field::HARDWARE_LEN, 6);
        put_u8(octets, field::PROTOCOL_LEN, 4);
    }

    /// Sets the operation.
    pub fn set_operation(&mut self, operation: Operation) {
        put_u16(self.buffer.as_mut(), field::OPERATION, operation.0);
    }

    /// Sets the sender's addresses.
    pub fn set_sender(&mut self, mac: MacAddr, ip: Ipv4Addr) {
        put(self.buffer.as_mut(), field::SENDER_MAC, &mac.0);
        put(self.buffer.as_mut(), field::SENDER_IP, &ip.octets());
    }

    /// Sets the target's addresses.
    pub fn set_target(&mut self, mac: MacAddr, ip: Ipv4Addr) {
        put(self.buffer.as_mut(), field::TARGET_MAC, &mac.0);
        put(self.buffer.as_mut(), field::TARGET_IP, &ip.octets());
    }
}

/// Writes a request for `target`'s Ethernet address into the first 28 octets of `buffer`.
pub fn write_request(
    buffer: &mut [u8],
    sender: (MacAddr, Ipv4Addr),
    target: Ipv4Addr,
) -> Result<(), Error> {
    write(buffer, Operation::REQUEST, sender, (MacAddr::ZERO, target))
}

/// Writes a reply to `target` into the first 28 octets of `buffer`.
pub fn write_reply(
    buffer: &mut [u8],
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
) -> Result<(), Error> {
    write(buffer, Operation::REPLY, sender, target)
}

fn write(
    buffer: &mut [u8],
    operation: Operation,
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
) -> Result<(), Error> {
    require(buffer, PACKET_LEN)?;
    let mut arp = ArpPacket::new_unchecked(buffer);
    arp.set_ipv4_over_ethernet();
    arp.set_operation(operation);
    arp.set_sender(sender.0, sender.1);
    arp.set_target(target.0, target.1);
    Ok(())
}

impl<T: AsRef<[u8]>> fmt::Display for ArpPacket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation() {
            Operation::REQUEST => {
                write!(f, "ARP, Request who-has {} tell {}", self.target_ip(), self.sender_ip())?;
            }
            Operation::REPLY => {
                write!(f, "ARP, Reply {} is-at {}", self.sender_ip(), self.sender_mac())?;
            }
            Operation(number) => write!(f, "ARP, Unknown ({number})")?,
        }
        write!(f, ", length {}", self.as_octets().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: (MacAddr, Ipv4Addr) = (MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(198, 18, 1, 1));
    const HOST: (MacAddr, Ipv4Addr) = (MacAddr([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(198, 18, 1, 2));

    #[rustfmt::skip]
    const REQUEST: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1,
        2, 0, 0, 0, 0, 1, 198, 18, 1, 1,
        0, 0, 0, 0, 0, 0, 198, 18, 1, 2,
    ];

    #[test]
    fn a_request_is_written_as_rfc_826_draws_it() {
        let mut octets = [0xff; 28];
        write_request(&mut octets, ROUTER, HOST.1).unwrap();
        assert_eq!(octets, REQUEST);
        let arp = ArpPacket::new_checked(&octets[..]).unwrap();
        assert_eq!(arp.operation(), Operation::REQUEST);
        assert_eq!((arp.sender_mac(), arp.sender_ip()), ROUTER);
        assert_eq!((arp.target_mac(), arp.target_ip()), (MacAddr::ZERO, HOST.1));
        assert_eq!(arp.to_string(), "ARP, Request who-has 198.18.1.2 tell 198.18.1.1, length 28");
    }

    #[test]
    fn a_reply_names_both_ends() {
        let mut octets = [0; 28];
        write_reply(&mut octets, HOST, ROUTER).unwrap();
        let arp = ArpPacket::new_checked(&octets[..]).unwrap();
        assert_eq!((arp.sender_mac(), arp.sender_ip()), HOST);
        assert_eq!((arp.target_mac(), arp.target_ip()), ROUTER);
        assert_eq!(arp.to_string(), "ARP, Reply 198.18.1.2 is-at 02:00:00:00:00:02, length 28");
    }

    #[test]
    fn other_hardware_and_protocols_are_refused_by_name() {
        for (at, value) in [(1, 6), (2, 9), (4, 8), (5, 16)] {
            let mut octets = REQUEST;
            octets[at] = value;
            let error = ArpPacket::new_checked(&octets[..]).unwrap_err();
            assert!(matches!(error, Error::NotIpv4OverEthernet { .. }), "{at}: {error}");
        }
        assert!(ArpPacket::new_checked(&REQUEST[..27]).is_err());
        assert!(write_request(&mut [0; 27], ROUTER, HOST.1).is_err());
    }
}
