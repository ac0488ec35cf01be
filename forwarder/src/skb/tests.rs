//! Packets of one frame and of several: edges as in the kernel, and octets as in a flat buffer.

use proptest::prelude::*;

use super::*;

fn skb() -> (FramePool, SkBuff) {
    let mut pool = Umem::anonymous(1).into_pool();
    let skb = SkBuff::alloc_skb(&mut pool, 64).expect("one frame");
    (pool, skb)
}

#[test]
fn put_push_pull_trim_move_the_edges_as_in_the_kernel() {
    let (_pool, mut skb) = skb();
    assert_eq!((skb.len(), skb.headroom()), (0, 64));
    skb.put(4).expect("room").copy_from_slice(b"data");
    skb.push(2).expect("room").copy_from_slice(b"h:");
    assert_eq!(skb.data(), b"h:data");
    skb.pull(1).expect("long enough");
    skb.trim(3);
    assert_eq!(skb.data(), b":da");
    skb.trim(100);
    assert_eq!(skb.len(), 3);
}

#[test]
fn operations_that_do_not_fit_fail_without_changes() {
    let (_pool, mut skb) = skb();
    assert_eq!(skb.push(65).map(|_| ()), Err(NoRoom { wanted: 65, available: 64 }));
    assert_eq!(
        skb.put(FRAME_SIZE).map(|_| ()),
        Err(NoRoom { wanted: FRAME_SIZE, available: FRAME_SIZE - 64 })
    );
    assert_eq!(skb.pull(1), Err(NoRoom { wanted: 1, available: 0 }));
    skb.put(1).expect("room");
    assert_eq!(skb.reserve(1), Err(NoRoom { wanted: 1, available: 0 }));
    assert_eq!((skb.len(), skb.headroom()), (1, 64));
}

#[test]
fn header_offsets_never_leave_the_packet() {
    let (_pool, mut skb) = skb();
    skb.put(20).expect("room");
    skb.set_network_header(14);
    assert_eq!(skb.network_header().len(), 6);
    skb.set_transport_header(500);
    assert!(skb.transport_header().is_empty());
    skb.trim(3);
    assert!(skb.network_header().is_empty());
}

#[test]
fn a_link_layer_header_may_be_longer_or_shorter_than_the_one_received() {
    let (_pool, mut skb) = skb();
    skb.put(20).expect("room").copy_from_slice(&std::array::from_fn::<u8, 20, _>(|n| n as u8));
    skb.set_network_header(16);
    assert_eq!(skb.set_mac_header(2).expect("room"), [14, 15]);
    assert_eq!((skb.data(), skb.network_offset()), (&[14, 15, 16, 17, 18, 19][..], 2));
    assert_eq!(skb.set_mac_header(80).expect("headroom is sufficient").len(), 80);
    assert_eq!((skb.len(), skb.network_header()[0]), (84, 16));
    let refused = skb.set_mac_chunk::<81>();
    assert!(refused.is_none());
    assert_eq!(skb.set_mac_chunk::<2>(), Some(&mut [14, 15]));
    assert_eq!((skb.len(), skb.network_offset()), (6, 2));
    let refused = skb.set_mac_header(81).map(|_| ());
    assert_eq!(refused, Err(NoRoom { wanted: 81, available: 80 }));
}

#[test]
fn moving_a_packet_keeps_its_octets_and_headers() {
    let (_pool, mut skb) = skb();
    skb.put(20).expect("room").copy_from_slice(&std::array::from_fn::<u8, 20, _>(|n| n as u8));
    skb.set_network_header(14);
    skb.move_to(256).expect("fits");
    assert_eq!(skb.data()[..3], [0, 1, 2]);
    assert_eq!(skb.network_header()[0], 14);
    assert!(skb.move_to(FRAME_SIZE - 19).is_err());
}

/// Number of frames of the pools below.
const FRAMES: u32 = 40;

/// Octets that differ from their neighbours at any frame boundary.
fn octets(len: usize, from: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n % 251) as u8).collect()
}

/// A packet of `octets` with `head` of them in the head, and at most `most` in each frag.
fn scattered(pool: &mut FramePool, octets: &[u8], head: usize, most: usize) -> SkBuff {
    let mut skb = SkBuff::alloc_skb(pool, HEADROOM).expect("a frame");
    let (first, rest) = octets.split_at(head.min(octets.len()).min(MAX_PACKET));
    skb.put(first.len()).expect("room").copy_from_slice(first);
    let most = most.max(rest.len().div_ceil(MAX_SKB_FRAGS));
    for (n, part) in rest.chunks(most.clamp(1, FRAME_SIZE)).enumerate() {
        let mut frame = pool.alloc().expect("a frame");
        let offset = (n * 97) % (FRAME_SIZE - part.len() + 1);
        frame.bytes_mut()[offset..offset + part.len()].copy_from_slice(part);
        skb.add_frag(frame, offset, part.len(), pool).expect("room");
    }
    skb
}

fn flat(skb: &SkBuff) -> Vec<u8> {
    skb.slices(0, usize::MAX).flatten().copied().collect()
}

#[derive(Debug, Clone)]
enum Op {
    Trim(usize),
    Pull(usize),
    MayPull(usize),
    Push(usize),
    Append(usize),
    Copy(usize, usize),
    Linearize,
}

