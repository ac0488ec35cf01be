//! What the reference interpreter writes, calculated with numbers of 64 bits modulo 0xffff.

use super::super::xt::{HopLimitMode, Mangle};
use super::*;

/// Octets from the network header that userspace writes.
const WRITABLE: usize = 128;

/// A number of 16 bits and one that is equal to it modulo 0xffff: what 0 is is decided by the caller.
fn folded(sum: u64) -> u16 {
    (sum % 0xffff) as u16
}

/// The sum of words, from the first octet on.
fn sum(octets: &[u8]) -> u64 {
    octets.chunks(2).map(|two| u64::from(two[0]) << 8 | u64::from(*two.get(1).unwrap_or(&0))).sum()
}

/// `Err(Accept)`: the packet is too short.
fn end(input: &Input, at: usize, len: usize) -> Result<(), Verdict> {
    let head = input.head.unwrap_or(usize::MAX).min(input.net.len());
    match at + len {
        end if end > input.net.len() => Err(Verdict::Accept),
        end if end > head.min(WRITABLE) => Err(Verdict::Kernel),
        _ => Ok(()),
    }
}

pub(super) fn set_payload(input: &mut Input, set: &SetPayload, new: &[u8]) -> Result<(), Verdict> {
    if input.iif.is_none() {
        return Err(Verdict::Kernel);
    }
    let is_network = set.base == PayloadBase::Network;
    let transport = reference::transport(input).filter(|(_, _, fragoff)| *fragoff == 0);
    let base = match (is_network, transport) {
        (true, _) => 0,
        (_, Some((_, at, _))) => at,
        _ => return Err(Verdict::Accept),
    };
    let at = base + set.offset as usize;
    end(input, at, new.len())?;
    let old = input.net[at..at + new.len()].to_vec();
    let (v4, tracked) = (input.family == Family::Ip, input.ct != Ct::Off);
    if !is_network && tracked {
        return Err(Verdict::Kernel);
    }
    for n in (0..new.len()).filter(|_| is_network) {
        let (at, bits) = (at + n, old[n] ^ new[n]);
        let is_address = if v4 { (12..20).contains(&at) } else { (8..40).contains(&at) };
        let is_free = if v4 { [1, 4, 5, 8].contains(&at) } else { [1, 2, 3, 7].contains(&at) };
        let is_class = !v4 && at == 0 && bits >> 4 == 0;
        if (bits != 0 && !is_address && !is_free && !is_class) || (is_address && tracked) {
            return Err(Verdict::Kernel);
        }
    }
    let mut changes = Vec::new();
    if is_network || !input.is_partial {
        if let Checksum::Inet(offset) = set.checksum {
            if is_network && !(v4 && offset == 10) {
                return Err(Verdict::Kernel);
            }
            end(input, base + usize::from(offset), 2)?;
            changes.push((base + usize::from(offset), false));
        }
        if let (true, Some((protocol, at, _))) = (set.pseudo_header, transport) {
            let has_none =
                protocol == 17 && (input.net.len() < at + 8 || input.net[at + 6..at + 8] == [0, 0]);
            let offset = [(6, 16), (17, 6), (136, 6), (58, 2)];
            let offset = offset.iter().find(|(of, _)| *of == protocol && !has_none);
            if let Some((_, offset)) = offset {
                end(input, at + offset, 2).map_err(|_| Verdict::Kernel)?;
                changes.push((at + offset, input.is_partial));
            }
        }
    }
    if set.checksum == Checksum::Sctp && matches!(transport, Some((132, ..))) && !input.is_partial {
        return Err(Verdict::Kernel);
    }
    for (at, is_partial) in changes {
        let field = u64::from(u16::from_be_bytes([input.net[at], input.net[at + 1]]));
        let minus_old = 0xffff - u64::from(folded(sum(&old)));
        let of_words = if is_partial { field } else { 0xffff - field };
        let words = folded(of_words + minus_old + sum(new));
        // The sum is never 0, and a checksum neither.
        let value = match (is_partial, words) {
            (true, 0) => 0xffff,
            (true, words) => words,
            (false, words) => 0xffff - words,
        };
        input.net[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    input.net[at..at + new.len()].copy_from_slice(new);
    Ok(())
}

pub(super) fn mangle(input: &mut Input, mangle: Mangle) -> Result<(), Verdict> {
    let v4 = input.family == Family::Ip;
    let head = input.head.unwrap_or(usize::MAX).min(input.net.len());
    if input.iif.is_none() || head < if v4 { 20 } else { 40 } {
        return Err(Verdict::Kernel);
    }
    let net = &mut input.net;
    let limited = |old: u8, mode, by: u8| match mode {
        HopLimitMode::Set => by,
        HopLimitMode::Inc => (u16::from(old) + u16::from(by)).min(255) as u8,
        HopLimitMode::Dec => (i16::from(old) - i16::from(by)).max(0) as u8,
    };
    if !v4 {
        match mangle {
            Mangle::Dsfield { keep, value } => {
                let class = (net[0] << 4 | net[1] >> 4) & keep ^ value;
                net[0] = net[0] & 0xf0 | class >> 4;
                net[1] = net[1] & 0x0f | class << 4;
            }
            Mangle::Ttl(mode, by) | Mangle::HopLimit(mode, by) => {
                net[7] = limited(net[7], mode, by)
            }
        }
        return Ok(());
    }
    let before = sum(&net[..20]);
    let check = u16::from_be_bytes([net[10], net[11]]);
    let is_same = match mangle {
        Mangle::Dsfield { keep, value } => {
            let old = net[1];
            net[1] = old & keep ^ value;
            net[1] == old
        }
        Mangle::Ttl(mode, by) | Mangle::HopLimit(mode, by) => {
            let old = net[8];
            net[8] = limited(old, mode, by);
            net[8] == old
        }
    };
    if !is_same {
        // The sum of the header stays what it was.
        let more = before + 0xffff - u64::from(folded(sum(&net[..20])));
        let value = folded(u64::from(check) + more);
        net[10..12].copy_from_slice(&value.to_be_bytes());
    }
    Ok(())
}
