//! Security associations: the messages XFRM_MSG_NEWSA of a dump.
//!
//! They have keys: `Secret` holds the only copies, and the receive buffer is overwritten. What the IPsec library
//! does not support is named, and the SA is left to the kernel.

use std::fmt;
use std::io;
use std::net::IpAddr;

use super::ae::KernelReplay;
use super::info::{EncapInfo, StateInfo, Stats};
use super::{algorithms, family, mark, mode, of_family, selector_of, workers, xfrma};
use crate::control::netlink::message::{Message, u8_at, u32_at};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::table::Table;
use crate::ipsec::{
    Direction, EcnRules, Family, Keys, KmState, Mark, Mode, Selector, StateConfig, StateFlags,
    UdpPorts,
};
use crate::wire::Protocol;

pub(super) const XFRM_MSG_GETSA: u16 = 0x12;
/// UDP_ENCAP_ESPINUDP (RFC 3948).
const UDP_ENCAP_ESPINUDP: u16 = 2;
const XFRM_SA_DIR_IN: u8 = 1;
const XFRM_SA_DIR_OUT: u8 = 2;
/// IPComp, and the tunnels that the kernel adds for it (`ipcomp_tunnel_create`).
const OTHER_PROTOCOLS: [(u8, &str); 5] = [
    (108, "IPComp"),
    (4, "IPIP, a tunnel of IPComp"),
    (41, "IPv6, a tunnel of IPComp"),
    (43, "routing headers of Mobile IPv6"),
    (60, "destination options of Mobile IPv6"),
];
/// Attributes whose presence is not supported.
const UNSUPPORTED: [(u16, &str); 7] = [
    (xfrma::SET_MARK, "an output mark (XFRMA_SET_MARK)"),
    (xfrma::SET_MARK_MASK, "an output mark (XFRMA_SET_MARK_MASK)"),
    (xfrma::SA_PCPU, "an SA of one CPU (XFRMA_SA_PCPU)"),
    (xfrma::OFFLOAD_DEV, "offload to a device (XFRMA_OFFLOAD_DEV)"),
    (xfrma::SEC_CTX, "a security context (XFRMA_SEC_CTX)"),
    (xfrma::COADDR, "a care-of address (XFRMA_COADDR)"),
    (xfrma::TFCPAD, "padding for traffic flow confidentiality (XFRMA_TFCPAD)"),
];
/// Attributes that are read here, or that change nothing for packets: when the SA was used last, and what the kernel
/// sends or reports by itself, NAT keepalives and changed ports of the peer.
const SUPPORTED: [u16; 14] = [
    xfrma::ALG_AUTH,
    xfrma::ALG_CRYPT,
    xfrma::ENCAP,
    xfrma::REPLAY_VAL,
    xfrma::LASTUSED,
    xfrma::ALG_AEAD,
    xfrma::ALG_AUTH_TRUNC,
    xfrma::MARK,
    xfrma::REPLAY_ESN_VAL,
    xfrma::SA_EXTRA_FLAGS,
    xfrma::IF_ID,
    xfrma::MTIMER_THRESH,
    xfrma::SA_DIR,
    xfrma::NAT_KEEPALIVE_INTERVAL,
];
/// Attributes from here on are those of a newer kernel, and found by [`Message::attrs`].
const ATTRIBUTES: usize = 64;

/// Which SA: what the kernel finds it by (`xfrm_state_lookup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaId {
    /// Destination: of the outer header in tunnel mode.
    pub dst: IpAddr,
    /// SPI; 0 while the SA is being negotiated, which no lookup finds.
    pub spi: u32,
    /// ESP, AH, or another of the kernel's.
    pub proto: Protocol,
    /// The mark of its packets.
    pub mark: Mark,
}

impl SaId {
    /// Family of the destination.
    pub fn family(&self) -> Family {
        Family::of(self.dst)
    }
}

/// What of an SA the IPsec library does not support, for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unsupported(String);

