//! The UMEM of a worker: memory that xsk-rs has mapped, its frames as tokens, and the crate's
//! descriptors of them.

use std::error::Error;
use std::io;
use std::num::{NonZero, NonZeroU32};
use std::ptr::NonNull;

use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};
use xsk_rs::umem::UmemCreateError;
use xsk_rs::{FrameDesc, Umem};

use crate::io::af_xdp::error::Step;
use crate::io::af_xdp::slots::{Owner, Slots};
use crate::io::af_xdp::{OpenError, PortConfig, RingSizes};
use crate::skb::{self, FRAME_SIZE, FramePool, HEADROOM};

/// What the ports of a worker share.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) umem: Umem,
    /// By frame. The address, which cannot be set, is [`HEADROOM`] octets behind the frame's start.
    descs: Box<[FrameDesc]>,
    pub(super) slots: Slots,
    /// As many descriptors as a ring has, to be given to one or taken from it.
    pub(super) batch: Box<[FrameDesc]>,
    /// Where the area starts.
    start: NonZero<usize>,
}

impl Memory {
    /// Has the crate map and register an area of `frames` frames, and makes their pool.
    ///
    /// # Errors
    /// What mmap(2), socket(2) and XDP_UMEM_REG say.
    pub(super) fn new(frames: u32, rings: &RingSizes) -> Result<(Memory, FramePool), OpenError> {
        let bad = |error: &dyn std::fmt::Display| OpenError::BadOptions(error.to_string());
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(|error| bad(&error))?)
            .fill_queue_size(QueueSize::new(rings.fill).map_err(|error| bad(&error))?)
            .comp_queue_size(QueueSize::new(rings.tx).map_err(|error| bad(&error))?)
            .build()
            .map_err(|error| bad(&error))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| bad(&"no frames"))?;
        let octets = u64::from(frames) * FRAME_SIZE as u64;
        let created = Umem::new(config, count, false);
        let (umem, descs) = created.map_err(|error| not_created(&error, octets))?;
        let base = base(&umem, &descs).ok_or_else(|| bad(&"packet memory without frames"))?;
        // SAFETY: mmap(2) returned zeroed, page-aligned memory of this length (`UmemRegion`), which a
        // `Umem` holds mapped for as long as there is a clone of it. Nobody makes references to it but
        // the tokens, and `Memory::tx_desc` while it has one; the kernel is given frames only by
        // `Slots`, which keeps their tokens until it has them back.
        let frames_of = unsafe { skb::Umem::from_raw(base, frames, Box::new(umem.clone())) };
        let memory = Memory {
            umem,
            descs: descs.into(),
            slots: Slots::new(base.addr(), frames),
            batch: vec![FrameDesc::default(); rings.fill.max(rings.tx) as usize].into(),
            start: base.addr(),
        };
        Ok((memory, frames_of.into_pool()))
    }

    /// Octets of the area.
    pub(super) fn octets(&self) -> u64 {
        self.descs.len() as u64 * FRAME_SIZE as u64
    }

    /// Puts free frames into `batch`, at most `count`, as the receiving side of `owner`. Returns how
    /// many.
    pub(super) fn give_free(&mut self, owner: Owner, count: usize, pool: &mut FramePool) -> usize {
        let mut slots = self.slots.of(owner);
        let mut given = 0;
        for entry in self.batch.iter_mut().take(count) {
            let Some(frame) = pool.alloc() else { break };
            match slots.give(frame) {
                Ok(offset) => *entry = self.descs[offset as usize / FRAME_SIZE],
                // A frame of another pool: an error of the caller, and nothing is lost by it.
                Err(frame) => {
                    pool.free(frame);
                    break;
                }
            }
            given += 1;
        }
        given
    }

    /// The descriptor that sends `len` octets from [`HEADROOM`] of the frame on. `None`: it is of
    /// another area.
    #[inline]
    pub(super) fn tx_desc(&self, frame: &mut skb::Frame, len: usize) -> Option<FrameDesc> {
        let mut desc = *self.descs.get(frame.umem_offset(self.start) / FRAME_SIZE)?;
        // SAFETY: the descriptor is that of the frame, whose token is borrowed exclusively: there is no
        // other reference to its octets.
        unsafe { self.umem.data_mut(&mut desc) }.cursor().set_pos(len);
        Some(desc)
    }
}

/// The first octet of the area. The crate does not tell it, but where the headroom of a frame starts.
fn base(umem: &Umem, descs: &[FrameDesc]) -> Option<NonNull<u8>> {
    let first = descs.first()?;
    debug_assert_eq!(first.addr(), HEADROOM);
    // SAFETY: of this area, and no frame of it is in use yet.
    let headroom = unsafe { umem.headroom(first) };
    // The slice is empty, so its pointer may not be used for more. The mapping's own was given to
    // libxdp, a foreign function, and with that its provenance is exposed.
    NonNull::new(std::ptr::with_exposed_provenance_mut(headroom.contents().as_ptr().addr()))
}

fn not_created(error: &UmemCreateError, octets: u64) -> OpenError {
    let source = os_error(error);
    // The crate does not say whether it was socket(2) or XDP_UMEM_REG that failed.
    let step = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT | libc::ESOCKTNOSUPPORT) => {
            Step::Socket
        }
        _ => Step::Register,
    };
    OpenError::from_os(step, source, &PortConfig::default(), octets)
}

/// What the kernel said, as far as the crate tells.
pub(super) fn os_error(error: &dyn Error) -> io::Error {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}
