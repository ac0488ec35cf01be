//! How much an SA makes a packet longer, and the longest packet that fits a path.

use super::algorithm::EspAlgorithm;
use super::config::{Family, Mode, StateConfig, StateFlags};
use super::state::{Algorithm, State};
use crate::wire::{ah, esp, ipv4, ipv6, udp};

/// Lengths of what an SA adds, in octets. None exceeds 255: an IPv6 header of 40 octets, a UDP header of 8, and an ESP
/// header with an IV of 16 or AH with an ICV of 32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// All headers: the outer IP header of tunnel mode, UDP, and ESP header with IV, or AH.
    head: u8,
    /// ESP header with IV, or AH.
    header: u8,
    /// What data, padding and trailer of ESP are a multiple of; 1 for AH.
    block: u8,
    /// The trailer of ESP without padding.
    trailer: u8,
    /// The ICV after the trailer; AH has it in the header.
    icv: u8,
}

/// Octets that an SA adds around a packet, or within it after the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// Headers.
    pub head: usize,
    /// Padding, trailer and ICV.
    pub tail: usize,
}

impl Layout {
    pub fn new(config: &StateConfig, algorithm: Algorithm) -> Layout {
        let family = Family::of(config.dst);
        let outer = match (config.mode, family) {
            (Mode::Transport, _) => 0,
            (Mode::Tunnel, Family::Ipv4) => ipv4::HEADER_LEN_MIN,
            (Mode::Tunnel, Family::Ipv6) => ipv6::HEADER_LEN,
        };
        let udp = if config.encap.is_some() { udp::HEADER_LEN } else { 0 };
        match algorithm {
            Algorithm::Esp(algorithm) => {
                let header = esp::HEADER_LEN + algorithm.iv_len();
                Layout {
                    head: (outer + udp + header) as u8,
                    header: header as u8,
                    block: EspAlgorithm::block_len(algorithm) as u8,
                    trailer: esp::TRAILER_LEN as u8,
                    icv: algorithm.icv_len() as u8,
                }
            }
            Algorithm::Ah(auth) => {
                // RFC 4302 §2.6: a multiple of 4 octets over IPv4 and of 8 over IPv6; the kernel takes 8 for
                // both unless ALIGN4 is set.
                let is_4 = family == Family::Ipv4 && config.flags.contains(StateFlags::ALIGN4);
                let align = if is_4 { 4 } else { 8 };
                let header = (ah::HEADER_LEN + auth.icv_len()).next_multiple_of(align);
                let head = (outer + udp + header) as u8;
                Layout { head, header: header as u8, block: 1, trailer: 0, icv: 0 }
            }
        }
    }

    /// Octets before the payload: the kernel's `props.header_len`.
    #[inline]
    pub fn head(&self) -> usize {
        self.head.into()
    }

    /// Octets of the ESP header with IV, or of AH.
    #[inline]
    pub fn header(&self) -> usize {
        self.header.into()
    }

    /// What data, padding and trailer of ESP are a multiple of; 1 for AH.
    #[inline]
    pub fn block(&self) -> usize {
        self.block.into()
    }

    /// Octets of the ICV after the trailer; AH has it in the header.
    #[inline]
    pub fn icv(&self) -> usize {
        self.icv.into()
    }

    /// Octets of padding after a payload (RFC 4303 §2.4).
    #[inline]
    pub fn padding(&self, payload_len: usize) -> usize {
        // The block is a power of two.
        (payload_len + usize::from(self.trailer)).wrapping_neg() & (self.block() - 1)
    }

    /// Octets after a payload.
    #[inline]
    pub fn tail(&self, payload_len: usize) -> usize {
        self.padding(payload_len) + usize::from(self.trailer) + self.icv()
    }
}

impl State {
    /// What the SA adds to a packet with `payload_len` octets to protect: the whole packet in tunnel mode; in
    /// transport mode what follows the IP header (and, of IPv6, the extension headers that stay outside).
    #[must_use]
    pub fn overhead(&self, payload_len: usize) -> Overhead {
        Overhead { head: self.hot.layout.head(), tail: self.hot.layout.tail(payload_len) }
    }

    /// The longest packet, in octets, whose protected form is not longer than `path_mtu`: the kernel's
    /// `__xfrm_state_mtu`. In transport mode for a packet without IP options and extension headers. 0: none
    /// fits.
    #[must_use]
    pub fn packet_len_max(&self, path_mtu: u32) -> u32 {
        let layout = &self.hot.layout;
        let (block, trailer, icv) = (layout.block(), usize::from(layout.trailer), layout.icv());
        let ip_header = match (self.hot.mode, self.family()) {
            (Mode::Tunnel, _) => 0,
            (Mode::Transport, Family::Ipv4) => ipv4::HEADER_LEN_MIN,
            (Mode::Transport, Family::Ipv6) => ipv6::HEADER_LEN,
        };
        let room = (path_mtu as usize).checked_sub(layout.head() + icv + ip_header);
        // Whole blocks, less the trailer.
        let payload = room.and_then(|room| (room & !(block - 1)).checked_sub(trailer));
        payload.map_or(0, |payload| payload + ip_header) as u32
    }

    /// The MTU that the SA offers on a path: the kernel's `xfrm_state_mtu`, which is
    /// [`packet_len_max`](Self::packet_len_max), but over IPv6 at least 1280 octets, of which the outer
    /// packets are fragmented.
    #[must_use]
    pub fn mtu(&self, path_mtu: u32) -> u32 {
        let min = if self.family() == Family::Ipv6 { ipv6::MTU_MIN } else { 0 };
        self.packet_len_max(path_mtu).max(min)
    }
}
