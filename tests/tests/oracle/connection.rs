//! A TCP or UDP connection whose ends a test plays itself, packet by packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ferroute_tests::packet::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, Ipv6, TCP, UDP, be16, ethernet, tcp_segment, udp,
};
use ferroute_tests::rng::Rng;

use crate::input::{Input, data, hardware};
use crate::world::{Side, mtu};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// An address and a port.
pub type End = (IpAddr, u16);

/// Unacknowledged octets after which the other end has to send.
const OUTSTANDING_MAX: u32 = 20_000;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client = 0,
    Server = 1,
}

impl From {
    pub fn other(self) -> From {
        match self {
            From::Client => From::Server,
            From::Server => From::Client,
        }
    }
}

/// What a segment has besides addresses, ports and numbers.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub flags: u8,
    /// Octets of data; at least 6 carry the packet's number.
    pub len: usize,
    /// Added to the sequence number that is next.
    pub seq_offset: i32,
    pub options: Vec<u8>,
    pub tos: u8,
    /// 0: 64.
    pub ttl: u8,
    pub df: bool,
    pub note: String,
}

/// A connection. Addresses may be translated: each end knows only what it sees.
#[derive(Debug, Clone)]
pub struct Connection {
    pub protocol: u8,
    /// The host of the client; the server is at the other one, unless a router sends it elsewhere.
    pub side: Side,
    pub client: End,
    /// What the client connects to.
    pub to: End,
    /// The client and the server as the server sees them, and the server's host; `None`: not connected.
    pub seen: Option<(End, End, Side)>,
    /// The next sequence number of each end, and what the other end has acknowledged of it.
    seq: [u32; 2],
    acked: [u32; 2],
}

impl Connection {
    pub fn new(protocol: u8, side: Side, client: End, to: End) -> Connection {
        // One of them passes the end of the numbers.
        let seq = [0xffff_ff00, 0x1234_5678];
        Connection { protocol, side, client, to, seen: None, seq, acked: seq }
    }

    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }

    /// The end that may send next: the other one if too much is unacknowledged.
    pub fn may_send(&self, from: From) -> From {
        let outstanding = self.seq[from as usize].wrapping_sub(self.acked[from as usize]);
        if self.is_tcp() && outstanding > OUTSTANDING_MAX { from.other() } else { from }
    }

    /// Where an end is, its address and that of the other end as it sees them.
    fn ends(&self, from: From) -> Option<(Side, End, End)> {
        match (from, self.seen) {
            (From::Client, _) => Some((self.side, self.client, self.to)),
            (From::Server, Some((client, server, side))) => Some((side, server, client)),
            (From::Server, None) => None,
        }
    }

    /// The next packet of an end. `None`: the server was not reached.
    pub fn packet(&mut self, index: u16, from: From, segment: &Segment) -> Option<Input> {
        let (side, own, other) = self.ends(from)?;
        // What fits on the link.
        let headers = if own.0.is_ipv4() { 20 } else { 40 } + 20 + segment.options.len();
        let data = data(index, segment.len.min(mtu(side) - headers));
        let (source, destination) = (octets(own.0), octets(other.0));
        let ports = (own.1, other.1);
        let payload = if self.is_tcp() {
            let (me, you) = (from as usize, from.other() as usize);
            let seq = self.seq[me].wrapping_add_signed(segment.seq_offset);
            let ack = if segment.flags & ACK != 0 { self.seq[you] } else { 0 };
            if segment.flags & ACK != 0 {
                self.acked[you] = ack;
            }
            let takes = u32::from(segment.flags & (SYN | FIN) != 0);
            let end = seq.wrapping_add(data.len() as u32 + takes);
            // What was sent before is sent again.
            if end.wrapping_sub(self.seq[me]) as i32 > 0 && segment.flags & RST == 0 {
                self.seq[me] = end;
            }
            let (flags, options) = (segment.flags, &segment.options[..]);
            tcp_segment(&source, &destination, ports, (seq, ack), flags, options, &data)
        } else {
            udp(&source, &destination, ports, &data)
        };
        let ttl = if segment.ttl == 0 { 64 } else { segment.ttl };
        let (ethertype, packet) = match (own.0, other.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4 {
                    id: index,
                    tos: segment.tos,
                    ttl,
                    df: segment.df,
                    ..Ipv4::new(src, dst, self.protocol)
                };
                (ETHERTYPE_IPV4, header.packet(&payload))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6 {
                    flow_label: index.into(),
                    traffic_class: segment.tos,
                    hop_limit: ttl,
                    ..Ipv6::new(src, dst, self.protocol)
                };
                (ETHERTYPE_IPV6, header.packet(&payload))
            }
            _ => return None,
        };
        let (to, by) = hardware(side);
        let kind = if self.is_tcp() { "TCP" } else { "UDP" };
        let note = format!("{kind} {from:?} {}", segment.note);
        Some(Input { index, side, frame: ethernet(to, by, ethertype, &packet), note })
    }

    /// Learns the server, and how it sees the client, from the frame that reached it.
    pub fn reached(&mut self, side: Side, frame: &[u8]) {
        self.seen = ends_of(frame).map(|(client, server)| (client, server, side));
    }
}

/// A random segment of an established connection; it is in the window.
pub fn random_segment(rng: &mut Rng) -> Segment {
    let len = match rng.below(10) {
        0 => 0,
        1..=5 => 6 + rng.below(200),
        6..=8 => 6 + rng.below(1200),
        // Longer than the MTU of the right side.
        _ => 1340 + rng.below(100),
    };
    let mut segment = Segment { flags: ACK, len, df: rng.one_in(2), ..Segment::default() };
    if rng.one_in(3) {
        segment.flags |= PSH;
    }
    if rng.one_in(6) {
        segment.flags |= rng.pick(&[URG, ECE, CWR]);
    }
    // A timestamp option after two octets of padding.
    if rng.one_in(3) {
        segment.options = [&[1, 1, 8, 10][..], &[0, 0, 0, 1, 0, 0, 0, 2]].concat();
    }
    if rng.one_in(3) {
        segment.tos = rng.pick(&[46 << 2, 10 << 2, 1, 2, 3]);
    }
    if rng.one_in(6) {
        segment.ttl = rng.pick(&[1, 2, 3, 63, 128, 255]);
    }
    if rng.one_in(10) {
        segment.seq_offset = -(rng.below(200) as i32);
    }
    let Segment { len, tos, ttl, df, seq_offset, .. } = segment;
    segment.note = format!("len {len} tos {tos} ttl {ttl} df {df} seq {seq_offset}");
    segment
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Source and destination of a TCP or UDP packet without options or extension headers.
fn ends_of(frame: &[u8]) -> Option<(End, End)> {
    let network = frame.get(ETH_LEN..)?;
    let (source, destination, transport): (IpAddr, IpAddr, _) = match be16(frame, 12)? {
        ETHERTYPE_IPV4 => {
            let address = |at: usize| Some(Ipv4Addr::from(*network.get(at..)?.first_chunk::<4>()?));
            (address(12)?.into(), address(16)?.into(), 20)
        }
        ETHERTYPE_IPV6 => {
            let address =
                |at: usize| Some(Ipv6Addr::from(*network.get(at..)?.first_chunk::<16>()?));
            (address(8)?.into(), address(24)?.into(), 40)
        }
        _ => return None,
    };
    let ports = (be16(network, transport)?, be16(network, transport + 2)?);
    Some(((source, ports.0), (destination, ports.1)))
}

/// The protocol number of a name.
pub fn protocol(is_tcp: bool) -> u8 {
    if is_tcp { TCP } else { UDP }
}
