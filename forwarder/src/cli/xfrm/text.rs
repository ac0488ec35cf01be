//! SAs and policies as text, in the lines of iproute2's `ip xfrm state` and `ip xfrm policy`
//! (`xfrm_state_info_print`, `xfrm_policy_info_print`): the same words, blanks and tabs.
//!
//! Not as there: keys are hidden unless they were read, and one more line has what Ferroute leaves to the kernel.

use super::names;
use crate::control::xfrm::ae::KernelReplay;
use crate::control::xfrm::info::{EncapInfo, SelectorInfo, StateInfo, TemplateInfo};
use crate::control::xfrm::listing::{
    AlgorithmEntry, AlgorithmKind, Extras, PolicyEntry, StateEntry,
};
use crate::ipsec::{Lifetime, Usage};

const ICMP: u8 = 1;
const GRE: u8 = 47;
const ICMPV6: u8 = 58;
const MOBILITY_HEADER: u8 = 135;
/// Protocols of SAs whose SPI is always shown: ESP, AH, IPComp.
const IPSEC: [u8; 3] = [50, 51, 108];
/// Words of a replay window in one line.
const WORDS_PER_LINE: usize = 8;
/// XFRM_POLICY_MAX: directions from here on are those of sockets.
const OF_SOCKETS: u8 = 3;
/// XFRM_OFFLOAD_INBOUND and PACKET.
const OFFLOAD_INBOUND: u8 = 2;
const OFFLOAD_PACKET: u8 = 4;

/// What is shown in addition.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What `ip -s` shows.
    pub statistics: bool,
    /// Why an SA is left to the kernel.
    pub details: bool,
}

/// The lines of an SA.
pub fn state(entry: &StateEntry, options: Options) -> String {
    let StateEntry { info, extras, obstacle } = entry;
    let StateInfo { spi, proto, mode, reqid, .. } = *info;
    let has_stats = options.statistics;
    let [src, dst] = [info.src, info.dst].map(|it| names::address(it, info.family));
    let mut text = format!("src {src} dst {dst}\n");
    let has_spi = has_stats || spi != 0 || IPSEC.contains(&proto);
    text += &format!("\t{}", id_line(proto, has_spi.then_some(spi), reqid, mode, has_stats));
    text += &format!("\treplay-window {} ", info.replay_window);
    if has_stats {
        text += &format!("seq 0x{:08} ", info.seq);
    }
    if has_stats || info.flags != 0 {
        text += &format!("flag {}", flags(info.flags.into(), &names::STATE_FLAGS));
    }
    if has_stats {
        if let Some(extra) = extras.extra_flags {
            text += &format!("extra_flag {}", flags(extra, &names::EXTRA_FLAGS));
        }
        text += &format!(" (0x{:08b})", info.flags);
    }
    text += "\n";
    text += &attributes(extras, info.family, has_stats);
    if !info.selector.is_zero() {
        text += &format!("\tsel {}", selector(&info.selector, info.family, has_stats));
    }
    if has_stats {
        text += &lifetime(&info.lifetime, &info.usage);
        let stats = &info.stats;
        text += &format!(
            "\tstats:\n\t  replay-window {} replay {} failed {}\n",
            stats.replay_window, stats.replay, stats.integrity_failed
        );
    }
    text += &security_context(extras);
    if let Some(reason) = obstacle.as_ref().filter(|_| options.details) {
        text += &format!("\tleft to the kernel: {reason}\n");
    }
    text
}

/// The lines of a policy.
pub fn policy(entry: &PolicyEntry, options: Options) -> String {
    let PolicyEntry { info, extras } = entry;
    let has_stats = options.statistics;
    let mut text = selector(&info.selector, 0, has_stats);
    text += &security_context(extras);
    let (kind, direction) = match info.direction.checked_sub(OF_SOCKETS) {
        Some(direction) => ("socket", direction),
        None => ("dir", info.direction),
    };
    text += &match direction {
        0 => format!("\t{kind} in "),
        1 => format!("\t{kind} out "),
        2 => format!("\t{kind} fwd "),
        other => format!("\t{kind} {other} "),
    };
    text += &match info.action {
        0 if has_stats => "action allow ".to_owned(),
        0 => String::new(),
        1 => "action block ".to_owned(),
        other => format!("action {other} "),
    };
    if has_stats {
        text += &format!("index {} ", info.index);
    }
    text += &format!("priority {} ", info.priority);
    if let Some(kind) = extras.policy_type {
        text += &format!("ptype {} ", names::policy_type(kind));
    }
    if has_stats {
        text += &format!("share {} ", names::share(info.share));
    }
    if has_stats || info.flags != 0 {
        text += &format!("flag {}", flags(info.flags.into(), &names::POLICY_FLAGS));
    }
    if has_stats {
        text += &format!(" (0x{:08b})", info.flags);
    }
    text += "\n";
    if has_stats {
        text += &lifetime(&info.lifetime, &info.usage);
    }
    text + &attributes(extras, info.selector.family, has_stats)
}

