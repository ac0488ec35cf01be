//! The writer and what programs read: places, next hops, rewrites.

use std::net::Ipv4Addr;

use xdp_prog::FlowKey;

use super::super::flow_gate::choose_hash;
use super::*;

const HOP_A: Hop = Hop {
    port: 1,
    macs: [[1; 6], [2; 6]],
    tags: [0x81, 0x100, 0, 0],
    nexthop: (3, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
};
const ACTION: Action = Action { basis: 7, mtu: 1500, rewrite: None };

fn table(flows: usize) -> OffloadTable {
    let buckets = OffloadTable::buckets(flows) as usize;
    let words = |count| MappedWords::anonymous(count).expect("memory");
    let marks = words(buckets * FLOW_SLOTS);
    choose_hash(marks.words());
    let places = (buckets - 1) * FLOW_SLOTS;
    OffloadTable::of(
        marks,
        words(places * ENTRY),
        words(places * REWRITE),
        words(NEXT_HOPS_MAX * HOP),
    )
}

fn key(n: u32) -> FlowWords {
    let (from, to) = (IpAddr::V4(Ipv4Addr::from(n)), IpAddr::V4(Ipv4Addr::LOCALHOST));
    FlowKey::new(from, to, 1, 2, 17).expect("IPv4").words()
}

#[test]
fn what_is_entered_is_found_and_read_and_removed() {
    let mut table = table(1024);
    // Few enough that none finds its places taken, whatever the hash.
    for n in 0..400 {
        let number = table.insert(&key(n), 5, &HOP_A, &ACTION).expect("room");
        assert_eq!(table.entries().find(&key(n)).collect::<Vec<_>>(), [number]);
        let view = table.read(number).expect("an entry");
        assert_eq!((view.key, view.in_dev, view.out_port), (key(n), 5, 1));
        assert_eq!((view.basis, view.holds, view.new_destination), (7, true, None));
        assert_eq!(view.lladdr, HOP_A.macs[0]);
    }
    assert_eq!(table.insert(&key(1), 6, &HOP_A, &ACTION), Err(NotEntered::NoPlace));
    assert_eq!(table.has_room(&key(1), 6), Err(NotEntered::NoPlace));
    assert_eq!(table.has_room(&key(10_000), 6), Ok(()));
    assert_eq!((table.len(), table.numbers(0, u32::MAX).count()), (400, 400));
    let number = table.entries().find(&key(9)).next().expect("found");
    table.remove(number, 0);
    assert_eq!((table.entries().find(&key(9)).next(), table.read(number)), (None, None));
    assert_eq!(table.len(), 399);
}

#[test]
fn the_place_of_a_removed_entry_rests() {
    let mut table = table(16);
    let entered: Vec<u32> =
        (0..1000).filter_map(|n| table.insert(&key(n), 0, &HOP_A, &ACTION).ok()).collect();
    assert_eq!(entered.len(), table.capacity());
    entered.iter().for_each(|number| table.remove(*number, 1));
    assert_eq!(table.rested(REST_NS), None);
    assert_eq!(table.insert(&key(1), 0, &HOP_A, &ACTION), Err(NotEntered::NoPlace));
    assert_eq!(table.rested(REST_NS + 1), Some(entered[0]));
    while table.rested(REST_NS + 1).is_some() {}
    assert!(table.insert(&key(1), 0, &HOP_A, &ACTION).is_ok());
}

#[test]
fn a_void_next_hop_voids_its_entries_and_is_made_anew() {
    let mut table = table(1024);
    let other = Hop { macs: [[9; 6], [2; 6]], ..HOP_A };
    let first = table.insert(&key(1), 0, &HOP_A, &ACTION).expect("room");
    let second = table.insert(&key(2), 0, &other, &ACTION).expect("room");
    table.next_hops().void(|hop| *hop == other);
    assert!(!table.read(first).expect("an entry").holds);
    assert!(table.read(second).expect("an entry").holds);
    // The same again has a new number: entries of the old one stay void.
    let third = table.insert(&key(3), 0, &HOP_A, &ACTION).expect("room");
    assert!(table.read(third).expect("an entry").holds);
    assert!(!table.read(first).expect("an entry").holds);
    for number in [first, second, third] {
        table.remove(number, 0);
    }
    assert_eq!(table.next_hops().list.load().len(), 3);
    while table.rested(u64::MAX).is_some() {}
    assert!(table.hop_numbers.is_empty() && table.hops.iter().all(Option::is_none));
    assert!(table.next_hops().list.load().is_empty());
}

#[test]
fn an_entry_that_is_voided_does_not_hold() {
    let mut table = table(1024);
    let number = table.insert(&key(1), 0, &HOP_A, &ACTION).expect("room");
    table.entries().void(&key(2));
    assert!(table.read(number).expect("an entry").holds);
    for _ in 0..2 {
        table.entries().void(&key(1));
        assert!(!table.read(number).expect("an entry").holds);
    }
}

#[test]
fn a_rewrite_is_stored_with_its_entry() {
    let mut table = table(1024);
    let rewrite = Rewrite { destination: [1, 2, 3, 4, 5, 6, 7, 8], ..Rewrite::default() };
    let action = Action { rewrite: Some(rewrite), ..ACTION };
    let number = table.insert(&key(1), 0, &HOP_A, &action).expect("room");
    let view = table.read(number).expect("an entry");
    assert_eq!((view.key, view.new_destination), (key(1), Some([0x0002_0001, 0])));
    assert_eq!(table.entries().find(&key(1)).next(), Some(number));
    let addresses = ["2001:db8::1", "2001:db8::2"].map(|it| it.parse().expect("an address"));
    let six = FlowKey::new(addresses[0], addresses[1], 1, 2, 6).expect("one family").words();
    let number = table.insert(&six, 0, &HOP_A, &action).expect("room");
    let view = table.read(number).expect("an entry");
    let words = [0x0004_0003_0002_0001, 0x0008_0007_0006_0005];
    assert_eq!((view.key, view.new_destination), (six, Some(words)));
}
