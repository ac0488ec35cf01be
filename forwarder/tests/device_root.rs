//! Devices of the running kernel: an AF_XDP port behind its callbacks, and the settings of an interface
//! that busy polling changes and restores.
//!
//! Needs root. Each test has a network namespace of its own, which ends with its thread.

use std::path::Path;

use ferroute::control::netdev::KernelDevice;
use ferroute::control::netdev::napi;
use ferroute::control::netdev::poll::{Tuned, restore_leftovers};
use ferroute::control::netdev::sysfs::{self, DeviceSettings};
use ferroute::io::af_xdp::{AfXdp, BindMode, Options, PortConfig, RingSizes};
use ferroute::io::device::{DeviceError, EthtoolOps, NetDevice, NetDeviceOps, RxUsers};
use ferroute::stats::WorkerStats;

use netns::run;

mod netns;

/// The largest IP packet that fits into a frame, in octets.
const MTU_MAX: u32 = 3370;

/// Runs `test` in a thread with a network namespace of its own, which has the veth pair
/// `port`–`peer`, both up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    netns::in_namespace(|| {
        run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; \
             ip link add port type veth peer name peer; ip link set port up; ip link set peer up");
        test();
    });
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("an interface")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_af_xdp_port_is_a_device() {
    in_namespace(|| {
        let options =
            Options { rings: RingSizes { fill: 64, tx: 64 }, reserve: 64, ..Options::default() };
        let (mut io, mut pool) = AfXdp::with_slots(1, 1, &options).expect("memory");
        let stats = WorkerStats::new(1);
        let config = PortConfig {
            ifname: "port".to_owned(),
            ifindex: ifindex("port"),
            queue: 0,
            mode: BindMode::Auto,
            ..PortConfig::default()
        };
        let mut device = io.device(0, config, &mut pool, &stats);
        let frame = [0xff; 60];
        assert!(matches!(device.start_xmit(&frame), Err(DeviceError::Down(_))));
        for _ in 0..2 {
            device.open().expect("opens");
            device.open().expect("open already");
            device.start_xmit(&frame).expect("sends");
            assert!(matches!(device.start_xmit(&[0; 13]), Err(DeviceError::Length { .. })));
            device.stop().expect("stops");
            device.stop().expect("stopped already");
        }
        assert_eq!(device.get_stats().expect("counts").tx_packets, 2);
        let peer = KernelDevice { name: "peer".to_owned(), ifindex: ifindex("peer") };
        let (_, received) = peer.read().expect("answers").expect("is there");
        assert_eq!(received.rx_packets, 2);

        for wrong in [67, MTU_MAX + 1] {
            assert!(matches!(device.change_mtu(wrong), Err(DeviceError::Mtu { .. })), "{wrong}");
        }
        device.change_mtu(1400).expect("sets");
        assert_eq!(device.params().expect("is there").mtu, 1400);

        let promiscuity = |d: &dyn NetDevice| d.params().expect("is there").promiscuity;
        let mut users = RxUsers::default();
        for (more, expected) in [(true, 1), (true, 1), (false, 1), (false, 0)] {
            users.set_promiscuity(&mut device, more).expect("sets");
            assert_eq!(promiscuity(&device), expected, "counted as in the kernel");
        }
        users.set_allmulti(&mut device, true).expect("sets");
        assert_eq!(promiscuity(&device), 0);
        assert!(device.params().expect("is there").allmulti.is_none_or(|count| count == 1));
        let driver = device.driver_info().expect("answers").expect("has one");
        assert_eq!(driver.driver, "veth");
        assert_eq!(device.ring_sizes().expect("answers"), None, "a veth has no rings");

        run("ip link del port");
        assert!(matches!(device.params(), Err(DeviceError::Gone(_))));
        assert!(matches!(device.open(), Err(DeviceError::Open(_))));
        assert!(device.change_mtu(1500).is_err());
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn sysfs_is_that_of_the_thread_s_own_namespace() {
    // Also where the mounted sysfs is usually this namespace's already.
    sysfs::read("lo", 1).expect("reads");
    assert_eq!(sysfs::irqs("lo", 1).expect("reads"), []);
    in_namespace(|| {
        let (index, wanted) = (
            ifindex("port"),
            DeviceSettings { napi_defer_hard_irqs: 5, gro_flush_timeout: 12_345 },
        );
        assert_ne!(sysfs::read("port", index).expect("reads"), wanted);
        sysfs::write("port", index, wanted).expect("writes");
        assert_eq!(sysfs::read("port", index).expect("reads"), wanted);
        let error = sysfs::read("port", index + 77).expect_err("another interface of that name");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        // The mount namespace belonged to the helper thread only.
        assert!(!Path::new("/sys/class/net/port").exists());
    });
}

/// The settings of the port's NAPI instances, or of the device if the kernel has only those.
fn settings(index: u32) -> Vec<(u32, u64)> {
    let napis = napi::instances(index).expect("answers");
    let found: Vec<_> = napis.iter().filter_map(|napi| napi.settings).collect();
    if found.is_empty() {
        let device = sysfs::read("port", index).expect("reads");
        return vec![(device.napi_defer_hard_irqs, device.gro_flush_timeout)];
    }
    found.iter().map(|set| (set.defer_hard_irqs, set.gro_flush_timeout)).collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn settings_of_polling_are_restored_by_the_process_or_its_successor() {
    in_namespace(|| {
        // With GRO a veth has NAPI instances also without an XDP program.
        run("ethtool -K port gro on");
        let index = ifindex("port");
        let original = DeviceSettings { napi_defer_hard_irqs: 4, gro_flush_timeout: 40_000 };
        sysfs::write("port", index, original).expect("writes");
        let (original, busy) = (vec![(4, 40_000)], vec![(2, 200_000)]);
        assert_eq!(settings(index), original);
        let dir = tempfile::tempdir().expect("a directory");
        let none = || restore_leftovers(&dir.path().join("none")).expect("nothing to do");
        assert!(none().is_empty());

        let mut tuned = Tuned::apply(dir.path(), "port", index).expect("sets");
        tuned.refresh().expect("nothing new");
        assert_eq!(settings(index), busy);
        let leftovers = || restore_leftovers(dir.path());
        assert!(leftovers().expect("answers").is_empty(), "settings in use are no leftovers");
        assert_eq!(settings(index), busy);
        tuned.restore().expect("puts back");
        assert_eq!(settings(index), original);
        assert_eq!(dir.path().read_dir().expect("lists").count(), 0);

        // As after a crash: the lock is gone, the file remains.
        drop(Tuned::apply(dir.path(), "port", index).expect("sets"));
        assert_eq!(settings(index), busy);
        assert_eq!(leftovers().expect("puts back"), ["port"]);
        assert_eq!(settings(index), original);
        assert!(leftovers().expect("answers").is_empty());

        // Another interface of the same name is left alone.
        drop(Tuned::apply(dir.path(), "port", index).expect("sets"));
        run("ip link del port; ip link add port index 4321 type veth peer name peer; \
             ip link set port up; ip link set peer up; ethtool -K port gro on");
        let before = settings(4321);
        leftovers().expect("answers");
        assert_eq!(settings(4321), before);
        // A file with other contents is removed.
        drop(Tuned::apply(dir.path(), "port", 4321).expect("sets"));
        let file = dir.path().read_dir().expect("lists").flatten().next().expect("a file");
        std::fs::write(file.path(), "nonsense").expect("writes");
        assert!(leftovers().expect("answers").is_empty());
        assert_eq!(dir.path().read_dir().expect("lists").count(), 0);
    });
}