/// `proto … spi … reqid … mode …`
fn id_line(proto: u8, spi: Option<u32>, reqid: u32, mode: u8, has_stats: bool) -> String {
    let mut text = format!("proto {} ", names::xfrm_protocol(proto));
    if let Some(spi) = spi {
        let decimal = if has_stats { format!("({spi})") } else { String::new() };
        text += &format!("spi 0x{spi:08x}{decimal} ");
    }
    let hexadecimal = if has_stats { format!("(0x{reqid:08x})") } else { String::new() };
    text + &format!("reqid {reqid}{hexadecimal} mode {}\n", names::mode(mode))
}

fn flags(value: u32, known: &[(u32, &str)]) -> String {
    names::flags(value, known).join(" ")
}

/// `family`: of the addresses, if the selector has none of its own.
fn selector(selector: &SelectorInfo, family: u16, has_stats: bool) -> String {
    let family = if selector.family == 0 { family } else { selector.family };
    let [src, dst] = [selector.src, selector.dst].map(|it| names::address(it, family));
    let mut text = format!("src {src}/{} dst {dst}/{} ", selector.src_len, selector.dst_len);
    if selector.proto != 0 {
        text += &format!("proto {} ", names::protocol(selector.proto));
    }
    let ((sport, has_sport), (dport, has_dport)) =
        ((selector.sport.0, selector.sport.1 != 0), (selector.dport.0, selector.dport.1 != 0));
    let mut word = |is_shown, name: &str, value: u32| {
        if is_shown {
            text += &format!("{name} {value} ");
        }
    };
    match selector.proto {
        ICMP | ICMPV6 => {
            word(has_sport, "type", sport.into());
            word(has_dport, "code", dport.into());
        }
        GRE => {
            word(has_sport || has_dport, "key", u32::from(sport) << 16 | u32::from(dport));
        }
        MOBILITY_HEADER => {
            word(has_sport, "type", sport.into());
            if has_dport && has_stats {
                // iproute2 does not convert it to the host's byte order.
                text += &format!("(dport) 0x{:04x} ", dport.to_be());
            }
        }
        _ => {
            word(has_sport, "sport", sport.into());
            word(has_dport, "dport", dport.into());
        }
    }
    if i32::try_from(selector.ifindex).is_ok_and(|ifindex| ifindex > 0) {
        text += &format!("dev {} ", names::interface(selector.ifindex));
    }
    if has_stats {
        text += &format!("uid {}", selector.user);
    }
    text + "\n"
}

fn lifetime(limits: &Lifetime, usage: &Usage) -> String {
    let volume = |limit: u64, unit: &str| match limit {
        u64::MAX => format!("(INF)({unit})"),
        limit => format!("{limit}({unit})"),
    };
    let volumes = |[soft, hard]: [u64; 2], unit| {
        format!("\t  limit: soft {}, hard {}\n", volume(soft, unit), volume(hard, unit))
    };
    let times = |[soft, hard]: [u64; 2], since| {
        format!("\t  expire {since}: soft {soft}(sec), hard {hard}(sec)\n")
    };
    let Usage { bytes, packets, add_time_s, use_time_s } = *usage;
    let [added, used] = [add_time_s, use_time_s].map(names::time);
    format!(
        "\tlifetime config:\n{}{}{}{}\tlifetime current:\n\t  {bytes}(bytes), {packets}(packets)\n\t  add {added} \
         use {used}\n",
        volumes(limits.bytes, "bytes"),
        volumes(limits.packets, "packets"),
        times(limits.add_s, "add"),
        times(limits.use_s, "use"),
    )
}

fn security_context(extras: &Extras) -> String {
    let context = extras.security_context.as_ref();
    context.map_or_else(String::new, |context| format!("\tsecurity context {context} \n"))
}

