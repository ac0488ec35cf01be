//! Packets that wait for a neighbour.

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn packets_wait_and_leave_in_order_when_the_neighbour_is_known() {
    let mut lab = Net::default().lab();
    let frames: Vec<_> =
        (0..5u8).map(|n| V4 { tos: n << 2, ..V4::to("10.14.0.1") }.frame()).collect();
    lab.receive(LEFT, &frames);
    assert_eq!(lab.sent(), []);
    assert_eq!(lab.state.held(), 5);
    let wanted: IpAddr = addr4("198.18.2.77").into();
    assert_eq!(lab.out.neigh_requests, [(3, wanted)]);
    lab.poll();
    assert_eq!(lab.state.held(), 5);
    lab.net.neigh.push((3, "198.18.2.77", Some([2, 0, 0, 0, 2, 77])));
    lab.publish();
    lab.poll();
    let sent = lab.sent();
    assert_eq!(sent.iter().map(|(_, f)| f[15]).collect::<Vec<_>>(), [0, 4, 8, 12, 16]);
    for (port, frame) in &sent {
        assert_eq!((*port, &frame[..6]), (RIGHT, &[2, 0, 0, 0, 2, 77][..]));
    }
    assert_eq!(lab.state.held(), 0);
}

#[test]
fn requests_repeat_each_quarter_second_and_packets_are_dropped_after_three_seconds() {
    let mut lab = Net::default().lab();
    lab.net.neigh.push((3, "198.18.2.77", None));
    lab.publish();
    let packet = V4::to("10.14.0.1").packet();
    lab.receive(LEFT, &[eth(0x0800, &packet)]);
    for _ in 0..8 {
        assert_eq!(lab.out.neigh_requests.len(), 1);
        lab.out.neigh_requests.clear();
        lab.now_ns += SECOND_NS / 8;
        lab.poll();
        assert_eq!(lab.out.neigh_requests.len(), 0);
        lab.now_ns += SECOND_NS / 8;
        lab.poll();
    }
    assert_eq!(lab.state.held(), 1);
    lab.now_ns += SECOND_NS;
    lab.poll();
    assert_eq!(lab.state.held(), 0);
    assert_eq!(lab.drops(DropReason::NeighFailed), 1);
    let sent = lab.sent();
    let reply = answered(&sent, 0x0800);
    assert_eq!(reply[20..22], [3, 1], "Host Unreachable");
    assert_eq!(
        reply[28..],
        after_hop(packet),
        "quoted as it was about to be sent, as in the kernel"
    );
}

#[test]
fn unresolved_ipv6_is_dropped_with_address_unreachable() {
    let mut lab = Net::default().lab();
    let mut packet = V6::to("2001:db8:a:14::1").packet();
    lab.receive(LEFT, &[eth(0x86dd, &packet)]);
    assert_eq!(lab.out.neigh_requests, [(3, addr6("2001:db8:2::77").into())]);
    lab.now_ns += 3 * SECOND_NS;
    lab.poll();
    let sent = lab.sent();
    let reply = answered(&sent, 0x86dd);
    assert_eq!(reply[40..42], [1, 3], "Address Unreachable");
    packet[7] -= 1;
    assert_eq!(reply[48..], packet);
}

