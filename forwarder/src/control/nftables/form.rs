//! How nft writes expressions that are not evaluated: their attributes as text (the print functions in src/statement.c and
//! src/expression.c of nftables 1.0.6). What the kernel changes, as the octets that a quota has used, is left out.

use super::attrs::{NftValues as _, Table};
use super::print::fields::{tcp_option, tcp_option_field};
use super::print::names::{ICMP_CODES, ICMPV6_CODES, Names, find};
use super::uapi::*;
use crate::control::netlink::message::Attrs;
use crate::netfilter::nft::other::{Form, Implied, Part, Type};
use crate::netfilter::nft::ruleset::{Family, Reg};

/// Of an expression with this name in a table of this family; `None`: it is not known.
pub fn of(family: Family, name: &str, data: Attrs<'_>) -> Option<Form> {
    let parts = match name {
        "limit" => vec![text(limit(data)?)],
        "quota" => vec![text(quota(data)?)],
        "log" => vec![text(log(data)?)],
        "reject" => return reject(family, data),
        "connlimit" => vec![text(connlimit(data)?)],
        "synproxy" => vec![text(synproxy(data)?)],
        "last" => vec![text("last")],
        "flow_offload" => {
            let table = Table::<2>::lenient(data)?;
            vec![text(format!("flow add @{}", table.name(NFTA_FLOW_TABLE_NAME)?))]
        }
        "queue" => queue(data)?,
        "masq" => masq(data)?,
        "redir" => redir(data)?,
        "nat" => return nat(family, data),
        "tproxy" => return tproxy(family, data),
        "dup" => dup(data)?,
        "fwd" => fwd(data)?,
        "dynset" => dynset(data)?,
        "exthdr" => exthdr(data)?,
        "ct" | "meta" => return set_or_loaded(name, data),
        "numgen" | "hash" | "rt" | "socket" => return loaded(name, data),
        _ => return None,
    };
    Some(Form { parts, loads: None, implies: None })
}

fn text(text: impl Into<String>) -> Part {
    Part::Text(text.into())
}

/// Of `nft_limit`.
fn limit(data: Attrs<'_>) -> Option<String> {
    // NFTA_LIMIT_RATE, _UNIT, _BURST, _TYPE, _FLAGS; NFT_LIMIT_F_INV.
    let table = Table::<6>::lenient(data)?;
    let over = if table.be32_or(5, 0)? & 1 != 0 { "over " } else { "" };
    let (rate, burst) = (table.be64(1)?, table.be32_or(3, 0)?);
    let unit = match table.be64(2)? {
        1 => "second",
        60 => "minute",
        3600 => "hour",
        86_400 => "day",
        604_800 => "week",
        _ => return None,
    };
    // Those that nft sets if none is given.
    match (table.be32_or(4, 0)?, burst) {
        (0, 0 | 5) => Some(format!("limit rate {over}{rate}/{unit}")),
        (0, _) => Some(format!("limit rate {over}{rate}/{unit} burst {burst} packets")),
        (1, 0) => Some(format!("limit rate {over}{}/{unit}", octets(rate))),
        (1, _) => {
            let burst = octets(burst.into());
            Some(format!("limit rate {over}{}/{unit} burst {burst}", octets(rate)))
        }
        _ => None,
    }
}

/// Octets, in the largest unit of which they are a multiple.
fn octets(mut number: u64) -> String {
    let mut units = ["bytes", "kbytes", "mbytes"].into_iter().peekable();
    while let Some(unit) = units.next() {
        if number == 0 || !number.is_multiple_of(1024) || units.peek().is_none() {
            return format!("{number} {unit}");
        }
        number /= 1024;
    }
    number.to_string()
}

fn quota(data: Attrs<'_>) -> Option<String> {
    // NFTA_QUOTA_BYTES, NFTA_QUOTA_FLAGS; NFT_QUOTA_F_INV.
    let table = Table::<3>::lenient(data)?;
    let over = if table.be32_or(2, 0)? & 1 != 0 { "over " } else { "" };
    Some(format!("quota {over}{}", octets(table.be64(1)?)))
}

