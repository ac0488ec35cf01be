//! Protection of one packet in place: the kernel's `xfrm_output_one`, `esp_output` and `ah_output`.
//!
//! Not included: the choice of the SA, fragmentation, and the path MTU, which are the caller's. Nested SAs are
//! calls one after another.

use std::ops::Range;

use super::config::{Family, Mode};
use super::crypto::{Number, ROOM_BEFORE};
use super::state::{OutboundState, Transform};
use super::tunnel::{Inner, Kept, change_header, write_outer};
use super::{Error, ah};
use crate::wire::{AhPacket, EspPacket, Protocol, UdpPacket, checksum, ipv6, udp};

/// The longest IPv4 packet, and the longest payload of IPv6, in octets.
const PACKET_LEN_MAX: usize = 65_535;

/// What an outer header has from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputParams {
    /// Time, in seconds.
    pub now_s: u64,
    /// TTL or hop limit of the outer header: that of the route (`ip4_dst_hoplimit`), not of the inner packet.
    pub hop_limit: u8,
    /// Identification of an outer IPv4 header without DF; it should be hard to guess (RFC 7739 §5).
    pub ident: u16,
}

/// Where everything goes: offsets in the buffer.
#[derive(Debug)]
struct Plan {
    inner: Inner,
    /// The packet before and after.
    packet: Range<usize>,
    protected: Range<usize>,
    /// Length of the header that stays in front; 0 in tunnel mode.
    kept_len: usize,
    /// Offset of the octet that names the next header, in the packet. For transport mode.
    next_at: usize,
    /// What the trailer or AH names.
    next: Protocol,
    /// Start of the ESP header or AH.
    header_at: usize,
    /// What is protected.
    payload: Range<usize>,
}

impl OutboundState {
    /// Protects the packet at `packet` in `buffer`, and returns where the result is. Room for
    /// [`overhead`](super::State::overhead) octets must be around the packet: headers go before it, padding and
    /// ICV after it. The packet is as long as its own header states: octets behind it, such as padding of a
    /// short Ethernet frame, are not protected but overwritten.
    ///
    /// # Errors
    /// [`Error::SequenceRangeUsed`]: reserve more sequence numbers. [`Error::XfrmOutError`]: no room, or the
    /// result would exceed 65,535 octets. [`Error::XfrmOutStateModeError`]: the SA does not carry this packet:
    /// a header that cannot be read or that states more octets than there are; its family in tunnel mode; in
    /// transport mode a fragment, an unknown header, or for AH options or a Routing header whose values at the
    /// destination are unknown. `XfrmOutStateInvalid`, `XfrmOutStateExpired`, `XfrmOutStateSeqError`: the SA
    /// is at its end. After these the packet is unchanged. [`Error::XfrmOutStateProtoError`]: the cryptographic
    /// operation failed, which it does not for packets of the lengths above; octets of the buffer have changed.
    #[inline]
    pub fn seal(
        &self,
        buffer: &mut [u8],
        packet: Range<usize>,
        params: &OutputParams,
    ) -> Result<Range<usize>, Error> {
        let state = &self.state;
        let plan = self.plan(buffer, packet)?;
        state.check_usable(params.now_s, Error::XfrmOutStateInvalid, Error::XfrmOutStateExpired)?;
        let seq = self.sequence.take()?;
        // After the number: one that is lost leaves a gap, a packet counted for nothing would end the SA early.
        if !state.count(plan.payload.len(), params.now_s) {
            return Err(Error::XfrmOutStateExpired);
        }
        self.write(buffer, &plan, seq, params).ok_or(Error::XfrmOutStateProtoError)?;
        Ok(plan.protected)
    }

    /// Decides where everything goes, with all checks.
    #[inline]
    fn plan(&self, buffer: &[u8], packet: Range<usize>) -> Result<Plan, Error> {
        let octets = buffer.get(packet.clone()).ok_or(Error::XfrmOutError)?;
        let inner = Inner::of_packet(octets).ok_or(Error::XfrmOutStateModeError)?;
        let octets = octets.get(..inner.len).ok_or(Error::XfrmOutStateModeError)?;
        let packet = packet.start..packet.start + inner.len;
        let state = &self.state;
        let (kept_len, next_at, next) = match state.hot.mode {
            Mode::Tunnel if state.carries(inner.family) => (0, 0, inner.family.tunnel_protocol()),
            Mode::Transport if inner.family == state.family() => {
                let kept = Kept::of_packet(octets).ok_or(Error::XfrmOutStateModeError)?;
                // Before a sequence number is taken for a packet that cannot be sent.
                if let (Transform::Ah(_), Some(headers)) =
                    (&self.transform.0, octets.get(..kept.len))
                {
                    ah::check_headers(headers).ok_or(Error::XfrmOutStateModeError)?;
                }
                (kept.len, kept.next_at, kept.next)
            }
            _ => return Err(Error::XfrmOutStateModeError),
        };
        let payload = packet.start + kept_len..packet.end;
        let layout = &state.hot.layout;
        let start = packet.start.checked_sub(layout.head()).ok_or(Error::XfrmOutError)?;
        let protected = start..packet.end + layout.tail(payload.len());
        let fixed_len = if state.family() == Family::Ipv6 { ipv6::HEADER_LEN } else { 0 };
        if protected.end > buffer.len() || protected.len() - fixed_len > PACKET_LEN_MAX {
            return Err(Error::XfrmOutError);
        }
        let header_at = payload.start - layout.header();
        Ok(Plan { inner, packet, protected, kept_len, next_at, next, header_at, payload })
    }

