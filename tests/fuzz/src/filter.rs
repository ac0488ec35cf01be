//! Compares capture filters with two other interpreters: libpcap's for expressions that libpcap compiled;
//! the kernel's, as a filter on a socket, for programs of arbitrary instructions.

use std::cell::OnceCell;
use std::fmt::{self, Write};
use std::os::unix::net::UnixDatagram;

use arbitrary::Arbitrary;
use ferroute::capture::Insn;
use pcap::{Capture, Linktype};
use socket2::{SockFilter, SockRef};

/// Maximum primitives and operators of one expression: libpcap's optimiser is slow with many.
const TERMS_MAX: usize = 12;
/// Maximum instructions of one program.
const INSNS_MAX: usize = 64;

/// One test of tcpdump's language; numbers are reduced to their range.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Primitive {
    /// `ip host`, and `src`, `dst`.
    Host(Direction, u8),
    /// `ip6 host`.
    Host6(Direction, u8),
    /// `net`.
    Net(u8, u8),
    /// `port`.
    Port(Direction, Transport, u8),
    /// `portrange`.
    PortRange(Transport, u8, u8),
    /// A protocol's name.
    Protocol(Protocol),
    /// `ether host`.
    Ether(Direction, u8),
    /// `vlan`.
    Vlan(Option<u8>),
    /// `greater`.
    Greater(u16),
    /// `less`.
    Less(u16),
    /// `proto[offset:size] & mask relation value`.
    Octets(Layer, u8, Size, u32, Relation, u32),
    /// Arithmetic with an octet.
    Arithmetic(Layer, u8, Operator, u8, Relation, u16),
    /// An octet that is the offset of another.
    Indirect(Layer, u8, u8, Relation, u8),
}

/// Source or destination.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Direction {
    /// Either.
    Any,
    /// Source.
    Src,
    /// Destination.
    Dst,
    /// Both.
    Both,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Transport {
    /// Either.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The header that an offset in `[ ]` is relative to.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Layer {
    /// The frame.
    Ether,
    /// The IPv4 packet.
    Ip,
    /// The IPv6 packet.
    Ip6,
    /// The TCP segment.
    Tcp,
    /// The UDP datagram.
    Udp,
    /// The ICMP message.
    Icmp,
}

/// Octets of a field.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Size {
    /// 1.
    One,
    /// 2.
    Two,
    /// 4.
    Four,
}

/// A comparison.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Relation {
    /// `=`.
    Eq,
    /// `!=`.
    Ne,
    /// `<`.
    Lt,
    /// `>`.
    Gt,
    /// `<=`.
    Le,
    /// `>=`.
    Ge,
}

/// An operator on numbers.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Operator {
    /// `+`.
    Add,
    /// `-`.
    Sub,
    /// `*`.
    Mul,
    /// `/`; libpcap refuses division by zero.
    Div,
    /// `%`.
    Mod,
    /// `&`.
    And,
    /// `|`.
    Or,
    /// `^`.
    Xor,
}

/// Names of protocols.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Protocol {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
    /// `arp`.
    Arp,
    /// `tcp`.
    Tcp,
    /// `udp`.
    Udp,
    /// `icmp`.
    Icmp,
    /// `icmp6`.
    Icmp6,
    /// `ip broadcast`.
    Broadcast,
    /// `ether multicast`.
    Multicast,
    /// `ip6 multicast`.
    Multicast6,
}

