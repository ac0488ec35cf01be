//! The marks of offloaded flows: where a flow's entry is.

use core::arch::asm;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use xdp_prog::offload::MARK_BUCKETS_MAX;
use xdp_prog::{FLOW_SLOTS, FlowBucket, FlowHash};

use crate::offload::{MMAPABLE, opaque};

#[btf_map]
static FR_OFF_MARKS: Array<FlowBucket, MARK_BUCKETS_MAX, MMAPABLE> = Array::new();
/// Where a mark is.
pub struct Slot {
    /// Inside the map's value.
    pub at: *const u32,
    /// Number of the entry.
    pub number: u32,
    pub mark: u32,
}

/// The slot with the mark of a flow with this hash.
#[inline(always)]
pub fn find(of_flow: u64) -> Option<Slot> {
    let hash = FR_OFF_MARKS.get_ptr(0)?;
    // SAFETY: the first entry is a `FlowHash`, which nobody writes after the program was loaded.
    let place = unsafe { &*hash.cast::<FlowHash>() }.place_of(of_flow);
    let [first, second] = place.buckets;
    let home = place.home();
    // While the bucket is read, the CPU goes on with the entry of the slot in which the mark mostly is: both are in no cache
    // if there are many. The marks of a whole bucket are compared without a branch, for which it would have to wait.
    let (mut bucket, mut slot) = (first, in_slot(first, home, place.mark)?);
    if slot.1 & FOUND == 0 {
        (bucket, slot) = (second, in_slot(second, home, place.mark)?);
    }
    if slot.1 & FOUND == 0 {
        (bucket, slot) = (first, in_bucket(first, place.mark)?);
    }
    if slot.1 & FOUND == 0 {
        (bucket, slot) = (second, in_bucket(second, place.mark)?);
        if slot.1 & FOUND == 0 {
            return None;
        }
    }
    let at = slot.1 as u32 % FLOW_SLOTS as u32;
    let number = (bucket - 1).wrapping_mul(FLOW_SLOTS as u32) + at;
    // SAFETY: `at` is less than the number of slots.
    let at = unsafe { (&raw const (*slot.0).slots).cast::<u32>().add(at as usize) };
    Some(Slot { at, number, mark: place.mark })
}

/// Bit of a slot's number that says that there is one.
const FOUND: u64 = FLOW_SLOTS as u64;

/// The bucket with this number, and a slot in it, with the bit [`FOUND`] if it has the mark.
#[inline(always)]
fn in_slot(bucket: u32, at: usize, mark: u32) -> Option<(*const FlowBucket, u64)> {
    let bucket = FR_OFF_MARKS.get_ptr(bucket)?;
    // SAFETY: inside the map's value; userspace writes whole words at any time.
    let slot = unsafe { (&raw const (*bucket).slots).cast::<u32>().add(at).read_volatile() };
    Some((bucket, if slot == mark { FOUND | at as u64 } else { 0 }))
}

/// The bucket with this number, and the slot in it that has the mark, with the bit [`FOUND`]. If two have it, the
/// result may be another slot.
#[inline(always)]
fn in_bucket(bucket: u32, mark: u32) -> Option<(*const FlowBucket, u64)> {
    let bucket = FR_OFF_MARKS.get_ptr(bucket)?;
    let mark = widened(mark);
    let mut found = 0;
    for at in 0..FLOW_SLOTS {
        // SAFETY: inside the map's value; userspace writes whole words at any time.
        let slot = unsafe { (&raw const (*bucket).slots).cast::<u32>().add(at).read_volatile() };
        found |= is_zero(u64::from(slot) ^ mark) * (FOUND | at as u64);
    }
    Some((bucket, found))
}

/// 1 for 0, and 0 for other 32-bit values. The compiler would make a branch of it, which the CPU predicts badly and of
/// which the verifier follows both ways. So does the verifier, from Linux 6.18 on, for a mask that is 0 or -1.
#[inline(always)]
fn is_zero(value: u64) -> u64 {
    let mut sign = value.wrapping_sub(1);
    // SAFETY: an instruction that has no other effect.
    unsafe { asm!("{} >>= 63", inout(reg) sign, options(pure, nomem, nostack)) };
    sign
}

/// The same number, of which the compiler does not know that it has 32 bits only: the target has no 32-bit
/// instructions, and it would clear the upper half after each one.
#[inline(always)]
fn widened(value: u32) -> u64 {
    opaque(value.into())
}
