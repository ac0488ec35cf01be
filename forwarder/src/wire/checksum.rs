//! The Internet checksum: whole (RFC 1071), over pseudo-headers, and updated in place (RFC 1624).
//!
//! Sums are ones' complement sums of big-endian 16-bit words, held in a `u32` so that several can be
//! added before [`fold`]. Every function here returns at most 0xf_ffff, so thousands of sums fit.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Protocol;

/// Ones' complement sum of `data` as big-endian 16-bit words; an odd last octet is padded with a
/// zero octet after it (RFC 1071 §4.1). At most 0xffff.
///
/// Sums eight octets per step in the machine's byte order and swaps once at the end: the sum does not
/// depend on byte order (RFC 1071 §2(B)), nor on the width of the words (§2(C)).
#[inline]
#[must_use]
pub fn ones_complement_sum(data: &[u8]) -> u32 {
    u32::from(u16::from_be(fold_u64(native_sum(data))))
}

/// Whether `data`, its checksum included, is intact (RFC 1071 §1(3)).
#[inline]
#[must_use]
pub fn verify(data: &[u8]) -> bool {
    // All ones are the same in any byte order.
    fold_u64(native_sum(data)) == 0xffff
}

#[inline]
fn native_sum(data: &[u8]) -> u64 {
    // Each step adds less than 2^33, so 2^31 steps fit: 16 GiB.
    let mut sum: u64 = 0;
    let mut eights = data.chunks_exact(8);
    for eight in &mut eights {
        let [a, b, c, d, e, f, g, h] = *eight else { break };
        sum += u64::from(u32::from_ne_bytes([a, b, c, d]));
        sum += u64::from(u32::from_ne_bytes([e, f, g, h]));
    }
    let mut rest = eights.remainder();
    if let [a, b, c, d, ..] = *rest {
        sum += u64::from(u32::from_ne_bytes([a, b, c, d]));
        rest = &rest[4..];
    }
    sum += u64::from(match *rest {
        [] => 0,
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a, b, c, ..] => u32::from_ne_bytes([a, b, c, 0]),
    });
    sum
}

/// Folds carries until sixteen bits are left. Zero only for a sum of zero.
#[inline]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    // Both halves are added in the upper one, with the carry out of the lower one.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The checksum of `data`: the complement of its sum. The checksum field within must be zero.
#[inline]
#[must_use]
pub fn checksum(data: &[u8]) -> u16 {
    !fold(ones_complement_sum(data))
}

/// The checksum of a pseudo-header with the sum `pseudo_header` and of `data`, the transport header and its
/// payload. The checksum field within must be zero.
#[inline]
#[must_use]
pub fn transport_checksum(pseudo_header: u32, data: &[u8]) -> u16 {
    !fold(pseudo_header + ones_complement_sum(data))
}

/// Whether a sum over data *and* its checksum is valid.
#[inline]
#[must_use]
pub const fn is_valid(sum: u32) -> bool {
    fold(sum) == 0xffff
}

/// Sum of the IPv4 pseudo-header (RFC 9293 §3.1, RFC 768); `len` is the length in octets of
/// transport header and data.
#[inline]
#[must_use]
pub fn pseudo_header_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: Protocol, len: u16) -> u32 {
    let addresses = u64::from(src.to_bits()) + u64::from(dst.to_bits());
    halves(fold32(addresses + u64::from(protocol.0) + u64::from(len)))
}

/// Sum of the IPv6 pseudo-header (RFC 8200 §8.1); `len` as for IPv4; `protocol` is the upper-layer one,
/// not an extension header's.
#[inline]
#[must_use]
pub fn pseudo_header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: Protocol, len: u32) -> u32 {
    ones_complement_sum(&src.octets())
        + ones_complement_sum(&dst.octets())
        + halves(len)
        + u32::from(protocol.0)
}

