//! The structs that XFRM messages begin with, and structs in their attributes, with the kernel's numbers. Left out:
//! what the numbers mean.

use super::{ADDRESS_LEN, SELECTOR_LEN, array, be16, be32, u64_at};
use crate::control::netlink::message::{u8_at, u16_at, u32_at};
use crate::ipsec::{Lifetime, Usage};

/// Length of `struct xfrm_id`, octets: an address, SPI, protocol.
const ID_LEN: usize = 24;
/// Length of `struct xfrm_lifetime_cfg`, octets.
const LIFETIME_LEN: usize = 64;
/// Length of `struct xfrm_lifetime_cur`, octets.
pub(super) const USAGE_LEN: usize = 32;
/// Length of `struct xfrm_stats`, octets.
const STATS_LEN: usize = 12;

/// `struct xfrm_selector`: the packets that an SA or policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectorInfo {
    /// Destination, of the family.
    pub dst: [u8; ADDRESS_LEN],
    /// Source, of the family.
    pub src: [u8; ADDRESS_LEN],
    /// Destination port, and the bits of it that count.
    pub dport: (u16, u16),
    /// Source port, and the bits of it that count.
    pub sport: (u16, u16),
    /// AF_*; 0 for none.
    pub family: u16,
    /// Length of the destination prefix in bits.
    pub dst_len: u8,
    /// Length of the source prefix in bits.
    pub src_len: u8,
    /// Protocol; 0 for any.
    pub proto: u8,
    /// Interface; 0 for any.
    pub ifindex: u32,
    /// A user id, which the kernel does not use.
    pub user: u32,
}

impl SelectorInfo {
    /// One at the start of `data`.
    pub fn parse(data: &[u8]) -> Option<SelectorInfo> {
        Some(SelectorInfo {
            dst: array(data, 0)?,
            src: array(data, ADDRESS_LEN)?,
            dport: (be16(data, 32)?, be16(data, 34)?),
            sport: (be16(data, 36)?, be16(data, 38)?),
            family: u16_at(data, 40)?,
            dst_len: u8_at(data, 42)?,
            src_len: u8_at(data, 43)?,
            proto: u8_at(data, 44)?,
            ifindex: u32_at(data, 48)?,
            user: u32_at(data, 52)?,
        })
    }

    /// Whether all its octets are 0 (apart from the three of padding).
    pub fn is_zero(&self) -> bool {
        *self == SelectorInfo::parse(&[0; SELECTOR_LEN]).unwrap_or(*self)
    }
}

/// `struct xfrm_lifetime_cfg`.
fn lifetime(data: &[u8], at: usize) -> Option<Lifetime> {
    let soft_and_hard = |n: usize| Some([u64_at(data, at + n)?, u64_at(data, at + n + 8)?]);
    Some(Lifetime {
        bytes: soft_and_hard(0)?,
        packets: soft_and_hard(16)?,
        add_s: soft_and_hard(32)?,
        use_s: soft_and_hard(48)?,
    })
}

/// `struct xfrm_lifetime_cur`.
pub(super) fn usage(data: &[u8], at: usize) -> Option<Usage> {
    Some(Usage {
        bytes: u64_at(data, at)?,
        packets: u64_at(data, at + 8)?,
        add_time_s: u64_at(data, at + 16)?,
        use_time_s: u64_at(data, at + 24)?,
    })
}

/// `struct xfrm_stats`: packets that an SA has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Left of the replay window.
    pub replay_window: u32,
    /// Received before.
    pub replay: u32,
    /// With a wrong ICV.
    pub integrity_failed: u32,
}

/// `struct xfrm_usersa_info`: an SA without what attributes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateInfo {
    /// Packets that may use it.
    pub selector: SelectorInfo,
    /// Destination.
    pub dst: [u8; ADDRESS_LEN],
    /// SPI.
    pub spi: u32,
    /// IPPROTO_*: ESP, AH, and others.
    pub proto: u8,
    /// Source.
    pub src: [u8; ADDRESS_LEN],
    /// Limits.
    pub lifetime: Lifetime,
    /// What of them is used.
    pub usage: Usage,
    /// Dropped packets.
    pub stats: Stats,
    /// Number of the acquire message that asked for the SA.
    pub seq: u32,
    /// What templates ask for.
    pub reqid: u32,
    /// AF_* of source and destination.
    pub family: u16,
    /// XFRM_MODE_*.
    pub mode: u8,
    /// Length of the replay window; XFRMA_REPLAY_ESN_VAL has its own.
    pub replay_window: u8,
    /// XFRM_STATE_*.
    pub flags: u8,
}

impl StateInfo {
    /// Length of the struct, octets.
    pub const LEN: usize = 224;
    const SRC: usize = SELECTOR_LEN + ID_LEN;
    const LIFETIME: usize = Self::SRC + ADDRESS_LEN;
    const STATS: usize = Self::LIFETIME + LIFETIME_LEN + USAGE_LEN;
    const SEQ: usize = Self::STATS + STATS_LEN;

    /// One at the start of `data`.
    pub fn parse(data: &[u8]) -> Option<StateInfo> {
        let data = data.get(..Self::LEN)?;
        let end = |n: usize| Self::SEQ + n;
        let stat = |n: usize| u32_at(data, Self::STATS + 4 * n);
        Some(StateInfo {
            selector: SelectorInfo::parse(data)?,
            dst: array(data, SELECTOR_LEN)?,
            spi: be32(data, SELECTOR_LEN + 16)?,
            proto: u8_at(data, SELECTOR_LEN + 20)?,
            src: array(data, Self::SRC)?,
            lifetime: lifetime(data, Self::LIFETIME)?,
            usage: usage(data, Self::LIFETIME + LIFETIME_LEN)?,
            stats: Stats { replay_window: stat(0)?, replay: stat(1)?, integrity_failed: stat(2)? },
            seq: u32_at(data, end(0))?,
            reqid: u32_at(data, end(4))?,
            family: u16_at(data, end(8))?,
            mode: u8_at(data, end(10))?,
            replay_window: u8_at(data, end(11))?,
            flags: u8_at(data, end(12))?,
        })
    }
}