macro_rules! words {
    ($($name:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $word,)+ })
            }
        })+
    };
}
words! {
    Direction { Any = "", Src = "src", Dst = "dst", Both = "src and dst" }
    Transport { Any = "", Tcp = "tcp", Udp = "udp" }
    Layer { Ether = "ether", Ip = "ip", Ip6 = "ip6", Tcp = "tcp", Udp = "udp", Icmp = "icmp" }
    Size { One = "1", Two = "2", Four = "4" }
    Relation { Eq = "=", Ne = "!=", Lt = "<", Gt = ">", Le = "<=", Ge = ">=" }
    Operator {
        Add = "+", Sub = "-", Mul = "*", Div = "/", Mod = "%", And = "&", Or = "|", Xor = "^",
    }
    Protocol {
        Ip = "ip", Ip6 = "ip6", Arp = "arp", Tcp = "tcp", Udp = "udp", Icmp = "icmp",
        Icmp6 = "icmp6", Broadcast = "ip broadcast", Multicast = "ether multicast",
        Multicast6 = "ip6 multicast",
    }
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Primitive::Host(direction, n) => write!(f, "ip {direction} host 198.18.1.{n}"),
            Primitive::Host6(direction, n) => {
                write!(f, "ip6 {direction} host 2001:db8:1::{n:x}")
            }
            Primitive::Net(n, len) => {
                let len = len % 33;
                let net = u32::from_be_bytes([198, n, n, n])
                    & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                write!(f, "net {}/{len}", std::net::Ipv4Addr::from_bits(net))
            }
            Primitive::Port(direction, transport, n) => {
                write!(f, "{transport} {direction} port {n}")
            }
            Primitive::PortRange(transport, n, m) => {
                write!(f, "{transport} portrange {}-{}", n.min(m), n.max(m))
            }
            Primitive::Protocol(protocol) => protocol.fmt(f),
            Primitive::Ether(direction, n) => {
                write!(f, "ether {direction} host 02:00:00:00:00:{n:02x}")
            }
            Primitive::Vlan(None) => f.write_str("vlan"),
            Primitive::Vlan(Some(n)) => write!(f, "vlan {n}"),
            Primitive::Greater(n) => write!(f, "greater {n}"),
            Primitive::Less(n) => write!(f, "less {n}"),
            Primitive::Octets(layer, offset, size, mask, relation, value) => {
                write!(f, "{layer}[{offset}:{size}] & {mask} {relation} {value}")
            }
            Primitive::Arithmetic(layer, offset, operator, n, relation, value) => {
                write!(f, "{layer}[{offset}] {operator} {n} {relation} {value}")
            }
            Primitive::Indirect(layer, offset, n, relation, value) => {
                write!(f, "{layer}[{layer}[{offset}] + {n}] {relation} {value}")
            }
        }
    }
}

/// An expression in postfix notation.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Term {
    /// A test.
    Primitive(Primitive),
    /// The last two operands.
    And,
    /// The last two operands.
    Or,
    /// The last operand.
    Not,
}

/// The text of an expression; remaining operands are joined by `and`.
pub fn text(terms: &[Term]) -> String {
    let mut stack: Vec<String> = Vec::new();
    for term in terms.iter().take(TERMS_MAX) {
        match term {
            Term::Primitive(primitive) => stack.push(primitive.to_string()),
            Term::Not => {
                if let Some(last) = stack.pop() {
                    stack.push(format!("not ({last})"));
                }
            }
            Term::And | Term::Or if stack.len() > 1 => {
                let word = if matches!(term, Term::And) { "and" } else { "or" };
                let (last, first) = (stack.pop(), stack.pop());
                let mut both = String::new();
                let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
                let _ = write!(both, "({first}) {word} ({last})");
                stack.push(both);
            }
            Term::And | Term::Or => {}
        }
    }
    stack.iter().map(|part| format!("({part})")).collect::<Vec<_>>().join(" and ")
}

/// Whether a packet matches according to libpcap. `None`: libpcap does not compile the text.
pub fn libpcap(text: &str, packet: &[u8]) -> Option<bool> {
    let dead = Capture::dead(Linktype::ETHERNET).expect("memory");
    Some(dead.compile(text, true).ok()?.filter(packet))
}