/// The checksum after one covered 16-bit word changed from `old` to `new` (RFC 1624, eqn 3).
///
/// Let C be the ones' complement sum of the words and HC = ~C the checksum. Replacing the word m
/// by m' gives C' = C − m + m' = C + ~m + m', for in ones' complement −m is ~m. Hence
///
/// ```text
/// HC' = ~C' = ~(C + ~m + m') = ~(~HC + ~m + m')
/// ```
///
/// Using ~HC rather than HC matters at zero: eqn 2 of RFC 1141, HC' = HC + m + ~m', yields 0xffff for
/// some sums whose recomputation yields 0x0000 (RFC 1624 §3). Eqn 3 yields the recomputed value unless
/// every word covered is zero afterwards, which is never the case for a header or pseudo-header.
#[inline]
#[must_use]
pub const fn update16(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u32 + !old as u32 + new as u32)
}

/// As [`update16`] for two adjacent words, such as an IPv4 address. The field must start at an even
/// offset.
#[inline]
#[must_use]
pub const fn update32(check: u16, old: u32, new: u32) -> u16 {
    !fold(!check as u32 + halves(!old) + halves(new))
}

/// The checksum after covered octets changed from `old` to `new`, which begin at an even offset and have the
/// same, even length. As the kernel's `csum_replace4` and `inet_proto_csum_replace16` it never returns
/// 0xffff, but 0x0000, which is the same in ones' complement.
#[inline]
#[must_use]
pub fn replace(check: u16, old: &[u8], new: &[u8]) -> u16 {
    !fold(replaced_sum(!check, old, new))
}

/// The same for the folded sum of a pseudo-header, as a partial checksum field has it
/// (`inet_proto_csum_replace4` with CHECKSUM_PARTIAL).
#[inline]
#[must_use]
pub fn replace_partial(sum: u16, old: &[u8], new: &[u8]) -> u16 {
    fold(replaced_sum(sum, old, new))
}

/// `sum` - `old` + `new`; not 0.
#[inline]
fn replaced_sum(sum: u16, old: &[u8], new: &[u8]) -> u32 {
    let minus_old = u32::from(!fold(ones_complement_sum(old)));
    // 0xffff is the other zero, with which the sum does not become 0.
    0xffff + u32::from(sum) + minus_old + ones_complement_sum(new)
}

/// The IPv4 header checksum after the TTL was decremented.
///
/// TTL is the high octet of its word, so m' = m − 0x0100 and, with TTL ≥ 1, there is no borrow: ~m + m' =
/// 0xffff − m + m − 0x0100 = 0xfeff for any m. In [`update16`] that leaves
///
/// ```text
/// HC' = ~(~HC + 0xfeff) = HC + 0x0100, with end-around carry
/// ```
///
/// where 0xffff, the other zero, becomes 0x0000, as in the kernel's `ip_decrease_ttl`. The new TTL is not
/// used; it must have been 1 or more.
#[inline]
#[must_use]
pub const fn decrease_ttl(check: u16) -> u16 {
    let sum = check as u32 + 0x0100;
    (sum + (sum >= 0xffff) as u32) as u16
}

#[inline]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// As [`fold`], of a sum of words of 16 or 32 bits, in any byte order.
#[inline]
#[must_use]
pub const fn fold_u64(sum: u64) -> u16 {
    fold(fold32(sum))
}

