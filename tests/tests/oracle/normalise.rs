//! Makes fields equal that may differ between two correct routers, and only those.
//!
//! | field | where | why |
//! | --- | --- | --- |
//! | identification | IPv4 packets that the router generates | any number is allowed (RFC 6864 §4.1); the kernel's is random |
//! | flow label | IPv6 packets that the router generates | any number is allowed (RFC 6437 §3); the kernel's is hashed with a secret |
//! | timestamps | the timestamp option of IPv4, also in a quoted header | the time of day in milliseconds |
//! | ICMP errors as a whole | to a broadcast address | RFC 1812 §4.3.2.7 forbids them, and Ferroute sends none; the kernel sends some if it looks up the route before checking the source |
//! | redirects | | one per second at most; left out, as is all neighbour discovery |
//! | checksums of IPv4 and ICMP | where one of these was changed | they cover those fields; they are verified first, and an invalid one is kept |

use ferroute_tests::packet::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, be16, checksum};

use crate::input::is_made_by_router;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const TIMESTAMP: u8 = 68;

/// A frame from a router with the fields above set to zero.
pub fn normalise(mut frame: Vec<u8>) -> Vec<u8> {
    let own = is_made_by_router(&frame);
    match be16(&frame, 12) {
        Some(ETHERTYPE_IPV4) => normalise4(&mut frame[ETH_LEN..], own),
        Some(ETHERTYPE_IPV6) if own && frame.len() >= ETH_LEN + 4 => {
            frame[ETH_LEN + 1] &= 0xf0;
            frame[ETH_LEN + 2..ETH_LEN + 4].fill(0);
        }
        _ => {}
    }
    frame
}

fn normalise4(packet: &mut [u8], own: bool) {
    let Some((header, payload)) = split_header(packet) else { return };
    let was_right = checksum(header) == 0;
    let mut changed = own;
    if own {
        header[4..6].fill(0);
    }
    changed |= clear_timestamps(&mut header[20..]);
    if changed && was_right {
        header[10..12].fill(0);
    }
    if own && header[9] == ICMP && payload.len() > 8 {
        normalise_quoted(payload);
    }
}

/// The same for the packet quoted by an ICMP error, which also contains the time.
fn normalise_quoted(message: &mut [u8]) {
    let is_error = matches!(message[0], 3 | 5 | 11 | 12);
    let was_right = checksum(message) == 0;
    let Some((header, _)) = split_header(&mut message[8..]) else { return };
    if is_error && clear_timestamps(&mut header[20..]) {
        header[10..12].fill(0);
        if was_right {
            message[2..4].fill(0);
        }
    }
}

/// The header of an IPv4 packet with its options, and the rest.
fn split_header(packet: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let header_len = usize::from(packet.first()? & 15) * 4;
    if header_len < 20 { None } else { packet.split_at_mut_checked(header_len) }
}

/// Sets the timestamps of the option to zero; returns true if there is one.
fn clear_timestamps(options: &mut [u8]) -> bool {
    let mut at = 0;
    while at < options.len() {
        let len = match options[at] {
            END => return false,
            NO_OPERATION => 1,
            _ => options.get(at + 1).map_or(0, |len| usize::from(*len)),
        };
        if len == 0 || at + len > options.len() {
            return false;
        }
        if options[at] == TIMESTAMP && len >= 4 {
            // Flag 0: timestamps only; 1 and 3: an address before each.
            let entry = if options[at + 3] & 15 == 0 { 4 } else { 8 };
            for entry in options[at + 4..at + len].chunks_exact_mut(entry) {
                let stamp = entry.len() - 4;
                entry[stamp..].fill(0);
            }
            return true;
        }
        at += len;
    }
    false
}