impl Unsupported {
    pub(super) fn new(what: impl Into<String>) -> Unsupported {
        Unsupported(what.into())
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An SA of the kernel.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct KernelState {
    /// What identifies it.
    pub id: SaId,
    /// What it is without keys. If `keys` is an error, it may differ from what the kernel has. `km_state` is
    /// `Acquiring` if there are no algorithms, and else `Valid`: the kernel does not tell. ECN is combined as in the
    /// kernel.
    pub config: StateConfig,
    /// Its keys, with which the IPsec library accepts `config`.
    pub keys: Result<Keys, Unsupported>,
    /// In or out, if it was added with a direction (Linux 6.10).
    pub direction: Option<Direction>,
    /// Its sequence numbers.
    pub replay: KernelReplay,
    /// Dropped packets.
    pub stats: Stats,
    /// Whether a device protects its packets.
    pub is_offloaded: bool,
}

impl KernelState {
    /// Why workers cannot use it. `None`: they can.
    pub fn obstacle(&self) -> Option<String> {
        let unsupported = self.keys.as_ref().err().map(ToString::to_string);
        unsupported.or_else(|| workers::obstacle(&self.config))
    }
}

impl fmt::Display for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto {
            Protocol::ESP => "esp".to_owned(),
            Protocol::AH => "ah".to_owned(),
            other => other.0.to_string(),
        };
        write!(f, "{proto} spi {:#010x} dst {}", self.spi, self.dst)
    }
}

/// Reads all SAs, the newest first. `socket`: of NETLINK_XFRM. SAs that are being negotiated are included, and those
/// of protocols other than ESP and AH.
///
/// # Errors
/// When the request fails, or a message cannot be read (InvalidData).
pub fn read(socket: &mut NlSock) -> io::Result<Vec<KernelState>> {
    // Without a header: the kernel would take it for attributes (`xfrm_dump_sa`).
    let states = socket.dump(XFRM_MSG_GETSA, &[], |message| Some(parse(message)));
    socket.wipe();
    let states: Option<Vec<KernelState>> = states?.into_iter().collect();
    states.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an SA cannot be parsed"))
}

/// `None`: it is malformed. `message`: XFRM_MSG_NEWSA or XFRM_MSG_UPDSA, of a dump or of a notification, whose
/// buffer is to be overwritten.
pub fn parse(message: &Message<'_>) -> Option<KernelState> {
    let info = StateInfo::parse(message.payload)?;
    let attrs: Table<'_, ATTRIBUTES> = Table::lenient(message.attrs(StateInfo::LEN))?;
    let newer = message.attrs(StateInfo::LEN).find(|attr| usize::from(attr.kind) >= ATTRIBUTES);
    let family = family(info.family)?;
    let replay = KernelReplay::parse(&attrs)?;
    let has_keys = [xfrma::ALG_AEAD, xfrma::ALG_CRYPT, xfrma::ALG_AUTH_TRUNC, xfrma::ALG_COMP];
    let is_acquiring = !has_keys.into_iter().any(|kind| attrs.has(kind));
    let number = |kind| attrs.get(kind).map_or(Some(0), |value| u32_at(value, 0));
    let id = SaId {
        dst: of_family(info.dst, family),
        spi: info.spi,
        proto: Protocol(info.proto),
        mark: attrs.get(xfrma::MARK).map_or(Some(Mark::default()), mark)?,
    };
    let encap = attrs.get(xfrma::ENCAP).map(EncapInfo::parse);
    let (flags, unknown_flags) = flags(&info, number(xfrma::SA_EXTRA_FLAGS)?);
    let selector_family = flags.selector_family(super::family(info.selector.family), family);
    let config = StateConfig {
        src: of_family(info.src, family),
        dst: id.dst,
        spi: id.spi,
        reqid: info.reqid,
        mode: if info.mode == mode::TRANSPORT { Mode::Transport } else { Mode::Tunnel },
        flags,
        ecn: EcnRules::Xfrm,
        selector: selector_of(&info.selector, selector_family.unwrap_or(family)),
        selector_family,
        mark: id.mark,
        if_id: number(xfrma::IF_ID)?,
        km_state: if is_acquiring { KmState::Acquiring } else { KmState::Valid },
        lifetime: info.lifetime,
        usage: info.usage,
        encap: encap.flatten().map(|encap| UdpPorts { src: encap.sport, dst: encap.dport }),
        replay_window: replay.window.unwrap_or_else(|| u32::from(info.replay_window)),
    };
    let direction = match attrs.get(xfrma::SA_DIR).map(|value| u8_at(value, 0)) {
        None => Ok(None),
        Some(Some(XFRM_SA_DIR_IN)) => Ok(Some(Direction::In)),
        Some(Some(XFRM_SA_DIR_OUT)) => Ok(Some(Direction::Out)),
        Some(_) => Err(Unsupported::new("a direction other than in and out")),
    };
    let unsupported = unknown_flags
        .or_else(|| direction.as_ref().err().cloned())
        .or_else(|| of_attributes(&attrs, newer.map(|attr| attr.kind)))
        .or_else(|| of_info(&info, selector_family, &config.selector))
        .or_else(|| of_encap(encap))
        .or_else(|| is_acquiring.then(|| Unsupported::new("being negotiated: no keys yet")));
    let direction = direction.unwrap_or_default();
    let keys = match unsupported {
        Some(unsupported) => Err(unsupported),
        None => {
            algorithms::keys(id.proto, &attrs).and_then(|keys| checked(keys, &config, direction))
        }
    };
    let is_offloaded = attrs.has(xfrma::OFFLOAD_DEV);
    Some(KernelState { id, config, keys, direction, replay, stats: info.stats, is_offloaded })
}