fn op() -> impl Strategy<Value = Op> {
    let (long, short) = (0usize..12_000, 0usize..300);
    prop_oneof![
        long.clone().prop_map(Op::Trim),
        short.clone().prop_map(Op::Pull),
        (0usize..FRAME_SIZE).prop_map(Op::MayPull),
        short.prop_map(Op::Push),
        (0usize..9000).prop_map(Op::Append),
        (long.clone(), long).prop_map(|(at, len)| Op::Copy(at, len)),
        Just(Op::Linearize),
    ]
}

/// Applies an operation to a packet and to a flat buffer.
fn apply(op: &Op, skb: &mut SkBuff, model: &mut Vec<u8>, pool: &mut FramePool) {
    match *op {
        Op::Trim(len) => {
            skb.trim(len);
            model.truncate(len);
        }
        Op::Pull(len) => {
            let had = skb.headlen();
            if skb.pull(len).is_ok() {
                model.drain(..len);
            } else {
                assert!(len > had);
            }
        }
        Op::MayPull(len) => {
            let fits = len <= FRAME_SIZE - skb.data_offset() && len <= model.len();
            assert_eq!(skb.may_pull(len), fits);
            assert!(!fits || skb.data()[..len] == model[..len]);
        }
        Op::Push(len) => {
            if let Ok(room) = skb.push(len) {
                room.copy_from_slice(&octets(len, 7));
                model.splice(..0, octets(len, 7));
            }
        }
        Op::Append(len) => {
            let more = octets(len, 11);
            let before = skb.len();
            let done = skb.append(&more, pool);
            let added = skb.len() - before;
            assert!(done.is_err() || added == len);
            model.extend(&more[..added]);
        }
        Op::Copy(at, len) => {
            let mut copy = vec![0; len];
            let whole = skb.copy_bits(at, &mut copy).is_ok();
            let there = model.get(at..).unwrap_or(&[]);
            let there = &there[..len.min(there.len())];
            assert_eq!(whole, there.len() == len);
            assert_eq!(&copy[..there.len()], there);
        }
        Op::Linearize => {
            assert_eq!(skb.linearize(), model.len() <= FRAME_SIZE || !skb.is_nonlinear());
        }
    }
}

proptest! {
    #[test]
    fn a_packet_in_frags_has_the_octets_of_a_flat_one_whatever_is_done_to_it(
        len in 0usize..16_000,
        head in 0usize..MAX_PACKET,
        most in 1usize..FRAME_SIZE,
        ops in prop::collection::vec(op(), 0..12),
    ) {
        let mut pool = Umem::anonymous(FRAMES).into_pool();
        let mut model = octets(len, 0);
        let mut skb = scattered(&mut pool, &model, head, most);
        for op in &ops {
            apply(op, &mut skb, &mut model, &mut pool);
            prop_assert_eq!(skb.len(), model.len(), "{:?}", op);
            prop_assert_eq!(skb.len(), skb.headlen() + skb.data_len());
            prop_assert!(flat(&skb) == model, "{op:?}");
            let mut scratch = Vec::new();
            prop_assert!(skb.whole(&mut scratch) == model);
            prop_assert_eq!(pool.available() + skb.frames(), FRAMES as usize);
        }
        pool.kfree_skb(skb);
        prop_assert_eq!(pool.available(), FRAMES as usize);
    }
}

#[test]
fn no_packet_has_more_frags_than_the_kernels() {
    let mut pool = Umem::anonymous(FRAMES).into_pool();
    let mut skb = scattered(&mut pool, &octets(20, 0), 3, 1);
    assert_eq!(skb.frames(), 1 + MAX_SKB_FRAGS);
    let frame = pool.alloc().expect("a frame");
    let frame = skb.add_frag(frame, 0, 1, &mut pool).expect_err("full");
    pool.free(frame);
    assert!(skb.append(&[0; FRAME_SIZE], &mut pool).is_err(), "it fills only its last frame");
    pool.kfree_skb(skb);
    assert_eq!(pool.available(), FRAMES as usize);
}

#[test]
fn without_free_frames_appending_fails_and_no_frame_is_lost() {
    let mut pool = Umem::anonymous(2).into_pool();
    assert!(SkBuff::of_octets(&mut pool, &octets(9014, 0)).is_none());
    assert_eq!(pool.available(), 2);
    let skb = SkBuff::of_octets(&mut pool, &octets(7000, 0)).expect("two frames");
    assert_eq!(flat(&skb), octets(7000, 0));
    pool.kfree_skb(skb);
    assert_eq!(pool.available(), 2);
}

#[test]
fn octets_behind_the_network_header_are_those_of_the_slice_wherever_the_packet_ends() {
    let mut pool = Umem::anonymous(1).into_pool();
    let octets: Vec<u8> = (0..60).collect();
    let mut skb = SkBuff::of_octets(&mut pool, &octets).expect("a frame");
    skb.set_network_header(14);
    for (pull, len) in [(0, 60), (0, 41), (0, 16), (0, 10), (10, 4)] {
        skb.pull(pull).expect("as long");
        skb.trim(len);
        for at in [0, 1, 24, 25, 44, 45, 4000, usize::MAX] {
            let slice = at.checked_add(2).and_then(|end| skb.network_header().get(at..end));
            let chunk = skb.network_chunk_at::<2>(at);
            assert_eq!(chunk.map(|chunk| &chunk[..]), slice, "{len} {at}");
        }
    }
    pool.kfree_skb(skb);
}
