//! The input format of targets that send frames: first the router's settings (two octets,
//! [`Settings`](crate::lab::Settings)), then steps, each starting with an octet.
//!
//! | bits 0–2 of a step | |
//! | --- | --- |
//! | 0 to 3 | a frame is received; one octet gives the number of its octets that follow, two (little endian) the number of further octets, which are 0, 1, … 250, 0, 1, …; then the octets of the frame |
//! | 4 | time passes: one octet follows, in units of 64 ms |
//! | 5 | missing neighbours are known from now on; the next time they are missing again |
//! | 6, 7 | received frames are forwarded, as one burst of each port |
//!
//! Bits 3 to 7 of a frame: it is received on the second port; the IPv4 header checksum is corrected; the
//! TCP, UDP or ICMP checksum is corrected; it is made partial, as senders on veth leave it; lengths in the
//! IP and UDP headers are set to the frame's. A header that libFuzzer changes anywhere thus still passes
//! checks that would otherwise reject it.

use crate::packet::{Frame, Ip, be16, sum};

/// Octets of a frame that an input does not contain. Their number is a prime, so that no two parts of a
/// packet at the distance of a header or a fragment are the same.
const PATTERN: [u8; 251] = {
    let mut pattern = [0; 251];
    let mut n = 0;
    while n < pattern.len() {
        pattern[n] = n as u8;
        n += 1;
    }
    pattern
};
/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A frame is received on a port.
    Frame(u16, Vec<u8>),
    /// Milliseconds pass.
    Wait(u64),
    /// Missing neighbours become known, or missing again.
    Neighbours,
    /// Received frames are forwarded.
    Forward,
}

/// Removes `len` octets from the front, or as many as there are.
fn take<'a>(octets: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = octets.split_at(len.min(octets.len()));
    *octets = rest;
    taken
}

fn octet(octets: &mut &[u8]) -> u8 {
    take(octets, 1).first().copied().unwrap_or(0)
}

/// Settings and steps of an input: at most `most` frames of at most `longest` octets.
pub fn parse(mut octets: &[u8], most: usize, longest: usize) -> (u16, Vec<Step>) {
    let settings = u16::from_le_bytes([octet(&mut octets), octet(&mut octets)]);
    let mut steps = Vec::new();
    let mut frames = 0;
    while !octets.is_empty() && frames < most {
        let kind = octet(&mut octets);
        steps.push(match kind & 7 {
            0..=3 => {
                frames += 1;
                Step::Frame(u16::from(kind >> 3 & 1), frame(kind, &mut octets, longest))
            }
            4 => Step::Wait(u64::from(octet(&mut octets)) * 64),
            5 => Step::Neighbours,
            _ => Step::Forward,
        });
    }
    steps.push(Step::Forward);
    (settings, steps)
}

fn frame(kind: u8, octets: &mut &[u8], longest: usize) -> Vec<u8> {
    let len = usize::from(octet(octets));
    let more = usize::from(u16::from_le_bytes([octet(octets), octet(octets)]));
    let mut frame = take(octets, len).to_vec();
    frame.truncate(longest);
    let end = longest.min(frame.len() + more);
    while frame.len() < end {
        let more = (end - frame.len()).min(PATTERN.len());
        frame.extend_from_slice(&PATTERN[..more]);
    }
    if kind & 0x80 != 0 {
        mend_lengths(&mut frame);
    }
    // The transport checksum first, although neither ICMP nor UDP is covered by a header checksum.
    match kind & 0x60 {
        0x20 => mend_transport(&mut frame, false),
        0x40 | 0x60 => mend_transport(&mut frame, true),
        _ => {}
    }
    if kind & 0x10 != 0 {
        mend_header(&mut frame);
    }
    frame
}

/// Corrects lengths and checksums of a frame.
pub fn mend(frame: &mut [u8]) {
    mend_lengths(frame);
    mend_transport(frame, false);
    mend_header(frame);
}

fn set16(octets: &mut [u8], at: usize, value: u16) {
    if let Some(two) = octets.get_mut(at..at + 2) {
        two.copy_from_slice(&value.to_be_bytes());
    }
}

/// The offset of a frame's IP packet, and its version.
fn ip_at(frame: &[u8]) -> Option<(usize, u8)> {
    let parsed = Frame::parse(frame)?;
    Some((parsed.header_len, parsed.payload.first()? >> 4))
}

fn mend_lengths(frame: &mut [u8]) {
    let Some((at, version)) = ip_at(frame) else { return };
    let len = frame.len() - at;
    let (protocol, transport) = match version {
        4 => {
            set16(frame, at + 2, len as u16);
            (frame.get(at + 9), usize::from(frame[at] & 0xf) * 4)
        }
        _ => {
            set16(frame, at + 4, len.saturating_sub(40) as u16);
            (frame.get(at + 6), 40)
        }
    };
    if protocol == Some(&17) && len >= transport {
        set16(frame, at + transport + 4, (len - transport) as u16);
    }
}

fn mend_header(frame: &mut [u8]) {
    let Some((at, 4)) = ip_at(frame) else { return };
    let end = at + usize::from(frame[at] & 0xf) * 4;
    if end < at + 20 || end > frame.len() {
        return;
    }
    set16(frame, at + 10, 0);
    let value = !sum([&frame[at..end]]);
    set16(frame, at + 10, value);
}

/// Makes the transport checksum correct or partial.
fn mend_transport(frame: &mut [u8], partial: bool) {
    let parsed = Frame::parse(frame);
    let Some((ip, base)) = parsed.and_then(|parsed| Some((parsed.ip()?, parsed.header_len))) else {
        return;
    };
    let (protocol, at, end, addresses) = match ip {
        Ip::V4(v4) => (v4.header[9], v4.header.len(), v4.len(), v4.header[12..20].to_vec()),
        Ip::V6(v6) => {
            let Some((protocol, at)) = v6.upper() else { return };
            (protocol, at, v6.octets.len(), v6.octets[8..40].to_vec())
        }
    };
    let field = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return,
    };
    let (at, end) = (base + at, base + end);
    if at + field + 2 > end {
        return;
    }
    // The pseudo-header's length is the same for both families as a sum of words.
    let pseudo = [&addresses[..], &[0, protocol], &((end - at) as u16).to_be_bytes()].concat();
    let pseudo = if protocol == 1 { Vec::new() } else { pseudo };
    set16(frame, at + field, 0);
    let value = if partial { sum([&pseudo[..]]) } else { !sum([&pseudo[..], &frame[at..end]]) };
    set16(frame, at + field, if value == 0 && protocol == 17 { 0xffff } else { value });
    debug_assert!(partial || be16(frame, at + field) != 0 || protocol != 17);
}
