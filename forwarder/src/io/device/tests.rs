//! Tests of user counts, and of the behaviour that all devices share.

use super::*;
use crate::io::mem::{InjectError, MemIo};
use crate::io::pcap::{PcapIo, PcapPort};
use crate::skb::Umem;

/// Checks the common behaviour of an open device whose maximum MTU is `max`.
fn behaves_as_a_device(device: &mut impl NetDevice, max: u32) {
    let frame = [7; 60];
    let sent = |device: &dyn NetDevice| device.get_stats().expect("counts").tx_packets;
    let mtu = |device: &dyn NetDevice| device.params().expect("is there").mtu;
    let up = |device: &dyn NetDevice| device.params().expect("is there").flags & 1 != 0;

    device.open().expect("open already");
    device.start_xmit(&frame).expect("open");
    assert!(up(device) && sent(device) == 1);
    device.stop().expect("stops");
    device.stop().expect("stopped already");
    assert!(matches!(device.start_xmit(&frame), Err(DeviceError::Down(_))));
    assert!(!up(device) && sent(device) == 1);
    device.open().expect("opens again");
    device.start_xmit(&frame).expect("open");
    assert_eq!(sent(device), 2);

    for wrong in [0, MTU_MIN - 1, max + 1, u32::MAX] {
        let before = mtu(device);
        assert!(matches!(device.change_mtu(wrong), Err(DeviceError::Mtu { .. })), "{wrong}");
        assert_eq!(mtu(device), before);
    }
    device.change_mtu(MTU_MIN).expect("the smallest");
    assert_eq!(mtu(device), MTU_MIN);
    let longest = MTU_MIN as usize + ETH_HLEN;
    device.start_xmit(&vec![0; longest]).expect("fits");
    for wrong in [0, ETH_HLEN - 1, longest + 1, 1 << 16] {
        let refused = device.start_xmit(&vec![0; wrong]);
        assert!(matches!(refused, Err(DeviceError::Length { .. })), "{wrong}");
    }
    device.change_mtu(max).expect("the largest");
    assert_eq!(sent(device), 3);
    assert!(device.driver_info().expect("answers").is_some());
}

#[test]
fn a_port_in_memory_is_a_device() {
    let (mut io, mut pool) = (MemIo::new(1, 8), Umem::anonymous(16).into_pool());
    let stats = WorkerStats::new(1);
    behaves_as_a_device(&mut io.device(0, &mut pool, &stats), 9000);
    assert_eq!(io.take_all_sent(0, &mut pool).len(), 3);
    assert_eq!(pool.available(), 16);
    let mut none = io.device(1, &mut pool, &stats);
    assert!(matches!(none.open(), Err(DeviceError::Gone(_))));
    assert!(matches!(none.params(), Err(DeviceError::Gone(_))));
}

#[test]
fn a_full_ring_and_an_empty_pool_are_busy() {
    let (mut io, mut pool) = (MemIo::new(1, 2), Umem::anonymous(8).into_pool());
    let stats = WorkerStats::new(1);
    let mut device = io.device(0, &mut pool, &stats);
    for _ in 0..2 {
        device.start_xmit(&[0; 60]).expect("room");
    }
    assert!(matches!(device.start_xmit(&[0; 60]), Err(DeviceError::Busy(_))));
    let mut empty = Umem::anonymous(1).into_pool();
    let _frame = empty.alloc().expect("one");
    let mut io = MemIo::new(1, 2);
    assert!(matches!(
        io.device(0, &mut empty, &stats).start_xmit(&[0; 60]),
        Err(DeviceError::Busy(_))
    ));
}

#[test]
fn a_port_over_a_capture_is_a_device() {
    let dir = tempfile::tempdir().expect("a directory");
    let (input, output) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    // A pcap file without packets: time stamps in µs, snap length 65535, Ethernet.
    let words: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(&input, header).expect("written");
    let ports = [PcapPort { ifname: "left".to_owned(), ifindex: 10 }];
    let mut pool = Umem::anonymous(16).into_pool();
    let stats = WorkerStats::new(1);
    let mut io = PcapIo::open(&input, Some(&output), &ports, 0).expect("opens");
    behaves_as_a_device(&mut io.device(0, &mut pool, &stats), 9000);
    assert_eq!(io.finish(&mut pool).expect("written").written, 3);
    assert_eq!(pool.available(), 16);
}

#[test]
fn a_port_in_memory_applies_its_receive_mode() {
    let (mut io, mut pool) = (MemIo::new(1, 8), Umem::anonymous(16).into_pool());
    let stats = WorkerStats::new(1);
    let mac = [2, 0, 0, 0, 0, 1];
    let to = |dst: MacAddr| [&dst[..], &[0; 54]].concat();
    let (other, group) = ([2, 0, 0, 0, 0, 2], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(io.inject(0, &mut pool, &to(other)), Ok(()), "without an address it accepts all");
    io.set_mac(0, mac).expect("port 0");
    let mut users = RxUsers::default();
    let taken = |io: &mut MemIo, pool: &mut FramePool| {
        [mac, [0xff; 6], other, group].map(|dst| {
            let result = io.inject(0, pool, &to(dst));
            assert!(matches!(result, Ok(()) | Err(InjectError::OtherHost)), "{result:?}");
            let mut burst = Burst::default();
            io.rx_burst(0, pool, &mut burst, &stats);
            burst.drain(usize::MAX).for_each(|skb| pool.kfree_skb(skb));
            result.is_ok()
        })
    };
    assert_eq!(taken(&mut io, &mut pool), [true, true, false, false]);
    users.set_allmulti(&mut io.device(0, &mut pool, &stats), true).expect("set");
    assert_eq!(taken(&mut io, &mut pool), [true, true, false, true]);
    users.set_promiscuity(&mut io.device(0, &mut pool, &stats), true).expect("set");
    assert_eq!(taken(&mut io, &mut pool), [true; 4]);
}

/// Records the modes that were set.
#[derive(Default)]
struct Recorder {
    modes: Vec<RxMode>,
    refuses: bool,
}

impl NetDeviceOps for Recorder {
    fn open(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn start_xmit(&mut self, _frame: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), DeviceError> {
        if self.refuses {
            return Err(DeviceError::Gone("recorder".to_owned()));
        }
        self.modes.push(mode);
        Ok(())
    }

    fn change_mtu(&mut self, _mtu: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn get_stats(&self) -> Result<Stats, DeviceError> {
        Ok(Stats::default())
    }
}

#[test]
fn a_device_is_updated_for_the_first_and_after_the_last_user() {
    let (mut device, mut users) = (Recorder::default(), RxUsers::default());
    for more in [true, true, false] {
        users.set_promiscuity(&mut device, more).expect("set");
    }
    let promisc = RxMode { promisc: true, allmulti: false };
    assert_eq!((users.promiscuity, device.modes.as_slice()), (1, &[promisc][..]));
    users.set_promiscuity(&mut device, false).expect("set");
    users.set_promiscuity(&mut device, false).expect("there is no user to remove");
    assert_eq!(device.modes, [promisc, RxMode::default()]);
    device.refuses = true;
    assert!(users.set_promiscuity(&mut device, true).is_err());
    assert_eq!(users, RxUsers::default(), "no user was added");
}
