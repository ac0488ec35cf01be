//! What the driver xsk-rs cannot do, and how it says so. What it can do is tested in `af_xdp_root.rs`.

use std::time::Instant;

use ferroute::io::af_xdp::{AfXdp, BindMode, OpenError, Options, PortConfig, PortState};
use ferroute::io::{Driver, DriverKind};
use ferroute::stats::DropReason;

use super::netns::run;
use super::{PATIENCE, Rig, config, frame, frames, in_namespace, options, veth};

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_xsk_rs_opens_no_port_once_the_interface_of_its_first_socket_was_removed() {
    in_namespace(|| {
        let mut rig = Rig::new(DriverKind::XskRs);
        rig.assert_forwards(0, &frames(50));
        rig.programs[0] = None;
        run("ip link del port0");
        // Packets for it are dropped, and the other port goes on.
        let start = Instant::now();
        while rig.drops(DropReason::DevNotReady) == 0 {
            assert!(start.elapsed() < PATIENCE, "never noticed");
            rig.wires[1].send(&frame(1, 60));
            rig.turn();
        }
        assert_eq!(rig.io.port_info(0).expect("not removed yet").state, PortState::Gone);
        rig.io.remove_port(0, &mut rig.pool, &rig.stats);
        rig.assert_conserved();
        veth(0);
        let error = rig.io.add_port(0, &config(0), &mut rig.pool).expect_err("its socket is lost");
        assert!(matches!(error, OpenError::FirstSocketLost { .. }), "{error}");
        assert!(error.to_string().contains("first AF_XDP socket, port0, was removed"), "{error}");
        let taken = rig.stats.ports[1].rx_packets.get();
        while rig.stats.ports[1].rx_packets.get() == taken {
            assert!(start.elapsed() < PATIENCE, "nothing arrives any more");
            rig.wires[1].send(&frame(1, 60));
            rig.turn();
        }
        rig.close();
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_what_xsk_rs_cannot_open_says_why_and_the_next_can_be_opened() {
    in_namespace(|| {
        let kind = DriverKind::XskRs;
        let busy = Options { busy_poll_budget: Some(8), ..options() };
        let error = Driver::with_slots(kind, 2, 2, &busy).expect_err("no busy polling");
        assert!(error.to_string().contains("no busy polling"), "{error}");
        let once = Options { busy_tries: 2, ..options() };
        let (mut io, mut pool) = Driver::with_slots(kind, 2, 2, &once).expect("memory");
        let mut refusal = |config: PortConfig| {
            let error = io.add_port(0, &config, &mut pool).expect_err("refused");
            assert_eq!(pool.available(), pool.total() as usize);
            error
        };
        let held = AfXdp::open(&[config(0)], &options()).expect("one port");
        let error = refusal(config(0));
        assert!(matches!(error, OpenError::Busy { queue: 0, .. }), "{error}");
        drop(held);
        let error = refusal(PortConfig { queue: 9, ..config(1) });
        assert!(matches!(error, OpenError::NoQueue { queue: 9, .. }), "{error}");
        let error = refusal(PortConfig { ifindex: 9999, ..config(1) });
        assert!(matches!(error, OpenError::NoInterface { ifindex: 9999, .. }), "{error}");
        let error = refusal(PortConfig { mode: BindMode::ZeroCopy, ..config(1) });
        assert!(error.to_string().contains("binds in copy mode"), "{error}");
        // The kernel frees the queue of the closed socket from a work queue (xp_release_deferred).
        let start = Instant::now();
        while let Err(error) = io.add_port(0, &config(0), &mut pool) {
            assert!(matches!(error, OpenError::Busy { .. }), "{error}");
            assert!(start.elapsed() < PATIENCE, "{error}");
        }

        let cap = caps::Capability::CAP_NET_RAW;
        caps::drop(None, caps::CapSet::Effective, cap).expect("drop CAP_NET_RAW");
        let error = Driver::with_slots(kind, 2, 2, &options()).expect_err("no permission");
        assert!(matches!(error, OpenError::NoPermission), "{error}");
        caps::raise(None, caps::CapSet::Effective, cap).expect("raise it again");
    });
}
