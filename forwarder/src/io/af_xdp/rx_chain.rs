//! Assembles received packets of several descriptors.

use crate::skb::{Frame, FramePool, HEAD_MIN, SkBuff};
use crate::stats::DropReason;

/// The state of a packet that is not complete yet.
#[derive(Debug)]
pub(super) struct RxChain {
    /// Whether the socket is bound for multi-descriptor packets.
    expected: bool,
    /// Whether the next descriptor continues a packet.
    continued: bool,
    /// The incomplete packet; `None`: it is being dropped.
    partial: Option<SkBuff>,
}

impl RxChain {
    /// Without an incomplete packet.
    pub(super) fn new(expected: bool) -> RxChain {
        RxChain { expected, continued: false, partial: None }
    }

    /// The incomplete packet.
    pub(super) fn partial(&self) -> Option<&SkBuff> {
        self.partial.as_ref()
    }

    /// Removes the incomplete packet: no further descriptors will arrive.
    pub(super) fn take_partial(&mut self) -> Option<SkBuff> {
        self.partial.take()
    }

    /// Whether a descriptor is a whole packet.
    #[inline]
    pub(super) fn is_whole(&self, desc: libc::xdp_desc) -> bool {
        desc.options & libc::XDP_PKT_CONTD == 0 && !self.continued
    }

    /// Processes an RX descriptor for data in `frame` from `offset` on; no frame: the address was
    /// not given to receive into. Returns the packet that it completes, if any.
    ///
    /// Never inlined: with two places in the driver's loop that produce a packet, every packet
    /// would be assembled in memory, even the common single-descriptor one, which does not need
    /// this function.
    #[cold]
    #[inline(never)]
    pub(super) fn receive(
        &mut self,
        desc: libc::xdp_desc,
        frame: Option<Frame>,
        offset: usize,
        pool: &mut FramePool,
    ) -> Result<Option<SkBuff>, DropReason> {
        let len = desc.len as usize;
        if self.is_whole(desc) {
            let Some(frame) = frame else { return Err(DropReason::RxBadDescriptor) };
            return SkBuff::receive(frame, offset, len).map(Some).map_err(|frame| {
                pool.free(frame);
                DropReason::RxBadDescriptor
            });
        }
        let more = desc.options & libc::XDP_PKT_CONTD != 0;
        let first = !std::mem::replace(&mut self.continued, more);
        let added = match (frame, self.partial.take()) {
            // The socket is not bound for such packets: an unexpected kernel.
            (Some(frame), _) if first && !self.expected => Err((Some(frame), None)),
            (Some(frame), _) if first => {
                SkBuff::receive(frame, offset, len).map_err(|frame| (Some(frame), None))
            }
            (Some(frame), Some(mut skb)) => match skb.add_frag(frame, offset, len, pool) {
                Ok(()) => Ok(skb),
                Err(frame) => Err((Some(frame), Some(skb))),
            },
            (frame, skb) => Err((frame, skb)),
        };
        match added {
            Ok(skb) if more => self.partial = Some(skb),
            Ok(mut skb) => {
                if skb.may_pull(HEAD_MIN.min(skb.len())) {
                    return Ok(Some(skb));
                }
                pool.kfree_skb(skb);
                return Err(DropReason::RxMultiBuffer);
            }
            Err((frame, skb)) => {
                frame.into_iter().for_each(|frame| pool.free(frame));
                skb.into_iter().for_each(|skb| pool.kfree_skb(skb));
                // The rest is dropped, and counted with the last descriptor.
                if !more {
                    return Err(DropReason::RxMultiBuffer);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skb::{FRAME_SIZE, HEADROOM, MAX_SKB_FRAGS, Umem};

    const MORE: u32 = libc::XDP_PKT_CONTD;
    const FRAMES: u32 = 24;

    struct Lab {
        chain: RxChain,
        pool: FramePool,
    }

    impl Lab {
        fn new(expected: bool) -> Lab {
            Lab { chain: RxChain::new(expected), pool: Umem::anonymous(FRAMES).into_pool() }
        }

        /// Processes a descriptor of `len` octets in a frame of ours.
        fn some(&mut self, len: u32, options: u32) -> Result<Option<usize>, DropReason> {
            let frame = self.pool.alloc();
            self.receive(frame, len, options)
        }

        /// Returns the octets of a completed packet, which is freed.
        fn receive(
            &mut self,
            frame: Option<Frame>,
            len: u32,
            options: u32,
        ) -> Result<Option<usize>, DropReason> {
            let desc = libc::xdp_desc { addr: 0, len, options };
            let received = self.chain.receive(desc, frame, HEADROOM, &mut self.pool)?;
            Ok(received.map(|skb| {
                let len = skb.len();
                self.pool.kfree_skb(skb);
                len
            }))
        }

        /// Checks that a whole packet can be received, and every frame is in the pool.
        fn assert_nothing_left(&mut self) {
            assert_eq!(self.some(60, 0), Ok(Some(60)));
            assert!(self.chain.partial().is_none());
            assert_eq!(self.pool.available(), FRAMES as usize);
        }
    }

    #[test]
    fn chains_up_to_the_maximum_are_assembled() {
        let mut lab = Lab::new(true);
        for frames in 2..=MAX_SKB_FRAGS + 1 {
            for _ in 1..frames {
                assert_eq!(lab.some(3000, MORE), Ok(None));
            }
            assert_eq!(lab.some(100, 0), Ok(Some((frames - 1) * 3000 + 100)), "{frames}");
            lab.assert_nothing_left();
        }
    }

    #[test]
    fn a_longer_chain_is_dropped_and_counted_once() {
        let mut lab = Lab::new(true);
        for _ in 0..MAX_SKB_FRAGS + 3 {
            assert_eq!(lab.some(3000, MORE), Ok(None));
        }
        assert_eq!(lab.some(100, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
    }

    #[test]
    fn a_foreign_frame_drops_only_its_packet() {
        let mut lab = Lab::new(true);
        assert_eq!(lab.receive(None, 60, 0), Err(DropReason::RxBadDescriptor));
        lab.assert_nothing_left();
        for missing in 0..3 {
            for at in 0..3 {
                let options = if at < 2 { MORE } else { 0 };
                let frame = if at == missing { None } else { lab.pool.alloc() };
                let end = if at < 2 { Ok(None) } else { Err(DropReason::RxMultiBuffer) };
                assert_eq!(lab.receive(frame, 3000, options), end, "{missing} {at}");
            }
            lab.assert_nothing_left();
        }
    }

    #[test]
    fn a_descriptor_beyond_its_frame_is_dropped() {
        let mut lab = Lab::new(true);
        let long = FRAME_SIZE as u32;
        assert_eq!(lab.some(long, 0), Err(DropReason::RxBadDescriptor));
        lab.assert_nothing_left();
        assert_eq!(lab.some(long, MORE), Ok(None));
        assert_eq!(lab.some(60, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
        assert_eq!(lab.some(3000, MORE), Ok(None));
        assert_eq!(lab.some(long, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
    }

    #[test]
    fn an_unexpected_chain_is_dropped() {
        let mut lab = Lab::new(false);
        assert_eq!(lab.some(3000, MORE), Ok(None));
        assert_eq!(lab.some(60, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
    }
}