/// Folds a sum of 32-bit words until thirty-two bits are left.
#[inline]
const fn fold32(sum: u64) -> u32 {
    // Both halves are added in the upper one, as in `fold`.
    (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// Word by word, as in RFC 1071 §4.1.
    fn naive_sum(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in data.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(ones_complement_sum(&data)), 0xddf2);
        assert_eq!(checksum(&data), 0x220d);
    }

    #[test]
    fn rfc_1624_example_gives_zero_not_minus_zero() {
        // RFC 1624 §4: HC = 0xdd2f, m = 0x5555, m' = 0x3285.
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn longest_packet_of_ones_does_not_overflow() {
        let data = vec![0xff; 65_535];
        assert_eq!(fold(ones_complement_sum(&data)), naive_sum(&data));
        assert_eq!(fold(u32::MAX), 0xffff);
    }

    /// Let `word` hold TTL and protocol and `rest` be the folded sum of all other words but the checksum.
    /// The checksums before and after follow from rest + word and rest + word − 0x0100, so every value of
    /// rest + word covers every pair: 65,280 words with 65,535 rests. (`rest` is 1 or more, because it
    /// includes the word with version and header length.)
    #[test]
    fn decrease_ttl_equals_recomputation_for_every_ttl_word_and_checksum() {
        let (least, most) = (1 + 0x0100, 0xffff + 0xffff);
        let mut checks_seen = vec![false; 0x1_0000];
        for sum in least..=most {
            let (before, after) = (!fold(sum), !fold(sum - 0x0100));
            assert_eq!(decrease_ttl(before), after, "rest + word {sum:#07x}");
            checks_seen[usize::from(before)] = true;
        }
        // 0xffff does not occur: the sum of a header is never zero.
        let unseen: Vec<_> = (0..0x1_0000).filter(|&check| !checks_seen[check]).collect();
        assert_eq!(unseen, [0xffff]);
    }

    /// The word cancels out: ~m + m' is the same for all, so every word behaves alike.
    #[test]
    fn decrease_ttl_is_equation_3_for_every_word_and_checksum() {
        for word in 0x0100..=0xffffu16 {
            let unfolded = u32::from(!word) + u32::from(word - 0x0100);
            assert_eq!(unfolded, 0xfeff, "word {word:#06x}");
        }
        for check in 0..=0xffffu16 {
            assert_eq!(decrease_ttl(check), update16(check, 0x4006, 0x3f06), "{check:#06x}");
        }
    }

    /// Why the update is right for headers, but not for arbitrary octets.
    #[test]
    fn only_all_zero_words_sum_to_the_zero_that_an_update_does_not_give() {
        let before = !fold(0x0100);
        assert_eq!(update16(before, 0x0100, 0x0000), 0x0000);
        assert_eq!(!fold(0x0000), 0xffff, "no words but zeros");
    }

    #[test]
    fn decrease_ttl_keeps_a_header_valid_that_wrote_zero_as_ffff() {
        // 0xffff is the other zero: receivers accept it, but no sender computes it.
        for word in 0x0100..=0xffffu16 {
            let rest = u32::from(!word);
            assert!(is_valid(rest + u32::from(word) + 0xffff));
            let after = decrease_ttl(0xffff);
            assert!(is_valid(rest + u32::from(word - 0x0100) + u32::from(after)));
            assert_eq!(after, !fold(rest + u32::from(word - 0x0100)));
        }
    }

    proptest! {
        #[test]
        fn sum_equals_the_naive_one(data in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert_eq!(fold(ones_complement_sum(&data)), naive_sum(&data));
        }

        #[test]
        fn sum_does_not_depend_on_alignment(data in proptest::collection::vec(any::<u8>(), 8..64)) {
            for start in 0..8 {
                prop_assert_eq!(fold(ones_complement_sum(&data[start..])), naive_sum(&data[start..]));
            }
        }

        #[test]
        fn updates_equal_recomputation(
            mut data in proptest::collection::vec(any::<u8>(), 20..60),
            at in 0usize..8,
            new in any::<u32>(),
        ) {
            // A header is never all zero; its first word here is not.
            data[0] = 0x45;
            let at = 2 + at * 2;
            let check = checksum(&data);
            let old = u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
            data[at..at + 4].copy_from_slice(&new.to_be_bytes());
            let want = checksum(&data);
            prop_assert_eq!(update32(check, old, new), want);
            let high = update16(check, (old >> 16) as u16, (new >> 16) as u16);
            prop_assert_eq!(update16(high, old as u16, new as u16), want);
        }

        #[test]
        fn pseudo_headers_are_the_sums_of_their_octets(
            a in any::<[u8; 16]>(), b in any::<[u8; 16]>(), protocol in any::<u8>(), len in any::<u32>(),
        ) {
            let mut v6 = [a, b].concat();
            v6.extend(len.to_be_bytes());
            v6.extend([0, 0, 0, protocol]);
            let sum = pseudo_header_v6(a.into(), b.into(), Protocol(protocol), len);
            prop_assert_eq!(fold(sum), naive_sum(&v6));

            let v4 = [&a[..4], &b[..4], &[0, protocol], &(len as u16).to_be_bytes()].concat();
            let (src, dst) = (Ipv4Addr::from([a[0], a[1], a[2], a[3]]), Ipv4Addr::from([b[0], b[1], b[2], b[3]]));
            let sum = pseudo_header_v4(src, dst, Protocol(protocol), len as u16);
            prop_assert_eq!(fold(sum), naive_sum(&v4));
        }
    }
}
