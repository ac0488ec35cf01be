//! VLAN sub-interfaces (802.1Q, 802.1ad): identification of their frames, and lookup.
//!
//! A sub-interface is a [`Link`](super::Link) of its own with the port of its lower interface. With two
//! tags, the outer one is that of the interface in between. Frames with more tags are punted.

use crate::hash_table::{Slot, mix};
use crate::wire::EtherType;
use crate::wire::vlan::VID_MAX;

/// Maximum number of tags of a sub-interface.
pub const TAGS_MAX: usize = 2;

/// Identifies a VLAN's frames: TPID and VID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    tpid: EtherType,
    vid: u16,
}

impl Tag {
    /// `None`: the TPID is neither 0x8100 nor 0x88a8, or the VID is above [`VID_MAX`].
    pub fn new(tpid: EtherType, vid: u16) -> Option<Tag> {
        (tpid.is_vlan() && vid <= VID_MAX).then_some(Tag { tpid, vid })
    }

    /// The TPID, an EtherType.
    #[inline]
    pub fn tpid(self) -> EtherType {
        self.tpid
    }

    /// VLAN identifier.
    #[inline]
    pub fn vid(self) -> u16 {
        self.vid
    }

    /// Never 0, which stands for no tag.
    #[inline]
    fn bits(self) -> u64 {
        1 << 15 | u64::from(self.tpid == EtherType::QINQ) << 14 | u64::from(self.vid)
    }
}

/// One tag that a sub-interface adds to its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressTag {
    /// TPID and VID.
    pub tag: Tag,
    /// `egress-qos-map`: priority of the packet (`skb->priority`) and PCP, for PCPs other than 0. Empty:
    /// the received PCP is kept.
    pub qos: Box<[(u32, u8)]>,
}

/// The VLAN properties of a sub-interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Its number among the interfaces that packets are sent by: see [`Links::dev`](super::Links::dev).
    pub dev: u16,
    /// ifindex of its lower interface.
    pub link: u32,
    /// Its tags, outermost first: one or two.
    pub tags: Box<[EgressTag]>,
    /// `ingress-qos-map`: the priority of packets by PCP.
    pub ingress_qos: [u32; 8],
    /// MAC address of the interface in between, if there is one: frames to it are accepted as well.
    pub between: Option<[u8; 6]>,
}

/// Port and tags of a frame, as far as they have been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TagStack(u64);

impl TagStack {
    /// A port's frames without tags.
    #[inline]
    pub fn untagged(port: u16) -> TagStack {
        TagStack(u64::from(port) << 32)
    }

    /// Adds an inner tag; `None`: there are [`TAGS_MAX`] already.
    #[inline]
    pub fn push(self, tag: Tag) -> Option<TagStack> {
        match self.0 as u32 {
            0 => Some(TagStack(self.0 | tag.bits() << 16)),
            first if first & 0xffff == 0 => Some(TagStack(self.0 | tag.bits())),
            _ => None,
        }
    }

    /// The tags of a sub-interface that receives by `port`.
    pub fn of(port: u16, vlan: &Vlan) -> Option<TagStack> {
        let untagged = TagStack::untagged(port);
        vlan.tags.iter().try_fold(untagged, |stack, egress| stack.push(egress.tag))
    }
}

/// A sub-interface by port and tags.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tagged {
    /// 0 in an empty slot: no sub-interface is without tags.
    pub stack: TagStack,
    /// [`Vlan::dev`].
    pub dev: u16,
}

impl Slot for Tagged {
    type Key = TagStack;
    type Value = u16;

    #[inline]
    fn key(&self) -> TagStack {
        self.stack
    }

    #[inline]
    fn value(&self) -> Option<u16> {
        (self.stack.0 != 0).then_some(self.dev)
    }

    #[inline]
    fn hash(stack: TagStack) -> usize {
        (mix(stack.0) >> 40) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_table::HashTable;

    fn tag(tpid: EtherType, vid: u16) -> Tag {
        Tag::new(tpid, vid).expect("a tag")
    }

    #[test]
    fn only_tags_of_802_1q_and_802_1ad_with_a_vid_are_tags() {
        assert!(Tag::new(EtherType::VLAN, 0).is_some());
        assert!(Tag::new(EtherType::QINQ, 4094).is_some());
        assert!(Tag::new(EtherType::VLAN, 4095).is_none());
        assert!(Tag::new(EtherType(0x9100), 1).is_none());
    }

    #[test]
    fn every_stack_is_found_and_no_other() {
        let mut stacks = Vec::new();
        for port in [0, 1, 7] {
            let untagged = TagStack::untagged(port);
            for vid in (0..400).step_by(3) {
                let one = untagged.push(tag(EtherType::VLAN, vid)).expect("room");
                let two = one.push(tag(EtherType::VLAN, vid)).expect("room");
                assert!(two.push(tag(EtherType::VLAN, 1)).is_none(), "a third tag");
                let service = untagged.push(tag(EtherType::QINQ, vid)).expect("room");
                stacks.extend([one, two, service]);
            }
        }
        let entries = stacks.iter().zip(0..).map(|(&stack, dev)| Tagged { stack, dev });
        let table = HashTable::new(entries.clone());
        for entry in entries {
            assert_eq!(table.get(entry.stack), Some(entry.dev));
        }
        for port in [0, 1, 2, 7] {
            let untagged = TagStack::untagged(port);
            assert_eq!(table.get(untagged), None);
            for vid in (1..400).step_by(3) {
                let one = untagged.push(tag(EtherType::VLAN, vid)).expect("room");
                assert_eq!(table.get(one), None);
                assert_eq!(table.get(one.push(tag(EtherType::QINQ, vid)).expect("room")), None);
            }
        }
    }
}
