//! Binds a socket in the best available mode.

use std::io;

use super::area::Area;
use super::error::{OpenError, Step};
use super::netdev;
use super::socket::{Layout, Socket};
use super::{BindMode, BoundMode, Options, PortConfig};
use crate::skb::MAX_SKB_FRAGS;

/// A bound socket and its mode.
pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) mode: BoundMode,
    /// The errno of zero-copy mode, if it was refused.
    pub(super) no_zerocopy: Option<i32>,
    pub(super) multi_buffer: bool,
}

/// Maximum number of descriptors of a packet.
pub(super) fn segments(mode: BoundMode, multi_buffer: bool, config: &PortConfig) -> usize {
    match mode {
        _ if !multi_buffer => 1,
        BoundMode::Copy => MAX_SKB_FRAGS,
        BoundMode::ZeroCopy => (config.zerocopy_segments as usize).clamp(1, MAX_SKB_FRAGS),
    }
}

/// Opens and binds a socket in the first mode that works, with XDP_USE_SG if requested and
/// supported (Linux 6.6).
pub(super) fn bind(
    config: &PortConfig,
    options: &Options,
    area: &Area,
    fill: &[u64],
) -> Result<Bound, OpenError> {
    if config.multi_buffer {
        match bind_with(libc::XDP_USE_SG, config, options, area, fill) {
            Err(OpenError::NoQueue { .. } | OpenError::NoZeroCopy { .. }) => {}
            bound => return bound,
        }
    }
    bind_with(0, config, options, area, fill)
}

fn bind_with(
    sg: u16,
    config: &PortConfig,
    options: &Options,
    area: &Area,
    fill: &[u64],
) -> Result<Bound, OpenError> {
    let mut no_zerocopy = None;
    let refused = |(step, errno)| {
        OpenError::from_os(step, io::Error::from_raw_os_error(errno), config, area.len())
    };
    let multi_buffer = sg != 0;
    if config.mode != BindMode::Copy {
        match bind_as(BoundMode::ZeroCopy, sg, config, options, area, fill) {
            Ok((socket, mode)) => return Ok(Bound { socket, mode, no_zerocopy, multi_buffer }),
            // Drivers report a lack of support by any other errno of bind(2).
            Err((Step::Bind, errno)) if errno != libc::EBUSY && errno != libc::ENODEV => {
                if config.mode == BindMode::ZeroCopy {
                    return Err(OpenError::NoZeroCopy {
                        ifname: config.ifname.clone(),
                        queue: config.queue,
                        driver: netdev::driver_name(&config.ifname)
                            .unwrap_or_else(|| "unknown".to_owned()),
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                no_zerocopy = Some(errno);
            }
            Err(error) => return Err(refused(error)),
        }
    }
    let bound = bind_as(BoundMode::Copy, sg, config, options, area, fill);
    let (socket, mode) = bound.map_err(refused)?;
    Ok(Bound { socket, mode, no_zerocopy, multi_buffer })
}

/// Binds in one mode. A queue whose last socket was just closed stays busy until the kernel's
/// deferred release has run (xp_put_pool): binding is retried a bounded number of times.
fn bind_as(
    mode: BoundMode,
    sg: u16,
    config: &PortConfig,
    options: &Options,
    area: &Area,
    fill: &[u64],
) -> Result<(Socket, BoundMode), (Step, i32)> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let layout = Layout::of(mode);
    let copy_or_not = match mode {
        BoundMode::ZeroCopy => libc::XDP_ZEROCOPY,
        BoundMode::Copy => libc::XDP_COPY,
    };
    let mut tries = options.busy_tries.max(1);
    loop {
        // A new socket each time: a failed bind may have taken frames from the fill ring.
        let opened = Socket::open(area, layout, &options.rings);
        let mut socket = opened.map_err(|(step, error)| (step, errno(error)))?;
        if let Some(budget) = options.busy_poll_budget {
            socket.prefer_busy_poll(budget).map_err(|e| (Step::BusyPoll, errno(e)))?;
        }
        let mut entries = socket.fill.batch(fill.len() as u32);
        for &addr in fill {
            entries.push(layout.fill_addr(addr));
        }
        drop(entries);
        let flags = copy_or_not | sg | libc::XDP_USE_NEED_WAKEUP;
        match socket.bind(config.ifindex, config.queue, flags).map_err(errno) {
            Ok(()) => {
                let zerocopy = socket.is_zerocopy().map_err(|e| (Step::Bind, errno(e)))?;
                let mode = if zerocopy { BoundMode::ZeroCopy } else { BoundMode::Copy };
                return Ok((socket, mode));
            }
            Err(libc::EBUSY) if tries > 1 => {
                tries -= 1;
                drop(socket);
                std::thread::sleep(options.busy_pause);
            }
            Err(error) => return Err((Step::Bind, error)),
        }
    }
}
