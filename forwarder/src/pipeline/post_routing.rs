//! POST_ROUTING, the last hook before a packet is sent, and the proof that a packet has passed it.
//!
//! A packet cannot be sent without passing the hook: sending takes a [`PostRouted`] of that packet, which
//! only [`post_routing`] and [`passed_post_routing`] create, and the output queues ([`RoutedBurst`]) take no packet without one.

use super::Exit;
use super::mode::Mode;
use super::nf_hook::{Devices, HookEnv, HooksRan, nf_hook};
use crate::netfilter::{Family, Hook, Passed};
use crate::skb::{Burst, SkBuff};

/// Proof that one packet passed POST_ROUTING. It is not `Clone`. Debug builds check that it is used for
/// that packet; in release builds it has no size.
#[derive(Debug)]
pub(super) struct PostRouted {
    /// Identifies the packet: the address of its head frame.
    #[cfg(debug_assertions)]
    head: usize,
}

impl PostRouted {
    fn of(skb: &SkBuff) -> PostRouted {
        let _ = skb;
        PostRouted {
            #[cfg(debug_assertions)]
            head: skb.head_addr(),
        }
    }

    /// The proof for a fragment of the packet: fragments are made after the hook, as in the kernel
    /// (`ip_do_fragment`).
    pub(super) fn clone_for_fragment(&self, fragment: &SkBuff) -> PostRouted {
        PostRouted::of(fragment)
    }

    /// Asserts, in debug builds, that this is the proof for `skb`.
    #[inline(always)]
    fn assert_is_of(&self, skb: &SkBuff) {
        #[cfg(debug_assertions)]
        assert_eq!(self.head, skb.head_addr(), "the packet did not pass POST_ROUTING");
        let _ = skb;
    }
}

/// Runs the POST_ROUTING hook on a packet.
///
/// # Errors
/// Those of [`nf_hook`].
#[inline]
pub(super) fn post_routing<M: Mode>(
    skb: &mut SkBuff,
    pf: Family,
    devices: Devices<'_>,
    env: HookEnv<'_>,
) -> Result<(PostRouted, HooksRan), Exit> {
    let ran = nf_hook::<M>(Hook::PostRouting, skb, pf, devices, env)?;
    Ok((PostRouted::of(skb), ran))
}

/// The proof for a packet that passed all hooks as was decided for its flow.
#[inline]
pub(super) fn passed_post_routing(skb: &SkBuff, _: Passed) -> PostRouted {
    PostRouted::of(skb)
}

/// Packets that passed POST_ROUTING, in output order. Allocated once.
#[derive(Debug)]
pub struct RoutedBurst(Burst);

impl RoutedBurst {
    /// An empty burst with room for `limit` packets.
    pub fn with_capacity(limit: usize) -> RoutedBurst {
        RoutedBurst(Burst::with_capacity(limit))
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// Returns the packet when there is no room.
    #[inline]
    pub(super) fn push(&mut self, skb: SkBuff, routed: &PostRouted) -> Result<(), SkBuff> {
        routed.assert_is_of(&skb);
        self.0.push(skb)
    }

    /// Appends all packets of a burst, if there is room for all of them; `routed` yields the proof for
    /// each, in the same order. Returns whether they were appended.
    #[inline]
    pub(super) fn append<'a>(
        &mut self,
        burst: &mut Burst,
        routed: impl Iterator<Item = &'a PostRouted>,
    ) -> bool {
        if cfg!(debug_assertions) {
            burst.as_slice().iter().zip(routed).for_each(|(skb, routed)| routed.assert_is_of(skb));
        }
        self.0.append(burst)
    }

    /// Appends a packet that another worker routed and handed over for sending.
    ///
    /// # Errors
    /// Returns the packet when there is no room.
    pub fn push_handed_over(&mut self, skb: SkBuff) -> Result<(), SkBuff> {
        self.0.push(skb)
    }

    /// The packets, oldest first.
    #[inline]
    pub fn as_slice(&self) -> &[SkBuff] {
        self.0.as_slice()
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no packets.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Frames of the packets.
    pub fn frames(&self) -> usize {
        self.0.frames()
    }

    /// Number of packets that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.0.room()
    }

    /// Takes the first `count` packets (all, when there are fewer), oldest first.
    pub fn drain(&mut self, count: usize) -> std::vec::Drain<'_, SkBuff> {
        self.0.drain(count)
    }

    /// Takes all packets, oldest first, each with its proof.
    pub(super) fn drain_routed(&mut self) -> impl Iterator<Item = (SkBuff, PostRouted)> {
        self.0.drain(usize::MAX).map(|skb| {
            let routed = PostRouted::of(&skb);
            (skb, routed)
        })
    }

    /// The packets for the driver or worker that sends them; empties the burst.
    #[inline]
    pub fn to_send(&mut self) -> &mut Burst {
        &mut self.0
    }
}