/// The lines of attributes (`xfrm_xfrma_print`). `family`: of addresses.
fn attributes(extras: &Extras, family: u16, has_stats: bool) -> String {
    let mut text = marks(extras);
    text.extend(extras.algorithms.iter().map(|it| algorithm(it, has_stats)));
    if let Some(EncapInfo { kind, sport, dport, original }) = extras.encap {
        let (kind, original) = (names::encap(kind), names::address(original, family));
        text += &format!("\tencap type {kind} sport {sport} dport {dport} addr {original}\n");
    }
    text.extend(extras.templates.iter().map(|it| template(it, has_stats)));
    if let Some(coaddr) = extras.coaddr {
        text += &format!("\tcoa {}\n", names::address(coaddr, family));
    }
    if let Some(lastused_s) = extras.lastused_s {
        text += &format!("\tlastused {}\n", names::time(lastused_s));
    }
    text += &extras.replay.as_ref().map(replay).unwrap_or_default();
    if let Some((ifindex, flags)) = extras.offload {
        let what = if flags & OFFLOAD_PACKET != 0 { "packet" } else { "crypto" };
        let direction = if flags & OFFLOAD_INBOUND != 0 { "in" } else { "out" };
        let dev = names::interface(ifindex);
        text += &format!("\t{what} offload parameters: dev {dev} dir {direction}\n");
    }
    if let Some(if_id) = extras.if_id {
        text += &format!("\tif_id {}\n", names::hex(if_id));
    }
    if let Some(tfcpad) = extras.tfcpad {
        text += &format!("\ttfcpad {tfcpad}\n");
    }
    if let Some(direction) = extras.direction {
        text += &format!("\tdir {}\n", names::direction(direction));
    }
    text
}

fn marks(extras: &Extras) -> String {
    let output = extras.output_mark.map(|(value, mask)| {
        let mask = mask.map(|mask| format!("/0x{mask:x}")).unwrap_or_default();
        format!("output-mark 0x{value:x}{mask}")
    });
    let mark = extras
        .mark
        .map(|mark| format!("mark {}/{} ", names::hex(mark.value), names::hex(mark.mask)));
    match (mark, output) {
        (None, None) => String::new(),
        (mark, output) => {
            format!("\t{}{}\n", mark.unwrap_or_default(), output.unwrap_or_default())
        }
    }
}

fn algorithm(algorithm: &AlgorithmEntry, has_stats: bool) -> String {
    let AlgorithmEntry { kind, name, key, key_bits, icv_bits } = algorithm;
    let key = match key {
        None => "<<Keys hidden>>".to_owned(),
        Some(key) if key.is_empty() => String::new(),
        Some(key) => {
            let bits = if has_stats { format!(" ({key_bits} bits)") } else { String::new() };
            format!("0x{}{bits}", hex_octets(key))
        }
    };
    let icv = icv_bits.map(|bits| format!(" {bits}")).unwrap_or_default();
    format!("\t{} {name} {key}{icv}\n", algorithm_kind(*kind))
}

/// Octets in hexadecimal.
pub fn hex_octets(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The word for an attribute of algorithms.
pub fn algorithm_kind(kind: AlgorithmKind) -> &'static str {
    match kind {
        AlgorithmKind::Auth => "auth",
        AlgorithmKind::AuthTrunc => "auth-trunc",
        AlgorithmKind::Aead => "aead",
        AlgorithmKind::Crypt => "enc",
        AlgorithmKind::Comp => "comp",
    }
}

fn template(template: &TemplateInfo, has_stats: bool) -> String {
    let TemplateInfo { spi, proto, reqid, mode, optional, .. } = *template;
    let [src, dst] = [template.src, template.dst].map(|it| names::address(it, template.family));
    let spi = (has_stats || spi != 0).then_some(spi);
    let mut text = format!("\ttmpl src {src} dst {dst}\n\t\t");
    text += &id_line(proto, spi, reqid, mode, has_stats);
    if has_stats || optional != 0 {
        text += &match optional {
            0 => "\t\tlevel required ".to_owned(),
            1 => "\t\tlevel use ".to_owned(),
            other => format!("\t\tlevel {other} "),
        };
        if has_stats {
            text += &format!("share {} ", names::share(template.share));
        }
        text += "\n";
    }
    if has_stats {
        let TemplateInfo { ealgos, aalgos, calgos, .. } = template;
        text +=
            &format!("\t\tenc-mask {ealgos:08x} auth-mask {aalgos:08x} comp-mask {calgos:08x}\n");
    }
    text
}

fn replay(replay: &KernelReplay) -> String {
    let KernelReplay { oseq, seq, bitmap, window } = replay;
    let Some(window) = window else {
        let bitmap = bitmap.first().copied().unwrap_or_default();
        return format!(
            "\tanti-replay context: seq 0x{seq:x}, oseq 0x{oseq:x}, bitmap 0x{bitmap:08x}\n"
        );
    };
    let [seq, oseq] = [seq, oseq].map(|number| (number >> 32, *number as u32));
    let mut text = format!(
        "\tanti-replay esn context:\n\t seq-hi 0x{:x}, seq 0x{:x}, oseq-hi 0x{:x}, oseq 0x{:x}\n",
        seq.0, seq.1, oseq.0, oseq.1
    );
    text += &format!("\t replay_window {window}, bitmap-length {}", bitmap.len());
    for (at, word) in bitmap.iter().rev().enumerate() {
        if at % WORDS_PER_LINE == 0 {
            text += "\n\t ";
        }
        text += &format!("{word:08x} ");
    }
    text + "\n"
}
