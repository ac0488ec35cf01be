//! Packets that take several descriptors, put together as they are received.

use crate::skb::{Frame, FramePool, HEAD_MIN, SkBuff};
use crate::stats::DropReason;

/// What has come of a packet that is not complete yet.
#[derive(Debug)]
pub(super) struct MultiBuffer {
    /// Packets may take several descriptors, at most as many as this; 1: they do not.
    pub(super) segments: usize,
    /// The next descriptor continues a packet.
    continued: bool,
    /// That packet, as far as it has come; `None`: it is being dropped.
    pub(super) partial: Option<SkBuff>,
}

impl MultiBuffer {
    /// Nothing has come yet.
    pub(super) fn new(segments: usize) -> MultiBuffer {
        MultiBuffer { segments, continued: false, partial: None }
    }

    /// Whether a descriptor tells of a whole packet.
    #[inline]
    pub(super) fn is_whole(&self, desc: libc::xdp_desc) -> bool {
        desc.options & libc::XDP_PKT_CONTD == 0 && !self.continued
    }

    /// What an RX descriptor tells of, in `frame` from `offset` on; no frame: not one that was given
    /// to receive into. Gives the packet that is complete with it, if one is. A packet's descriptors
    /// may be spread over calls: the kernel shows them together, but a burst may be full.
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
            (Some(frame), _) if first && self.segments == 1 => Err((Some(frame), None)),
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