/// NF_LOG_*.
const LOG_FLAGS: [(u32, &str); 3] = [(4, "ip options"), (8, "skuid"), (0x20, "ether")];
const LOG_TCP_SEQUENCE: u32 = 1;
const LOG_TCP_OPTIONS: u32 = 2;
const LOG_ALL: u32 = 0x2f;
/// Levels by number; nft's default is the fifth.
const LOG_LEVELS: [&str; 9] =
    ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit"];
const LOG_LEVEL_DEFAULT: u32 = 4;

fn log(data: Attrs<'_>) -> Option<String> {
    // NFTA_LOG_GROUP, _PREFIX, _SNAPLEN, _QTHRESHOLD, _LEVEL, _FLAGS.
    let table = Table::<7>::lenient(data)?;
    let mut text = String::from("log");
    if let Some(prefix) = table.name(2) {
        text += &format!(" prefix \"{prefix}\"");
    }
    for (kind, name) in [(1, "group"), (3, "snaplen"), (4, "queue-threshold")] {
        let number = table.be16(kind).map(u32::from).or_else(|| table.be32(kind));
        // The kernel reports what is set.
        if let Some(number) = number {
            text += &format!(" {name} {number}");
        }
    }
    let level = table.be32_or(5, LOG_LEVEL_DEFAULT)?;
    if level != LOG_LEVEL_DEFAULT {
        text += &format!(" level {}", LOG_LEVELS.get(level as usize)?);
    }
    let flags = table.be32_or(6, 0)?;
    if flags & LOG_ALL == LOG_ALL {
        return Some(text + " flags all");
    }
    let tcp = [(LOG_TCP_SEQUENCE, "sequence"), (LOG_TCP_OPTIONS, "options")];
    let tcp: Vec<&str> = names(&tcp, flags);
    if !tcp.is_empty() {
        text += &format!(" flags tcp {}", tcp.join(","));
    }
    names(&LOG_FLAGS, flags).iter().for_each(|name| text += &format!(" flags {name}"));
    Some(text)
}

