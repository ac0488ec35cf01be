//! Packets that take several descriptors, put together as they are received.

use crate::skb::{Frame, FramePool, HEAD_MIN, SkBuff};
use crate::stats::DropReason;

/// What has come of a packet that is not complete yet.
#[derive(Debug)]
pub(super) struct RxChain {
    /// Whether the socket is bound for such packets.
    expected: bool,
    /// The next descriptor continues a packet.
    continued: bool,
    /// That packet, as far as it has come; `None`: it is being dropped.
    partial: Option<SkBuff>,
}

impl RxChain {
    /// Nothing has come yet.
    pub(super) fn new(expected: bool) -> RxChain {
        RxChain { expected, continued: false, partial: None }
    }

    /// The packet that is not complete.
    pub(super) fn partial(&self) -> Option<&SkBuff> {
        self.partial.as_ref()
    }

    /// Takes it out: nothing more comes.
    pub(super) fn take_partial(&mut self) -> Option<SkBuff> {
        self.partial.take()
    }

    /// Whether a descriptor tells of a whole packet.
    #[inline]
    pub(super) fn is_whole(&self, desc: libc::xdp_desc) -> bool {
        desc.options & libc::XDP_PKT_CONTD == 0 && !self.continued
    }

    /// What an RX descriptor tells of, in `frame` from `offset` on; no frame: not one that was given
    /// to receive into. Gives the packet that is complete with it, if one is.
    ///
    /// Never inlined: a packet given from two places of the driver's loop would be put together in
    /// memory, also the usual one, which is whole and need not come by here.
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
            // Not bound for it: this is a kernel that does otherwise.
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
                // What is left of it is dropped, and counted with its last descriptor.
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

        /// One descriptor of `len` octets in a frame of ours.
        fn some(&mut self, len: u32, options: u32) -> Result<Option<usize>, DropReason> {
            let frame = self.pool.alloc();
            self.receive(frame, len, options)
        }

        /// What came of it: the octets of a packet that is complete, which is freed.
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

        /// A whole packet comes through, and every frame is back.
        fn assert_nothing_left(&mut self) {
            assert_eq!(self.some(60, 0), Ok(Some(60)));
            assert!(self.chain.partial().is_none());
            assert_eq!(self.pool.available(), FRAMES as usize);
        }
    }

    #[test]
    fn chains_up_to_the_longest_are_put_together() {
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
    fn one_of_more_is_dropped_and_counted_once() {
        let mut lab = Lab::new(true);
        for _ in 0..MAX_SKB_FRAGS + 3 {
            assert_eq!(lab.some(3000, MORE), Ok(None));
        }
        assert_eq!(lab.some(100, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
    }

    #[test]
    fn a_frame_that_is_not_ours_drops_its_packet_and_no_other() {
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
    fn what_leaves_its_frame_is_dropped() {
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
    fn a_chain_that_nobody_asked_for_is_dropped() {
        let mut lab = Lab::new(false);
        assert_eq!(lab.some(3000, MORE), Ok(None));
        assert_eq!(lab.some(60, 0), Err(DropReason::RxMultiBuffer));
        lab.assert_nothing_left();
    }
}
