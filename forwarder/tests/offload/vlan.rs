//! Tags: packets of VLANs, and to VLANs.

use xdp_prog::PortSettings;

use super::packets::{Check, Ends, Rng, TCP, UDP, forwarded, frame_of, packet, with_tags};
use super::program::{Flow, PORT, Program};
use super::{ON, PARTIAL, WIDE, assert_not_offloaded, families, reason_of, translations};
use crate::netns;

/// TPID and TCI of each tag.
type Tags = &'static [(u16, u16)];

const OF_VLANS: [Tags; 4] = [&[], &[(0x8100, 10)], &[(0x88a8, 40), (0x8100, 5)], &[(0x8100, 4094)]];

/// The tags of a received frame, with PCP and DEI.
fn with_priorities(tags: Tags, rng: &mut Rng) -> Vec<(u16, u16)> {
    tags.iter().map(|(tpid, vid)| (*tpid, vid | (rng.next() as u16 & 0xf000))).collect()
}

/// The tags of a frame that is sent: the `n`th has the priority of the `n`th that was received, or of the last one.
fn sent_tags(tags: Tags, received: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let priority = |n: usize| match received.len() {
        0 => 0,
        count => received[n.min(count - 1)].1 & 0xf000,
    };
    tags.iter().enumerate().map(|(n, (tpid, vid))| (*tpid, vid | priority(n))).collect()
}

fn tagged(tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    with_tags(frame_of(packet)[..12].to_vec(), tags, packet)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_tags_are_removed_added_and_replaced() {
    netns::in_namespace(|| {
        let mut rng = Rng(21);
        for frags in [false, true] {
            let mut program = Program::load(frags);
            for (number, tags) in (0x100..).zip(OF_VLANS).skip(1) {
                program.set_vlan(tags, number);
            }
            for own in families() {
                for (number, received) in (0x100..).zip(OF_VLANS) {
                    let number = if received.is_empty() { PORT } else { number };
                    for sent in OF_VLANS {
                        program.set_hop_tags(sent);
                        wide(&mut program, &mut rng, own, number, [received, sent]);
                        translated(&mut program, &mut rng, own, number, [received, sent]);
                    }
                }
            }
        }
    });
}

fn wide(program: &mut Program, rng: &mut Rng, own: Ends, number: u16, [received, sent]: [Tags; 2]) {
    program.install(&Flow { is_wide: true, number, ..Flow::new(own, 0) });
    program.set_flags(ON, WIDE);
    for (length, padding) in [(0, 0), (1, 3), (18, 8), (1400, 0), (300, 46)] {
        let before = packet(rng, &own, UDP, length, 64, Check::Complete);
        let came_with = with_priorities(received, rng);
        let mut frame = tagged(&came_with, &before);
        frame.extend(vec![0; padding]);
        let out = program.run(&frame);
        let what = format!("{received:?} to {sent:?}, {length} octets");
        assert_eq!(out.reason, reason_of(&own), "{what}");
        let after = forwarded(&before, &own, &own, Check::Complete);
        let leaves_with = sent_tags(sent, &came_with);
        assert_eq!(out.frame, program.sent_tagged(&leaves_with, &after), "{what}");
    }
    program.remove();
}

fn translated(
    program: &mut Program,
    rng: &mut Rng,
    own: Ends,
    number: u16,
    [received, sent]: [Tags; 2],
) {
    for protocol in [TCP, UDP] {
        for to in translations(&own) {
            program.install(&Flow { to, number, ..Flow::new(own, protocol) });
            for (flags, check) in
                [(ON, Check::Complete), (PARTIAL, Check::Partial), (PARTIAL, Check::Complete)]
            {
                program.set_flags(flags, 0);
                let before = packet(rng, &own, protocol, 77, 64, check);
                let came_with = with_priorities(received, rng);
                let out = program.run(&tagged(&came_with, &before));
                let what = format!("{received:?} to {sent:?}, to {to:?}");
                assert_eq!(out.reason, reason_of(&own), "{what}");
                let after = forwarded(&before, &own, &to.unwrap_or(own), check);
                let leaves_with = sent_tags(sent, &came_with);
                assert_eq!(out.frame, program.sent_tagged(&leaves_with, &after), "{what}");
            }
        }
    }
    program.remove();
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_entry_is_of_one_vlan() {
    netns::in_namespace(|| {
        let mut rng = Rng(22);
        let mut program = Program::load(false);
        for (number, tags) in (0x100..).zip(OF_VLANS).skip(1) {
            program.set_vlan(tags, number);
        }
        // A VLAN whose flows are not offloaded; a priority tag is one.
        program.set_vlan(&[(0x8100, 0)], 0);
        for own in families() {
            for is_wide in [false, true] {
                let protocol = if is_wide { 0 } else { UDP };
                let flow = Flow { is_wide, number: 0x101, ..Flow::new(own, protocol) };
                program.install(&flow);
                program.set_flags(ON, if is_wide { WIDE } else { 0 });
                let before = packet(&mut rng, &own, UDP, 40, 64, Check::Complete);
                assert_eq!(program.run(&tagged(OF_VLANS[1], &before)).reason, reason_of(&own));
                for other in [OF_VLANS[0], OF_VLANS[2], OF_VLANS[3], &[(0x8100, 0)]] {
                    let what = format!("{other:?}");
                    assert_not_offloaded(&mut program, &tagged(other, &before), ON, &what);
                }
                let frame = tagged(OF_VLANS[1], &before);
                let generic = ON | PortSettings::GENERIC;
                assert_not_offloaded(&mut program, &frame, generic, "generic mode");
                let unknown = tagged(&[(0x8100, 11)], &before);
                assert_not_offloaded(&mut program, &unknown, ON, "no such VLAN");
                let mut short = frame.clone();
                short.truncate(frame.len() - 1);
                assert_not_offloaded(&mut program, &short, ON, "truncated");
                for number in [0, PORT] {
                    program.install(&Flow { number, ..flow });
                    let untagged = tagged(&[(0x8100, 0)], &before);
                    assert_not_offloaded(&mut program, &untagged, ON, "a priority tag");
                }
                program.remove();
            }
        }
    });
}