/// The names of the flags that are set.
fn names(all: &[(u32, &'static str)], flags: u32) -> Vec<&'static str> {
    all.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect()
}

/// NFT_REJECT_ICMPX_*.
const ICMPX_CODES: [&str; 4] =
    ["no-route", "port-unreachable", "host-unreachable", "admin-prohibited"];
const ICMPX_PORT_UNREACHABLE: u8 = 1;
fn reject(family: Family, data: Attrs<'_>) -> Option<Form> {
    // NFTA_REJECT_TYPE, NFTA_REJECT_ICMP_CODE.
    let table = Table::<3>::lenient(data)?;
    let is_one = matches!(family, Family::Ip | Family::Ip6);
    let icmp = |of: &str, codes: &Names| {
        let code = table.u8(2)?;
        // nft leaves out the default where there is one family.
        Some(match find(codes, code.into()) {
            Some("port-unreachable") if is_one => "reject".into(),
            Some(name) => format!("reject with {of} {name}"),
            None => format!("reject with {of} {code}"),
        })
    };
    let kind = table.be32(1)?;
    let part = match (kind, family) {
        (1, _) => text("reject with tcp reset"),
        (2, _) => match table.u8(2)? {
            ICMPX_PORT_UNREACHABLE => text("reject"),
            code => text(format!("reject with icmpx {}", ICMPX_CODES.get(usize::from(code))?)),
        },
        (0, Family::Ip) => text(icmp("icmp", ICMP_CODES)?),
        (0, Family::Ip6) => text(icmp("icmpv6", ICMPV6_CODES)?),
        (0, _) => Part::OfFamily([icmp("icmp", ICMP_CODES)?, icmp("icmpv6", ICMPV6_CODES)?]),
        _ => return None,
    };
    let implies = (kind == 1 && is_one).then_some(Implied::Tcp);
    Some(Form { parts: vec![part], loads: None, implies })
}

fn connlimit(data: Attrs<'_>) -> Option<String> {
    // NFTA_CONNLIMIT_COUNT, NFTA_CONNLIMIT_FLAGS; NFT_CONNLIMIT_F_INV.
    let table = Table::<3>::lenient(data)?;
    let over = if table.be32_or(2, 0)? & 1 != 0 { "over " } else { "" };
    Some(format!("ct count {over}{}", table.be32(1)?))
}

fn synproxy(data: Attrs<'_>) -> Option<String> {
    // NFTA_SYNPROXY_MSS, _WSCALE, _FLAGS; NF_SYNPROXY_OPT_*.
    let table = Table::<4>::lenient(data)?;
    let flags = table.be32_or(3, 0)?;
    let mut text = String::from("synproxy");
    // NF_SYNPROXY_OPT_MSS, _WSCALE: nft writes both with either.
    if flags & 3 != 0 {
        text += &format!(" mss {} wscale {}", table.be16(1).unwrap_or(0), table.u8(2).unwrap_or(0));
    }
    for name in names(&[(8, "timestamp"), (4, "sack-perm")], flags) {
        text += &format!(" {name}");
    }
    Some(text)
}

fn queue(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_QUEUE_NUM, _TOTAL, _FLAGS, _SREG_QNUM; NFT_QUEUE_FLAG_BYPASS, _CPU_FANOUT.
    let table = Table::<5>::lenient(data)?;
    let flags = names(&[(1, "bypass"), (2, "fanout")], table.be16(3).unwrap_or(0).into());
    let flags =
        if flags.is_empty() { String::new() } else { format!(" flags {}", flags.join(",")) };
    if table.has(4) {
        return Some(vec![
            text(format!("queue{flags} to ")),
            Part::Reg(table.reg(4)?, Type::Number),
        ]);
    }
    let (first, count) = (table.be16(1)?, table.be16(2).unwrap_or(1));
    Some(vec![text(match count {
        0 | 1 => format!("queue{flags} to {first}"),
        count => format!("queue{flags} to {first}-{}", u32::from(first) + u32::from(count) - 1),
    })])
}

/// NF_NAT_RANGE_PROTO_RANDOM, _PROTO_RANDOM_FULLY, _PERSISTENT.
const NAT_FLAGS: [(u32, &str); 3] = [(4, "random"), (16, "fully-random"), (8, "persistent")];
const NAT_NETMAP: u32 = 64;

fn nat_flags(flags: u32) -> Option<Part> {
    let names = names(&NAT_FLAGS, flags);
    (!names.is_empty()).then(|| text(format!(" {}", names.join(","))))
}

/// Registers of a range, after `sign`. nf_tables reports the first one twice if there is only one.
fn between(sign: &'static str, [from, to]: [Option<Reg>; 2], kind: Type) -> Vec<Part> {
    let from = from.map(|reg| Part::After(sign, reg, kind));
    let to = to.filter(|reg| !matches!(&from, Some(Part::After(_, first, _)) if first == reg));
    from.into_iter().chain(to.map(|reg| Part::After("-", reg, kind))).collect()
}

fn registers<const N: usize>(table: &Table<'_, N>, kinds: [u16; 2]) -> Option<[Option<Reg>; 2]> {
    let reg = |kind| match table.has(kind) {
        true => table.reg(kind).map(Some),
        false => Some(None),
    };
    Some([reg(kinds[0])?, reg(kinds[1])?])
}

fn masq(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_MASQ_FLAGS, _REG_PROTO_MIN, _REG_PROTO_MAX.
    let table = Table::<4>::lenient(data)?;
    let mut parts = vec![text("masquerade")];
    parts.extend(between(" to :", registers(&table, [2, 3])?, Type::Port));
    parts.extend(nat_flags(table.be32_or(1, 0)?));
    Some(parts)
}

fn redir(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_REDIR_REG_PROTO_MIN, _REG_PROTO_MAX, _FLAGS.
    let table = Table::<4>::lenient(data)?;
    let mut parts = vec![text("redirect")];
    parts.extend(between(" to :", registers(&table, [1, 2])?, Type::Port));
    parts.extend(nat_flags(table.be32_or(3, 0)?));
    Some(parts)
}

/// NFPROTO_IPV4, NFPROTO_IPV6 as nft names them.
fn address_family(number: u32) -> Option<(&'static str, Type)> {
    match number {
        2 => Some(("ip", Type::Ipv4)),
        10 => Some(("ip6", Type::Ipv6)),
        _ => None,
    }
}

fn nat(family: Family, data: Attrs<'_>) -> Option<Form> {
    // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_ADDR_MAX, _REG_PROTO_MIN, _REG_PROTO_MAX, _FLAGS.
    let table = Table::<8>::lenient(data)?;
    let what = if table.be32(1)? == 0 { "snat" } else { "dnat" };
    let (addresses, ports) = (registers(&table, [3, 4])?, registers(&table, [5, 6])?);
    let flags = table.be32_or(7, 0)?;
    // The data of its maps are two addresses each.
    if flags & NAT_NETMAP != 0 {
        return None;
    }
    let named = address_family(table.be32(2)?);
    let mut parts = vec![text(match named {
        Some((name, _)) if family == Family::Inet => format!("{what} {name}"),
        _ => what.into(),
    })];
    let implies = named.map(|(_, kind)| implied(kind));
    match addresses[0] {
        None => parts.extend(between(" to :", ports, Type::Port)),
        Some(_) => {
            let (_, kind) = named?;
            parts.push(text(" to"));
            // Only an address in front of a port needs brackets.
            let kind = match kind {
                Type::Ipv6 if ports[0].is_some() => Type::Bracketed,
                kind => kind,
            };
            parts.extend(between(" ", addresses, kind));
            parts.extend(between(":", ports, Type::Port));
        }
    }
    parts.extend(nat_flags(flags));
    Some(Form { parts, loads: None, implies })
}

fn implied(address: Type) -> Implied {
    if address == Type::Ipv4 { Implied::Ipv4 } else { Implied::Ipv6 }
}

fn tproxy(family: Family, data: Attrs<'_>) -> Option<Form> {
    // NFTA_TPROXY_FAMILY, _REG_ADDR, _REG_PORT.
    let table = Table::<4>::lenient(data)?;
    let [address, port] = registers(&table, [2, 3])?;
    let (name, kind) = match address_family(table.be32_or(1, 0)?) {
        Some((_, Type::Ipv6)) => ("ip6", Type::Bracketed),
        Some(known) => known,
        None => ("", Type::Ipv4),
    };
    let is_named = family == Family::Inet && !name.is_empty();
    let mut parts =
        vec![text(if is_named { format!("tproxy {name} to ") } else { "tproxy to ".into() })];
    parts.extend(address.map(|reg| Part::Reg(reg, kind)));
    parts.extend(port.map(|reg| Part::After(":", reg, Type::Port)));
    let implies = (!name.is_empty()).then(|| implied(kind));
    Some(Form { parts, loads: None, implies })
}

fn dup(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_DUP_SREG_ADDR, _SREG_DEV; of what family the address is shows its constant.
    let table = Table::<3>::lenient(data)?;
    Some(match registers(&table, [1, 2])? {
        [None, Some(dev)] => vec![text("dup to "), Part::Reg(dev, Type::Number)],
        [Some(address), dev] => {
            let mut parts = vec![text("dup to "), Part::Reg(address, Type::Address)];
            parts.extend(dev.map(|reg| Part::After(" device ", reg, Type::Number)));
            parts
        }
        [None, None] => return None,
    })
}

fn fwd(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_FWD_SREG_DEV, _SREG_ADDR, _NFPROTO.
    let table = Table::<4>::lenient(data)?;
    let dev = table.reg(1)?;
    if !table.has(2) {
        return Some(vec![text("fwd to "), Part::Reg(dev, Type::Number)]);
    }
    let (name, kind) = address_family(table.be32(3)?)?;
    Some(vec![
        text(format!("fwd {name} to ")),
        Part::Reg(table.reg(2)?, kind),
        Part::After(" device ", dev, Type::Number),
    ])
}

fn dynset(data: Attrs<'_>) -> Option<Vec<Part>> {
    // NFTA_DYNSET_SET_NAME, _SET_ID, _OP, _SREG_KEY, _SREG_DATA, _TIMEOUT, _EXPR, _PAD, _FLAGS, _EXPRESSIONS.
    let table = Table::<11>::lenient(data)?;
    let set = table.name(NFTA_DYNSET_SET_NAME)?;
    let op = match table.be32(3)? {
        0 => "add",
        1 => "update",
        2 => "delete",
        _ => return None,
    };
    let mut parts = vec![text(format!("{op} @{set} {{ ")), Part::Key(table.reg(4)?, set)];
    // Milliseconds.
    if let Some(timeout) = table.be64(6).filter(|timeout| *timeout != 0) {
        parts.push(text(format!(" timeout {}", duration(timeout))));
    }
    let several = table.nested(NFTA_DYNSET_EXPRESSIONS);
    let one = table.nested(NFTA_DYNSET_EXPR).filter(|_| several.is_none());
    for attrs in one.into_iter().chain(several.into_iter().flatten().map(|attr| attr.nested())) {
        parts.push(text(format!(" {}", stateful(attrs)?)));
    }
    if table.has(5) {
        parts.push(Part::After(" : ", table.reg(5)?, Type::Unknown));
    }
    parts.push(text(" }"));
    Some(parts)
}

/// An expression of an element.
fn stateful(attrs: Attrs<'_>) -> Option<String> {
    let table = Table::<3>::lenient(attrs)?;
    let data = table.nested(NFTA_EXPR_DATA).unwrap_or(Attrs(&[]));
    match table.name(NFTA_EXPR_NAME)?.as_str() {
        "counter" => Some("counter".into()),
        "limit" => limit(data),
        "quota" => quota(data),
        "connlimit" => connlimit(data),
        "last" => Some("last".into()),
        _ => None,
    }
}

/// Milliseconds as nft writes them: `1d2h3m4s500ms`.
fn duration(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = ms;
    let mut text = String::new();
    for (unit, size) in units {
        if rest >= size {
            text += &format!("{}{unit}", rest / size);
            rest %= size;
        }
    }
    text
}

fn exthdr(data: Attrs<'_>) -> Option<Vec<Part>> {
    let table = Table::<8>::lenient(data)?;
    let is_tcp = table.be32_or(NFTA_EXTHDR_OP, 0)? == NFT_EXTHDR_OP_TCPOPT;
    let kind = table.u8(NFTA_EXTHDR_TYPE).filter(|_| is_tcp && !table.has(NFTA_EXTHDR_DREG))?;
    let name = tcp_option(kind)?;
    if !table.has(NFTA_EXTHDR_SREG) {
        return Some(vec![text(format!("reset tcp option {name}"))]);
    }
    let bits = |kind| table.be32(kind)?.checked_mul(8);
    let field = tcp_option_field(kind, bits(NFTA_EXTHDR_OFFSET)?, bits(NFTA_EXTHDR_LEN)?)?;
    Some(vec![
        text(format!("tcp option {name} {field} set ")),
        Part::Reg(table.reg(NFTA_EXTHDR_SREG)?, Type::Port),
    ])
}

/// `ct` and `meta` that are set, and keys of `ct` that are not evaluated.
fn set_or_loaded(name: &str, data: Attrs<'_>) -> Option<Form> {
    let table = Table::<5>::lenient(data)?;
    let (dreg, number, sreg, names): (_, _, _, &[&str]) = match name {
        "ct" => (NFTA_CT_DREG, table.be32(NFTA_CT_KEY)?, NFTA_CT_SREG, &CT_NAMES),
        _ => (NFTA_META_DREG, table.be32(NFTA_META_KEY)?, NFTA_META_SREG, &META_NAMES),
    };
    let direction = match table.u8(NFTA_CT_DIRECTION).filter(|_| name == "ct") {
        Some(0) => "original ",
        Some(1) => "reply ",
        Some(_) => return None,
        None => "",
    };
    let key = format!("{name} {direction}{}", names.get(number as usize)?);
    if table.has(sreg) {
        let kind = match (name, number) {
            // NFT_CT_ZONE, NFT_META_NFTRACE.
            ("ct", 17) | ("meta", 12) => Type::Number,
            // NFT_META_PRIORITY.
            ("meta", 2) => Type::Priority,
            _ => return None,
        };
        let parts = vec![text(format!("{key} set ")), Part::Reg(table.reg(sreg)?, kind)];
        return Some(Form { parts, loads: None, implies: None });
    }
    let (octets, kind) = match (name, number) {
        // NFT_CT_HELPER; _PKTS, _BYTES, _AVGPKT; _ZONE.
        ("ct", 6) => (16, Type::Name),
        ("ct", 14..=16) => (8, Type::Number),
        ("ct", 17) => (2, Type::Number),
        _ => return None,
    };
    let loads = Some((table.reg_of(dreg, octets.into())?, octets, kind));
    Some(Form { parts: vec![text(key)], loads, implies: None })
}

fn loaded(name: &str, data: Attrs<'_>) -> Option<Form> {
    let table = Table::<8>::lenient(data)?;
    let offset = |kind| {
        let offset = table.be32_or(kind, 0)?;
        Some(if offset == 0 { String::new() } else { format!(" offset {offset}") })
    };
    let (parts, dreg, octets, kind) = match name {
        // NFTA_NG_DREG, _MODULUS, _TYPE, _OFFSET.
        "numgen" => {
            let how = if table.be32(3)? == 0 { "inc" } else { "random" };
            let text_of = format!("numgen {how} mod {}{}", table.be32(2)?, offset(4)?);
            (vec![text(text_of)], 1, 4, Type::Number)
        }
        // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED, _OFFSET, _TYPE.
        "hash" => {
            let modulus = format!(" mod {}", table.be32(4)?);
            let parts = match table.be32_or(7, 0)? {
                0 => {
                    let seed = match table.be32_or(5, 0)? {
                        0 => String::new(),
                        seed => format!(" seed 0x{seed:x}"),
                    };
                    let fields = Part::Fields(table.reg(1)?, table.len(3)?);
                    vec![text("jhash "), fields, text(modulus + &seed + &offset(6)?)]
                }
                1 => vec![text(format!("symhash{modulus}{}", offset(6)?))],
                _ => return None,
            };
            (parts, 2, 4, Type::Number)
        }
        // NFT_RT_*.
        "rt" => {
            let (text_of, octets, kind) = match table.be32(NFTA_RT_KEY)? {
                0 => ("rt classid", 4, Type::Number),
                1 => ("rt ip nexthop", 4, Type::Ipv4),
                2 => ("rt ip6 nexthop", 16, Type::Ipv6),
                3 => ("rt mtu", 2, Type::Number),
                _ => return None,
            };
            (vec![text(text_of)], NFTA_RT_DREG, octets, kind)
        }
        // NFTA_SOCKET_KEY, _DREG.
        _ => {
            let (text_of, octets, kind) = match table.be32(1)? {
                0 => ("socket transparent", 1, Type::Number),
                1 => ("socket mark", 4, Type::Mark),
                2 => ("socket wildcard", 1, Type::Number),
                _ => return None,
            };
            (vec![text(text_of)], 2, octets, kind)
        }
    };
    let implies = matches!(kind, Type::Ipv4 | Type::Ipv6).then(|| implied(kind));
    Some(Form { parts, loads: Some((table.reg_of(dreg, octets.into())?, octets, kind)), implies })
}