/// The flags, and if one is not supported, those that are and the reason.
fn flags(info: &StateInfo, extra: u32) -> (StateFlags, Option<Unsupported>) {
    match StateFlags::from_kernel(info.flags, extra) {
        Some(flags) => (flags, None),
        None => {
            let reason = match extra & !1 {
                2 => "sequence numbers that wrap (XFRM_SA_XFLAG_OSEQ_MAY_WRAP)".to_owned(),
                unknown => format!("flags 0x{unknown:x} (XFRMA_SA_EXTRA_FLAGS)"),
            };
            (StateFlags(u16::from(info.flags)), Some(Unsupported(reason)))
        }
    }
}

fn of_attributes(attrs: &Table<'_, ATTRIBUTES>, newer: Option<u16>) -> Option<Unsupported> {
    let known = UNSUPPORTED.iter().find(|(kind, _)| attrs.has(*kind));
    if let Some((_, name)) = known {
        return Some(Unsupported::new(*name));
    }
    let is_ignored =
        |kind: &u16| SUPPORTED.contains(kind) || [xfrma::PAD, xfrma::ALG_COMP].contains(kind);
    let unknown = (0..ATTRIBUTES as u16).find(|kind| attrs.has(*kind) && !is_ignored(kind));
    unknown.or(newer).map(|kind| Unsupported(format!("attribute {kind}")))
}

fn of_info(
    info: &StateInfo,
    selector_family: Option<Family>,
    selector: &Selector,
) -> Option<Unsupported> {
    let proto = Protocol(info.proto);
    if proto != Protocol::ESP && proto != Protocol::AH {
        let name = OTHER_PROTOCOLS.iter().find(|(number, _)| *number == info.proto);
        let unknown = || format!("protocol {}", info.proto);
        return Some(Unsupported(name.map_or_else(unknown, |(_, name)| (*name).to_owned())));
    }
    let reason = match info.mode {
        mode::TRANSPORT | mode::TUNNEL => None,
        mode::ROUTEOPTIMIZATION => Some("mode ro".to_owned()),
        mode::IN_TRIGGER => Some("mode in_trigger".to_owned()),
        mode::BEET => Some("mode beet".to_owned()),
        mode::IPTFS => Some("mode iptfs".to_owned()),
        unknown => Some(format!("mode {unknown}")),
    };
    let (len_max, of_prefixes) = match selector_family {
        // The kernel compares their octets with addresses of either family.
        None => (0, "a selector of both families with prefixes"),
        Some(Family::Ipv4) => (32, "a selector with a prefix of more than 32 bits"),
        Some(Family::Ipv6) => (128, "a selector with a prefix of more than 128 bits"),
    };
    let is_long = selector.src.len.max(selector.dst.len) > len_max;
    reason.or_else(|| is_long.then(|| of_prefixes.to_owned())).map(Unsupported)
}

/// `encap`: none, a malformed one, or one.
fn of_encap(encap: Option<Option<EncapInfo>>) -> Option<Unsupported> {
    match encap {
        None | Some(Some(EncapInfo { kind: UDP_ENCAP_ESPINUDP, .. })) => None,
        Some(Some(EncapInfo { kind, .. })) => {
            Some(Unsupported(format!("encapsulation of type {kind} (XFRMA_ENCAP)")))
        }
        Some(None) => Some(Unsupported::new("a malformed XFRMA_ENCAP")),
    }
}

/// The keys, if the library accepts an SA with them: their length, the replay window, the addresses.
fn checked(
    keys: Keys,
    config: &StateConfig,
    direction: Option<Direction>,
) -> Result<Keys, Unsupported> {
    match workers::check(config, &keys, direction) {
        Ok(()) => Ok(keys),
        Err(error) => Err(Unsupported(error.to_string())),
    }
}
