//! A connection whose ends a test plays itself, packet by packet: of TCP, UDP, ICMP echo, or of a tunnel, of which nobody
//! looks at what is behind the IP header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ferroute_tests::packet::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, Ipv4, Ipv6, TCP, UDP, be16, ethernet,
    icmp, icmpv6, tcp_segment, udp,
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

/// GRE, whose header begins with flags, the version, and the protocol of what is inside.
pub const GRE: u8 = 47;
const IN_GRE: [u8; 4] = [0, 0, 8, 0];

/// An address and a port. The client of echo has the identifier instead; the other ends of it, and those of tunnels, 0.
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

    pub fn is_ipv4(&self) -> bool {
        self.client.0.is_ipv4()
    }

    /// Whether it is one of ICMP or ICMPv6 echo.
    pub fn is_echo(&self) -> bool {
        [ICMP, ICMPV6].contains(&self.protocol)
    }

    /// Where an end is, its address and that of the other end as it sees them.
    pub fn ends(&self, from: From) -> Option<(Side, End, End)> {
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
        let payload = match self.protocol {
            TCP => {
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
            }
            UDP => udp(&source, &destination, ports, &data),
            ICMP | ICMPV6 => self.echo(from, 0, &data)?,
            GRE => [&IN_GRE[..], &data].concat(),
            _ => data,
        };
        self.input(index, from, segment, (self.protocol, &payload))
    }

    /// An echo request of the client, or a reply of the server, with this code; the sequence number is in the data.
    pub fn echo(&self, from: From, code: u8, data: &[u8]) -> Option<Vec<u8>> {
        let request = if self.is_ipv4() { 8 } else { 128 };
        let reply = if self.is_ipv4() { 0 } else { 129 };
        let kind = if from == From::Client { request } else { reply };
        self.icmp(from, (kind, code), data)
    }

    /// An ICMP message of another type, with the identifier.
    pub fn icmp(&self, from: From, (kind, code): (u8, u8), data: &[u8]) -> Option<Vec<u8>> {
        let (_, own, other) = self.ends(from)?;
        let [high, low] = own.1.max(other.1).to_be_bytes();
        let sequence = data.last_chunk().copied().unwrap_or([0, 1]);
        let rest = [high, low, sequence[0], sequence[1]];
        Some(match (own.0, other.0) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => icmpv6(src, dst, (kind, code, rest), data),
            _ => icmp(kind, code, rest, data),
        })
    }

    /// A packet of an end with these octets behind its IP header, which has this protocol. `None`: as for
    /// [`Connection::packet`].
    pub fn input(
        &self,
        index: u16,
        from: From,
        segment: &Segment,
        (protocol, payload): (u8, &[u8]),
    ) -> Option<Input> {
        let (side, own, other) = self.ends(from)?;
        let ttl = if segment.ttl == 0 { 64 } else { segment.ttl };
        let (ethertype, packet) = match (own.0, other.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (tos, df) = (segment.tos, segment.df);
                let header = Ipv4 { id: index, tos, ttl, df, ..Ipv4::new(src, dst, protocol) };
                (ETHERTYPE_IPV4, header.packet(payload))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6 {
                    flow_label: index.into(),
                    traffic_class: segment.tos,
                    hop_limit: ttl,
                    ..Ipv6::new(src, dst, protocol)
                };
                (ETHERTYPE_IPV6, header.packet(payload))
            }
            _ => return None,
        };
        let (to, by) = hardware(side);
        let note = format!("{} {from:?} {}", name(self.protocol), segment.note);
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

fn name(protocol: u8) -> String {
    match protocol {
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        ICMP | ICMPV6 => "echo".into(),
        GRE => "GRE".into(),
        other => format!("protocol {other}"),
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Source and destination of a packet without options or extension headers; of echo requests the source has the
/// identifier.
fn ends_of(frame: &[u8]) -> Option<(End, End)> {
    let network = frame.get(ETH_LEN..)?;
    let (source, destination, protocol, transport): (IpAddr, IpAddr, _, _) = match be16(frame, 12)?
    {
        ETHERTYPE_IPV4 => {
            let address = |at: usize| Some(Ipv4Addr::from(*network.get(at..)?.first_chunk::<4>()?));
            (address(12)?.into(), address(16)?.into(), *network.get(9)?, 20)
        }
        ETHERTYPE_IPV6 => {
            let address =
                |at: usize| Some(Ipv6Addr::from(*network.get(at..)?.first_chunk::<16>()?));
            (address(8)?.into(), address(24)?.into(), *network.get(6)?, 40)
        }
        _ => return None,
    };
    let ports = match protocol {
        TCP | UDP => (be16(network, transport)?, be16(network, transport + 2)?),
        ICMP | ICMPV6 => (be16(network, transport + 4)?, 0),
        _ => (0, 0),
    };
    Some(((source, ports.0), (destination, ports.1)))
}

/// The protocol number of a name.
pub fn protocol(is_tcp: bool) -> u8 {
    if is_tcp { TCP } else { UDP }
}
