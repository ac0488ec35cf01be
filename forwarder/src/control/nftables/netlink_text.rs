//! Expressions as `nft --debug=netlink` (libnftnl) prints them: registers, offsets and octets.

use crate::netfilter::conntrack::Direction;
use crate::netfilter::nft::ruleset::{
    BitwiseOp, Checksum, CmpOp, CtKey, Expr, ExthdrOp, FibDev, FibKey, FibQuery, MetaKey,
    PayloadBase, Reg, RuleVerdict, SetPayload, TupleEnd,
};
use crate::netfilter::nft::xfrm::{XfrmKey, XfrmQuery};

/// Names of libnftnl, by NFT_META_* number.
const META: [&str; 35] = [
    "len",
    "protocol",
    "priority",
    "mark",
    "iif",
    "oif",
    "iifname",
    "oifname",
    "iiftype",
    "oiftype",
    "skuid",
    "skgid",
    "nftrace",
    "rtclassid",
    "secmark",
    "nfproto",
    "l4proto",
    "bri_iifname",
    "bri_oifname",
    "pkttype",
    "cpu",
    "iifgroup",
    "oifgroup",
    "cgroup",
    "prandom",
    "secpath",
    "iifkind",
    "oifkind",
    "bri_iifpvid",
    "bri_iifvproto",
    "time",
    "day",
    "hour",
    "sdif",
    "sdifname",
];

/// An expression in brackets.
pub fn expr(expr: &Expr) -> String {
    let text = match expr {
        Expr::Immediate { dreg, value } => format!("immediate reg {} {}", reg(*dreg), hex(value)),
        Expr::Verdict(of) => format!("immediate reg 0 {}", verdict(of)),
        Expr::Cmp { sreg, op, data } => {
            let op = match op {
                CmpOp::Eq => "eq",
                CmpOp::Neq => "neq",
                CmpOp::Lt => "lt",
                CmpOp::Lte => "lte",
                CmpOp::Gt => "gt",
                CmpOp::Gte => "gte",
            };
            format!("cmp {op} reg {} {}", reg(*sreg), hex(data))
        }
        Expr::Range { sreg, invert, from, to } => {
            let op = if *invert { "neq" } else { "eq" };
            format!("range {op} reg {} {} {}", reg(*sreg), hex(from), hex(to))
        }
        Expr::Bitwise { sreg, dreg, op, .. } => {
            format!("bitwise reg {} = {}", reg(*dreg), bitwise(*sreg, op))
        }
        Expr::Byteorder { sreg, dreg, len, size } => {
            format!("byteorder reg {} = hton(reg {}, {size}, {len})", reg(*dreg), reg(*sreg))
        }
        Expr::Lookup { sreg, dreg, is_vmap, set, invert } => {
            let dreg = match (dreg, is_vmap) {
                (Some(dreg), _) => format!(" dreg {}", reg(*dreg)),
                (None, true) => " dreg 0".into(),
                (None, false) => String::new(),
            };
            format!("lookup reg {} set {set}{dreg} 0x{:x}", reg(*sreg), u8::from(*invert))
        }
        Expr::Payload { dreg, base, offset, len } => {
            let base = header(*base);
            format!("payload load {len}b @ {base} header + {offset} => reg {}", reg(*dreg))
        }
        Expr::SetPayload(set) => set_payload(set),
        Expr::Exthdr { dreg, op, kind, offset, len, present } => {
            let op = match op {
                ExthdrOp::Ipv6 => "ipv6",
                ExthdrOp::TcpOpt => "tcpopt",
                ExthdrOp::Ipv4 => "ipv4",
            };
            let present = if *present { " present" } else { "" };
            format!("exthdr load {op} {len}b @ {kind} + {offset}{present} => reg {}", reg(*dreg))
        }
        Expr::Meta { dreg, key } => format!("meta load {} => reg {}", meta(*key), reg(*dreg)),
        Expr::Ct { dreg, key } => {
            let (name, direction) = ct(*key);
            let direction = direction.map(|of| match of {
                Direction::Original => " , dir original",
                Direction::Reply => " , dir reply",
            });
            format!("ct load {name} => reg {}{}", reg(*dreg), direction.unwrap_or_default())
        }
        Expr::Fib { dreg, query } => {
            let present = if query.present { " present" } else { "" };
            format!("{}{present} => reg {}", fib(*query), reg(*dreg))
        }
        Expr::Xfrm { dreg, query } => format!("{} => reg {}", xfrm(*query), reg(*dreg)),
        Expr::SetMark { sreg } => format!("meta set mark with reg {}", reg(*sreg)),
        Expr::SetCtMark { sreg } => format!("ct set mark with reg {}", reg(*sreg)),
        Expr::Xt(of) => of.to_string(),
        Expr::Connmark(target) => target.to_string(),
        Expr::Mangle(target) => target.to_string(),
        Expr::Counter { packets, octets } => format!("counter pkts {packets} bytes {octets}"),
        Expr::Objref { kind, name } => format!("objref type {kind} name {name}"),
        Expr::Notrack => "notrack".into(),
        Expr::Other(other) => other.name.clone(),
    };
    format!("[ {text} ]")
}

fn header(base: PayloadBase) -> &'static str {
    match base {
        PayloadBase::Link => "link",
        PayloadBase::Network => "network",
        PayloadBase::Transport => "transport",
    }
}