/// Codes of valid instructions (`bpf_check_classic`).
const CODES: [u16; 45] = [
    0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x80, 0x60, 0x01, 0x81, 0xb1, 0x61, 0x02, 0x03, 0x04,
    0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84,
    0x94, 0x9c, 0xa4, 0xac, 0x05, 0x15, 0x1d, 0x25, 0x35, 0x45, 0x16, 0x07, 0x87,
];

/// A program. Most of its instructions are valid, jump a short distance and read the front of the packet,
/// and it ends with a return; the other instructions are unchanged.
pub fn program(insns: &[(u16, u8, u8, u32)]) -> Vec<Insn> {
    let insn = |&(code, jt, jf, k): &(u16, u8, u8, u32)| {
        if code & 0xf000 == 0xf000 {
            return Insn { code: code & 0x3ff, jt, jf, k };
        }
        let code = CODES[usize::from(code) % CODES.len()];
        let k = match code {
            0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0xb1 => k % 128,
            0x60 | 0x61 | 0x02 | 0x03 => k % 16,
            0x64 | 0x74 => k % 32,
            0x05 => k % 8,
            _ => k,
        };
        Insn { code, jt: jt % 8, jf: jf % 8, k }
    };
    let insns: Vec<Insn> = insns.iter().take(INSNS_MAX).map(insn).collect();
    let mut program = Vec::new();
    // The kernel refuses programs that load from scratch memory before storing there.
    if insns.iter().any(|insn| matches!(insn.code, 0x60 | 0x61)) {
        program.extend((0..16).map(|k| Insn { code: 0x02, jt: 0, jf: 0, k }));
    }
    program.extend(insns);
    // As far as a jump can reach.
    program.extend([Insn { code: 0x06, jt: 0, jf: 0, k: 0 }; 4]);
    program.extend([Insn { code: 0x06, jt: 0, jf: 0, k: 96 }; 4]);
    program
}

/// Whether the kernel's result is comparable. It differs by design in three points, which no program that
/// libpcap compiles has: offsets beyond 2³¹ are extensions (SKF_AD_OFF and the like), and therefore also
/// sums with X in that range; it shifts by X modulo 32.
pub fn is_common(insns: &[Insn]) -> bool {
    let class = |insn: &Insn| insn.code & 7;
    let is_load = |insn: &Insn| class(insn) <= 1;
    let beyond = |insn: &Insn| is_load(insn) && insn.k >= 1 << 30;
    let by_x = |insn: &Insn| {
        class(insn) == 4 && matches!(insn.code & 0xf0, 0x60 | 0x70) && insn.code & 8 != 0
    };
    let indirect = |insn: &Insn| class(insn) == 0 && insn.code & 0xe0 == 0x40;
    // TAX, or X from memory.
    let any_x = |insn: &Insn| {
        (class(insn) == 7 && insn.code & 0xf8 == 0)
            || (class(insn) == 1 && insn.code & 0xe0 == 0x60)
    };
    let wraps = insns.iter().any(indirect) && insns.iter().any(any_x);
    !wraps && !insns.iter().any(|insn| beyond(insn) || by_x(insn))
}

thread_local! {
    static SOCKETS: OnceCell<(UnixDatagram, UnixDatagram)> = const { OnceCell::new() };
}

/// Whether a packet matches according to the kernel (SO_ATTACH_FILTER, socket(7)). `None`: the kernel
/// refuses the program.
pub fn kernel(insns: &[Insn], packet: &[u8]) -> Option<bool> {
    let insns: Vec<SockFilter> =
        insns.iter().map(|insn| SockFilter::new(insn.code, insn.jt, insn.jf, insn.k)).collect();
    SOCKETS.with(|sockets| {
        let (to, from) = sockets.get_or_init(|| {
            let pair = UnixDatagram::pair().expect("a pair of sockets");
            pair.1.set_nonblocking(true).expect("a socket can be so");
            pair
        });
        SockRef::from(from).attach_filter(&insns).ok()?;
        to.send(packet).expect("a filtered packet counts as sent");
        Some(from.recv(&mut [0; 1]).is_ok())
    })
}