/// `struct xfrm_userpolicy_info`: a policy without what attributes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyInfo {
    /// Packets that it concerns.
    pub selector: SelectorInfo,
    /// Limits.
    pub lifetime: Lifetime,
    /// What of them is used.
    pub usage: Usage,
    /// The lowest one is compared first.
    pub priority: u32,
    /// Number of the policy.
    pub index: u32,
    /// XFRM_POLICY_IN, OUT or FWD; the same plus 3 for a policy of a socket.
    pub direction: u8,
    /// XFRM_POLICY_ALLOW or BLOCK.
    pub action: u8,
    /// XFRM_POLICY_LOCALOK and ICMP.
    pub flags: u8,
    /// XFRM_SHARE_*, which the kernel does not use.
    pub share: u8,
}

impl PolicyInfo {
    /// Length of the struct, octets.
    pub const LEN: usize = 168;
    const PRIORITY: usize = SELECTOR_LEN + LIFETIME_LEN + USAGE_LEN;

    /// One at the start of `data`.
    pub fn parse(data: &[u8]) -> Option<PolicyInfo> {
        let data = data.get(..Self::LEN)?;
        let end = |n: usize| Self::PRIORITY + n;
        Some(PolicyInfo {
            selector: SelectorInfo::parse(data)?,
            lifetime: lifetime(data, SELECTOR_LEN)?,
            usage: usage(data, SELECTOR_LEN + LIFETIME_LEN)?,
            priority: u32_at(data, end(0))?,
            index: u32_at(data, end(4))?,
            direction: u8_at(data, end(8))?,
            action: u8_at(data, end(9))?,
            flags: u8_at(data, end(10))?,
            share: u8_at(data, end(11))?,
        })
    }
}

/// `struct xfrm_user_tmpl`: a transformation that a policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateInfo {
    /// Destination.
    pub dst: [u8; ADDRESS_LEN],
    /// SPI; 0 for any.
    pub spi: u32,
    /// IPPROTO_*.
    pub proto: u8,
    /// AF_* of source and destination.
    pub family: u16,
    /// Source.
    pub src: [u8; ADDRESS_LEN],
    /// Of the SA; 0 for any.
    pub reqid: u32,
    /// XFRM_MODE_*.
    pub mode: u8,
    /// XFRM_SHARE_*.
    pub share: u8,
    /// Whether packets may pass without it.
    pub optional: u8,
    /// Algorithms permitted for authentication, a bit each.
    pub aalgos: u32,
    /// For encryption.
    pub ealgos: u32,
    /// For compression.
    pub calgos: u32,
}

impl TemplateInfo {
    /// Length of the struct, octets.
    pub const LEN: usize = 64;

    /// One at the start of `data`.
    pub fn parse(data: &[u8]) -> Option<TemplateInfo> {
        Some(TemplateInfo {
            dst: array(data, 0)?,
            spi: be32(data, 16)?,
            proto: u8_at(data, 20)?,
            family: u16_at(data, ID_LEN)?,
            src: array(data, 28)?,
            reqid: u32_at(data, 44)?,
            mode: u8_at(data, 48)?,
            share: u8_at(data, 49)?,
            optional: u8_at(data, 50)?,
            aalgos: u32_at(data, 52)?,
            ealgos: u32_at(data, 56)?,
            calgos: u32_at(data, 60)?,
        })
    }
}

/// `struct xfrm_encap_tmpl`: ESP inside UDP or TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncapInfo {
    /// UDP_ENCAP_* or TCP_ENCAP_ESPINTCP.
    pub kind: u16,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// The original address of the peer, which the kernel does not use.
    pub original: [u8; ADDRESS_LEN],
}

impl EncapInfo {
    /// One at the start of `data`.
    pub fn parse(data: &[u8]) -> Option<EncapInfo> {
        Some(EncapInfo {
            kind: u16_at(data, 0)?,
            sport: be16(data, 2)?,
            dport: be16(data, 4)?,
            original: array(data, 8)?,
        })
    }
}

/// `struct xfrm_algo`, `xfrm_algo_auth` or `xfrm_algo_aead`: an algorithm and where its key is.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct AlgorithmInfo<'a> {
    /// The kernel's name, NUL-terminated.
    pub name: &'a [u8; 64],
    /// Length of the key in bits.
    pub key_bits: u32,
    /// Length of the ICV in bits; 0 if the struct has none.
    pub icv_bits: u32,
    /// The key, in the receive buffer.
    pub key: &'a [u8],
}

impl<'a> AlgorithmInfo<'a> {
    /// `has_icv`: it is not a `struct xfrm_algo`.
    pub fn parse(data: &'a [u8], has_icv: bool) -> Option<AlgorithmInfo<'a>> {
        let key_bits = u32_at(data, 64)?;
        let key_at = if has_icv { 72 } else { 68 };
        let icv_bits = if has_icv { u32_at(data, 68)? } else { 0 };
        let octets = (key_bits as usize).div_ceil(8);
        let key = data.get(key_at..)?.get(..octets)?;
        Some(AlgorithmInfo { name: data.first_chunk()?, key_bits, icv_bits, key })
    }
}