fn set_payload(set: &SetPayload) -> String {
    let SetPayload { sreg, base, offset, len, checksum, pseudo_header } = *set;
    let (kind, at) = match checksum {
        Checksum::None => (0, 0),
        Checksum::Inet(at) => (1, at),
        // `struct sctphdr`.
        Checksum::Sctp => (2, 8),
    };
    format!(
        "payload write reg {} => {len}b @ {} header + {offset} \
         csum_type {kind} csum_off {at} csum_flags 0x{:x}",
        reg(sreg),
        header(base),
        u8::from(pseudo_header)
    )
}

fn reg(reg: Reg) -> u8 {
    if reg.0.is_multiple_of(16) { reg.0 / 16 + 1 } else { reg.0 / 4 + 8 }
}

/// Words of 32 bits in host byte order.
pub fn words(octets: &[u8], prefix: &str) -> String {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        format!("{prefix}{:08x}", u32::from_ne_bytes(word))
    };
    octets.chunks(4).map(word).collect::<Vec<String>>().join(" ")
}

fn hex(octets: &[u8]) -> String {
    words(octets, "0x")
}

/// A verdict.
pub fn verdict(verdict: &RuleVerdict) -> String {
    match verdict {
        RuleVerdict::Accept => "accept".into(),
        RuleVerdict::Drop => "drop".into(),
        RuleVerdict::Continue => "continue".into(),
        RuleVerdict::Break => "break".into(),
        RuleVerdict::Jump(chain) => format!("jump -> {chain}"),
        RuleVerdict::Goto(chain) => format!("goto -> {chain}"),
        RuleVerdict::Return => "return".into(),
        RuleVerdict::Other(code) => format!("verdict {code}"),
    }
}

/// The name of a key of `ct` in libnftnl, and its direction.
fn ct(key: CtKey) -> (&'static str, Option<Direction>) {
    match key {
        CtKey::State => ("state", None),
        CtKey::Direction => ("direction", None),
        CtKey::Status => ("status", None),
        CtKey::Mark => ("mark", None),
        CtKey::L3Proto => ("l3protocol", None),
        CtKey::Protocol => ("protocol", None),
        CtKey::Zone => ("zone", None),
        CtKey::Ipv4(of, TupleEnd::Src) => ("src_ip", Some(of)),
        CtKey::Ipv4(of, TupleEnd::Dst) => ("dst_ip", Some(of)),
        CtKey::Ipv6(of, TupleEnd::Src) => ("src_ip6", Some(of)),
        CtKey::Ipv6(of, TupleEnd::Dst) => ("dst_ip6", Some(of)),
        CtKey::Port(of, TupleEnd::Src) => ("proto_src", Some(of)),
        CtKey::Port(of, TupleEnd::Dst) => ("proto_dst", Some(of)),
    }
}

/// What `fib` looks up, as nft prints it.
pub fn fib(query: FibQuery) -> String {
    let FibQuery { key, daddr, dev, mark, .. } = query;
    let mut text = format!("fib {}", if daddr { "daddr" } else { "saddr" });
    if mark {
        text += " . mark";
    }
    text += match dev {
        Some(FibDev::Iif) => " . iif",
        Some(FibDev::Oif) => " . oif",
        None => "",
    };
    let key = match key {
        FibKey::Oif => "oif",
        FibKey::OifName => "oifname",
        FibKey::Type => "type",
    };
    format!("{text} {key}")
}

fn xfrm(query: XfrmQuery) -> String {
    let key = match query.key {
        XfrmKey::Present => return "rt load ipsec".into(),
        XfrmKey::Daddr4 => "daddr4",
        XfrmKey::Daddr6 => "daddr6",
        XfrmKey::Saddr4 => "saddr4",
        XfrmKey::Saddr6 => "saddr6",
        XfrmKey::Reqid => "reqid",
        XfrmKey::Spi => "spi",
    };
    format!("xfrm load {} {} {key}", query.dir, query.spnum)
}

fn meta(key: MetaKey) -> String {
    let number = match key {
        MetaKey::Len => 0,
        MetaKey::Protocol => 1,
        MetaKey::Mark => 3,
        MetaKey::Iif => 4,
        MetaKey::Oif => 5,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::IifType => 8,
        MetaKey::OifType => 9,
        MetaKey::SkUid => 10,
        MetaKey::SkGid => 11,
        MetaKey::NfProto => 15,
        MetaKey::L4Proto => 16,
        MetaKey::PktType => 19,
        MetaKey::SecPath => 25,
        MetaKey::Other(number) => number as usize,
    };
    META.get(number).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

fn bitwise(sreg: Reg, op: &BitwiseOp) -> String {
    let sreg = reg(sreg);
    match op {
        BitwiseOp::MaskXor { mask, xor } => {
            format!("( reg {sreg} & {} ) ^ {}", hex(mask), hex(xor))
        }
        BitwiseOp::Lshift(bits) => format!("( reg {sreg} << 0x{bits:08x} )"),
        BitwiseOp::Rshift(bits) => format!("( reg {sreg} >> 0x{bits:08x} )"),
        BitwiseOp::And(other) => format!("( reg {sreg} & reg {} )", reg(*other)),
        BitwiseOp::Or(other) => format!("( reg {sreg} | reg {} )", reg(*other)),
        BitwiseOp::Xor(other) => format!("( reg {sreg} ^ reg {} )", reg(*other)),
    }
}