    /// Writes everything. `None` does not occur: the plan has room, and AH can read the headers.
    #[inline]
    fn write(&self, buffer: &mut [u8], plan: &Plan, seq: u64, params: &OutputParams) -> Option<()> {
        let state = &self.state;
        if plan.kept_len != 0 {
            let kept = plan.packet.start..plan.packet.start + plan.kept_len;
            // The end of the packet is before the end of the buffer, and headers only move left.
            buffer.copy_within(kept, plan.protected.start);
        }
        let protocol = if state.hot.encap.is_some() { Protocol::UDP } else { state.protocol() };
        let protected = buffer.get_mut(plan.protected.clone())?;
        if state.hot.mode == Mode::Tunnel {
            write_outer(protected, state, plan.inner, protocol, params);
        } else {
            change_header(protected, plan.inner.family, plan.next_at, protocol);
        }
        let is_extended = self.sequence.is_extended();
        let number = Number { spi: state.hot.spi, seq, is_extended };
        match &self.transform.0 {
            Transform::Esp(transform) => {
                self.write_esp(buffer, plan, seq)?;
                let framed = buffer.get_mut(plan.header_at - ROOM_BEFORE..plan.protected.end)?;
                transform.seal(framed, number).ok()?;
                self.write_udp(buffer.get_mut(plan.protected.clone())?, plan)
            }
            Transform::Ah(mac) => {
                let at = plan.header_at - plan.protected.start;
                let header_len = state.hot.layout.header();
                let mut header = AhPacket::new_unchecked(protected.get_mut(at..)?);
                header.set_next_header(plan.next);
                header.set_header_len(header_len);
                header.set_spi(state.hot.spi);
                header.set_seq(seq as u32);
                header.icv_mut().fill(0);
                let mut context = mac.start();
                let covered = ah::Covered { at, icv_len: mac.icv_len() };
                covered.feed(protected, ah::Role::Sender, &mut |piece| context.update(piece))?;
                let icv = covered.icv_range();
                context.write(number, protected.get_mut(icv)?).ok()
            }
        }
    }

    /// Writes ESP header and trailer.
    #[inline]
    fn write_esp(&self, buffer: &mut [u8], plan: &Plan, seq: u64) -> Option<()> {
        let state = &self.state;
        let mut header = EspPacket::new_unchecked(buffer.get_mut(plan.header_at..)?);
        header.set_spi(state.hot.spi);
        header.set_seq(seq as u32);
        let padding_len = state.hot.layout.padding(plan.payload.len());
        let tail = buffer.get_mut(plan.payload.end..)?;
        let (padding, trailer) = tail.split_at_mut_checked(padding_len)?;
        // RFC 4303 §2.4: 1, 2, 3, …
        padding.iter_mut().zip(1..).for_each(|(octet, number)| *octet = number);
        trailer.get_mut(..2)?.copy_from_slice(&[padding_len as u8, plan.next.0]);
        Some(())
    }

    /// Writes the UDP header, if there is one (RFC 3948 §2.1). Its checksum is zero over IPv4; IPv6 requires
    /// one (RFC 8200 §8.1), as the kernel computes it.
    #[inline]
    fn write_udp(&self, protected: &mut [u8], plan: &Plan) -> Option<()> {
        let Some(ports) = self.state.hot.encap else { return Some(()) };
        let at = plan.header_at - plan.protected.start - udp::HEADER_LEN;
        let addresses = match self.state.family() {
            Family::Ipv4 => None,
            Family::Ipv6 => {
                let ip = crate::wire::Ipv6Packet::new_unchecked(&*protected);
                Some((ip.src_addr(), ip.dst_addr()))
            }
        };
        let datagram = protected.get_mut(at..)?;
        let len = datagram.len() as u16;
        let mut header = UdpPacket::new_unchecked(datagram);
        header.set_src_port(ports.src);
        header.set_dst_port(ports.dst);
        header.set_length(len);
        header.set_checksum(0);
        if let Some((src, dst)) = addresses {
            let sum = checksum::pseudo_header_v6(src, dst, Protocol::UDP, u32::from(len));
            header.fill_checksum(sum);
        }
        Some(())
    }
}