#[test]
fn what_finds_no_room_is_held_by_the_kernel() {
    let mut lab = Net::default().lab();
    // For one neighbour the oldest packets are dropped, as in the kernel.
    let frame = |n: u8| V4 { tos: n << 2, ..V4::to("10.14.0.1") }.frame();
    (0..120).for_each(|n| lab.receive(LEFT, &[frame(n % 60)]));
    assert_eq!(lab.state.held(), 101);
    assert_eq!(lab.drops(DropReason::NeighQueueFull), 19);
    assert_eq!(lab.punted(), Vec::<Vec<u8>>::new());
    lab.net.neigh.push((3, "198.18.2.77", Some([2, 0, 0, 0, 2, 77])));
    lab.publish();
    lab.poll();
    let order: Vec<_> = lab.sent().iter().map(|(_, frame)| frame[15] >> 2).collect();
    assert_eq!(order, (19..120).map(|n| n % 60).collect::<Vec<u8>>());
    // Of a scan of a subnet, some neighbours are waited for here, the others by the kernel.
    let scan = 3..250u8;
    for n in scan.clone() {
        let mut packet = V4::default().packet();
        packet[19] = n;
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        lab.receive(LEFT, &[eth(0x0800, &packet)]);
    }
    assert_eq!(lab.state.held(), 64);
    // One of them is known.
    assert_eq!(lab.sent().len(), 1);
    assert_eq!(lab.punted().len(), scan.len() - 64 - 1);
    assert_eq!(lab.punts(PuntReason::NeighUnresolved), scan.len() as u64 - 64 - 1);
    assert_eq!(lab.drops(DropReason::NeighQueueFull), 19);
    assert!(lab.out.neigh_requests.len() <= NEIGH_REQUESTS);
    let packet = V6::to("2001:db8:a:14::1");
    assert_eq!(lab.one(packet.frame()), []);
    assert_eq!(lab.punted(), [packet.frame()]);
    lab.now_ns += 3 * SECOND_NS;
    lab.poll();
    assert_eq!(lab.state.held(), 0);
}

#[test]
fn an_icmp_error_to_an_unresolved_neighbour_is_held() {
    let mut lab = Net::default().lab();
    let frame = V4 { ttl: 1, src: "198.18.1.77", ..V4::default() }.frame();
    assert_eq!(lab.one(frame), []);
    assert_eq!(lab.state.held(), 1);
    assert_eq!(lab.out.neigh_requests, [(2, addr4("198.18.1.77").into())]);
    lab.now_ns += 3 * SECOND_NS;
    lab.poll();
    assert_eq!((lab.sent(), lab.state.held()), (vec![], 0));
}

#[test]
fn a_neighbour_in_use_is_marked() {
    let mut lab = Net::default().lab();
    lab.one(V4::default().frame());
    let used: Vec<_> = lab.tables.neigh.iter().filter(|n| n.take_used()).map(|n| n.addr).collect();
    assert_eq!(used, [IpAddr::V4(addr4("198.18.2.2"))]);
}

#[test]
fn packets_wait_as_long_as_the_kernel_tries() {
    let mut net = Net::default();
    net.links[2].neigh_tried_ns = [SECOND_NS, 5 * SECOND_NS];
    let mut lab = net.lab();
    lab.receive(LEFT, &[V4::to("10.14.0.1").frame(), V6::to("2001:db8:a:14::1").frame()]);
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(lab.state.held());
        lab.now_ns += SECOND_NS;
        lab.poll();
    }
    assert_eq!(held, [2, 1, 1, 1, 1, 0]);
}

#[test]
fn a_burst_is_held_as_far_as_there_is_room_for_all_of_it() {
    let mut lab = Net::default().lab();
    let to = |n: u8| {
        let mut packet = V4::default().packet();
        packet[19] = n;
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        eth(0x0800, &packet)
    };
    for burst in (3..203).map(to).collect::<Vec<_>>().chunks(50) {
        lab.receive(LEFT, burst);
    }
    assert_eq!(lab.drops(DropReason::NeighQueueFull), 0);
    assert!(lab.state.held() > 50, "{}", lab.state.held());
    assert_eq!(lab.state.held() + lab.punted().len(), 200);
}

#[test]
fn packets_whose_error_would_be_the_kernels_are_held_by_it() {
    type Set = fn(&mut Sysctls);
    let sets: [(Set, [usize; 2]); 3] = [
        (|sysctl| sysctl.icmp_errors_extended = true, [1, 0]),
        (|sysctl| sysctl.icmp6_errors_extended = true, [0, 1]),
        (|sysctl| sysctl.multipath_use_neigh = true, [1, 0]),
    ];
    for (set, punted) in sets {
        let mut net = Net::default();
        set(&mut net.sysctl);
        let mut lab = net.lab();
        let frames = [V4::to("10.14.0.1").frame(), V6::to("2001:db8:a:14::1").frame()];
        for (frame, punted) in frames.into_iter().zip(punted) {
            assert_eq!(lab.one(frame), []);
            assert_eq!(lab.punted().len(), punted);
        }
        assert_eq!(lab.state.held(), 1);
    }
}
